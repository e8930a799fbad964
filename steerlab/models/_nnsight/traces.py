"""Every nnsight trace over a model of Hugging Face: in this process, or sent as source to an NDIF server.

Facts about nnsight 0.8 that shape these functions (each has a test in `tests/models/test_engines.py`):

- Values must be used in the order of the forward. Out of order, a read silently returns the value of the *next* step;
  `make_visits` sorts once, by layer and point.
- A trace that only reads can end after the deepest site.
- `torch.no_grad()` belongs outside the trace: inside, it leaks into the model's own forward.
- A loop over all steps ends with `OutOfOrderError`. A module that the forward never reaches raises the same error, so
  the caller compares the number of steps with the number of forwards.
- Everything that a body names is pickled on its way to a server: bodies use tensors, paths and plain functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import nnsight
import torch
from nnsight.intervention.interleaver import OutOfOrderError
from torch import Tensor

from steerlab.models.engine import Inputs, LogitsReducer, StateSelector, choose_columns, identity, site_path
from steerlab.models.forwards import given_tokens, last_column, main_output, with_main_output, with_rows
from steerlab.models.interventions import Edit, ImageEdit, SiteEdits, apply_edits
from steerlab.models.layout import Layout
from steerlab.models.sites import INPUTS, Site


class BlockEnvoy(nnsight.Envoy):
    """An envoy that wraps modules inside a block only when they are used: 44 envoys instead of 399 on 30 layers."""

    def _add_envoy(self, name: str, module: Any) -> None:
        return None


@dataclass(frozen=True)
class Visit:
    """One site that a forward passes: the edits to add there, and what to read of the edited state.

    Attributes:
        path: of the module, from the root of the model.
        is_input: whether the state is the module's input instead of its output.
        site: the site.
        edits: the edits to add; none where the site is only read.
        select: what to read of `(rows, tokens, hidden)`; None where the site is only edited.
    """

    path: str
    is_input: bool
    site: Site
    edits: Sequence[Edit | ImageEdit]
    select: StateSelector | None


def make_visits(
    layout: Layout, edits: SiteEdits, sites: Sequence[Site] = (), select: StateSelector = identity
) -> list[Visit]:
    """The visits of one forward, in its order; `sites` are read."""
    visits = []
    for site in sorted({*edits, *sites}, key=lambda site: site.forward_order):
        read = select if site in sites else None
        visits.append(Visit(site_path(site, layout), site.point in INPUTS, site, edits.get(site, ()), read))
    return visits


def stack_sites(found: Sequence[Tensor], visits: Sequence[Visit], sites: Sequence[Site]) -> Tensor:
    """What was read at each visit, stacked to `(row, site, ...)` in the order of `sites`."""
    order = [visit.site for visit in visits if visit.select]
    return torch.stack([found[order.index(site)].to(found[0].device) for site in sites], 1)


def capture_states(root: Any, inputs: Inputs, visits: list[Visit], end: int, stop_early: bool = True) -> list[Tensor]:
    """What each visit selects, from one forward that ends after the last of them."""
    rows = len(inputs["input_ids"])
    with root.trace(**inputs) as tracer:
        found = nnsight.save([])
        for visit in visits:
            h = _pass(root, visit, end, rows)
            if visit.select:
                found.append(visit.select(h))
        if stop_early:
            tracer.stop()
    return found


def generate(
    root: Any, inputs: Inputs, visits: list[Visit], options: dict[str, Any], rng_state: Tensor | None = None
) -> tuple[Tensor, int, Tensor]:
    """Token ids, prompt included, the number of forwards that were edited, and the final state of the random generator.

    Args:
        root: the model.
        inputs: the prompts.
        visits: the sites to edit.
        options: for Hugging Face's `generate`.
        rng_state: what torch's random generator starts from; None: from its own state.
    """
    if rng_state is not None:
        torch.set_rng_state(rng_state)
    if not visits:
        with root.generate(**inputs, **options) as tracer:
            ids = tracer.result.save()
        return ids, 0, torch.get_rng_state()
    steps = []
    with root.generate(**options) as tracer:
        with tracer.invoke(**inputs):
            n, end = 0, 0  # a traced block must not begin with `try`
            try:
                for _step in tracer.iter[:]:
                    given = root.inputs[1]
                    end = last_column(given, end)
                    rows = len(given_tokens(given))
                    for visit in visits:
                        _pass(root, visit, end, rows)
                    n = n + 1
                    steps.append(n)
            except OutOfOrderError:
                n = -1  # how a loop over all steps ends
        with tracer.invoke():
            ids = tracer.result.save()
    return ids, len(steps), torch.get_rng_state()


def logits(
    root: Any, inputs: Any, visits: list[Visit], keep: int | Tensor, end: int, reduce: LogitsReducer,
    skipped: Sequence[Any] = (), output: Any = None,
) -> Any:  # fmt: skip
    """`reduce` of the logits of the columns `keep`; the blocks `skipped` do not run but pass `output` on."""
    rows = len(inputs["input_ids"])
    with root.trace(**inputs):
        for envoy in skipped:
            envoy.skip(output)
        for visit in visits:
            _pass(root, visit, end, rows)
        logits = root.output.logits.save()
    return reduce(choose_columns(logits, keep, "logits_to_keep" in inputs))


def unresolved(edits: SiteEdits) -> tuple[list[Edit], list[Site]]:
    """Edits whose vectors are computed from the unsteered prompt, and the sites that they are computed from."""
    found = [edit for at_site in edits.values() for edit in at_site if isinstance(edit, Edit) and edit.read_site]
    return found, sorted({edit.read_site for edit in found if edit.read_site})


def resolve_vectors(root: Any, inputs: Inputs, visits: list[Visit], edits: Sequence[Edit]) -> None:
    """Compute the vectors of edits with a `read_site`, from one unsteered forward of the prompts.

    It runs to its end: in a sandboxed worker, the trace after one that was stopped early would give no result.
    """
    states = capture_states(root, inputs, visits, inputs["attention_mask"].shape[-1], stop_early=False)
    places = {visit.site: i for i, visit in enumerate(visits)}
    for edit in edits:
        edit.resolve_vectors(states[places[edit.read_site]])  # type: ignore[index]


def residual_errors(root: Any, inputs: Inputs, visits: list[Visit]) -> tuple[list[float], bool]:
    """The largest difference of each visit's state from the model's `hidden_states`, and whether the weights are in
    the process that runs the trace.
    """
    with root.trace(**inputs, output_hidden_states=True):
        ours = nnsight.save([])
        for visit in visits:
            ours.append(_pass(root, visit, 0, len(inputs["input_ids"])).clone())
        theirs = nnsight.save(list(root.output.hidden_states))
    errors = [float((a - b).abs().max()) for a, b in zip(ours, theirs[1:], strict=False)]
    return errors, next(iter(root._module.parameters())).device.type != "meta"


def _pass(root: Any, visit: Visit, end: int, rows: int) -> Tensor:
    """The state at one visit, with its edits put in place; `end` is the column after the last."""
    envoy = root.get(visit.path)
    value = envoy.input if visit.is_input else envoy.output
    given = main_output(value)
    h = with_rows(given, rows) if visit.site.part == "text" else given
    if visit.edits:
        h = apply_edits(visit.edits, h, end)
        new = with_main_output(value, h.reshape(given.shape))
        if visit.is_input:
            envoy.input = new
        else:
            envoy.output = new
    return h
