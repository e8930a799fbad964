"""Every `with ...trace` of the project, over a plan's visits: the same source runs here and on a server.

Facts about nnsight 0.8 that shape these blocks (each has a test in `tests/models/test_engines.py`):

- A block's reads must follow the forward's order, or a late read silently takes the *next* step's value: the
  visits are sorted once, by layer and point.
- A step that only reads needs no further work, so a run stops after the deepest site.
- `torch.no_grad()` belongs outside the trace: inside, it would leak into the model's own forward.
- An open loop over steps ends with `OutOfOrderError`; the same error would also hide a visit that never came, so
  the number of steps carried out is compared with the number of forwards that were made.
- Bodies read only tensors, envoys and plain functions: rich objects don't travel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import nnsight
import torch
from nnsight.intervention.interleaver import OutOfOrderError
from torch import Tensor

from steerlab.models.engine import Inputs, block_path, point_path
from steerlab.models.interventions import Edit, ImageEdit, SiteEdits, apply_edits, last_column
from steerlab.models.layout import Layout
from steerlab.models.sites import Site


class Leaf(nnsight.Envoy):
    """An envoy that does not instrument what is inside a block: 44 envoys instead of 399 on 30 layers.

    Inner modules are still wrapped when they are asked for.
    """

    def _add_envoy(self, name: str, module: Any) -> None:
        return None


@dataclass(frozen=True)
class Visit:
    """One stop on the way through the model: what to write there, and whether it is read."""

    envoy: Any
    is_input: bool
    edits: Sequence[Edit | ImageEdit]
    wanted: bool
    site: Site


def lay_out(root: Any, layout: Layout, plan: SiteEdits, sites: Sequence[Site]) -> list[Visit]:
    """Every stop of a run, in the order in which a forward passes them."""
    visits = []
    for site in sorted(set(plan) | set(sites), key=lambda site: site.forward_order):
        path = point_path(site, layout)
        block: Any = root.get(block_path(site, layout))
        envoy = getattr(block, path) if path else block
        visits.append(Visit(envoy, site.point == "block_in", plan.get(site, ()), site in sites, site))
    return visits


def read(
    root: Any, inputs: Inputs, visits: list[Visit], select: Callable[[Tensor], Tensor], stop: int, early: bool = True
) -> Any:
    with root.trace(**inputs, use_cache=False, logits_to_keep=1) as tracer:
        found = nnsight.save([])
        for visit in visits:
            h = _pass(visit, stop)
            if visit.wanted:
                found.append(select(h))
        if early:
            tracer.stop()
    return found


def generate(root: Any, inputs: Inputs, visits: list[Visit], options: dict[str, Any]) -> tuple[Tensor, int]:
    if not visits:
        with root.generate(**inputs, **options) as tracer:
            ids = tracer.result.save()
        return ids, 0
    steps = []
    with root.generate(**options) as tracer:
        with tracer.invoke(**inputs):
            n = 0  # a traced block must not begin with `try`
            try:
                for _step in tracer.iter[:]:
                    stop = last_column(root.inputs[1])
                    for visit in visits:
                        _pass(visit, stop)
                    n = n + 1
                    steps.append(n)
            except OutOfOrderError:
                n = -1  # how an open loop ends
        with tracer.invoke():
            ids = tracer.result.save()
    return ids, len(steps)


def logits(
    root: Any, inputs: Any, visits: list[Visit], keep: int | Tensor, stop: int, left_out: list[Any], handed: Any
) -> Tensor:
    with root.trace(**inputs, use_cache=False, logits_to_keep=keep):
        for envoy in left_out:
            envoy.skip(handed)
        for visit in visits:
            _pass(visit, stop)
        logits = root.output.logits.save()
    return logits[:, -keep:] if isinstance(keep, int) else logits


def sampled(
    root: Any, inputs: Inputs, visits: list[Visit], options: dict[str, Any], state: Tensor
) -> tuple[Tensor, int, Tensor]:
    """`generate` from a state of the random generator, and the state afterwards."""
    torch.set_rng_state(state)
    ids, steps = generate(root, inputs, visits, options)
    return ids, steps, torch.get_rng_state()


def resolve_vectors(root: Any, inputs: Inputs, visits: list[Visit], edits: Sequence[Edit]) -> None:
    """Give edits with a source their vectors, from one unsteered forward of the prompts.

    It is not stopped early: in a sandboxed worker the next trace of a session would then give no result.
    """
    states = read(root, inputs, visits, _whole, inputs["attention_mask"].shape[-1], early=False)
    places = {visit.site: i for i, visit in enumerate(visits)}
    for edit in edits:
        edit.resolve_vectors(states[places[edit.read_site]])  # type: ignore[index]


def _whole(h: Tensor) -> Tensor:
    return h


def apart(root: Any, inputs: Inputs, visits: list[Visit]) -> tuple[list[float], bool]:
    """How far the state at each visit is from the model's own hidden states, and whether the weights are in reach."""
    with root.trace(**inputs, use_cache=False, output_hidden_states=True):
        seen = nnsight.save([])
        for visit in visits:
            seen.append(_pass(visit, 0).clone())
        theirs = nnsight.save(list(root.output.hidden_states))
    far = [float((a - b).abs().max()) for a, b in zip(seen, theirs[1:], strict=False)]
    return far, next(iter(root._module.parameters())).device.type != "meta"


def told_logits(
    root: Any, inputs: Any, visits: list[Visit], keep: int | Tensor, stop: int, reduce: Callable[[Tensor], Any]
) -> Any:
    """What is wanted of the logits of whole rows."""
    return reduce(logits(root, inputs, visits, keep, stop, [], None))


def _pass(visit: Visit, stop: int) -> Tensor:
    """The state at one visit, with the edits put in place."""
    envoy = visit.envoy
    whole = envoy.input if visit.is_input else envoy.output
    h: Tensor = whole[0] if isinstance(whole, tuple) else whole
    if visit.edits:
        h = apply_edits(visit.edits, h, stop)
        new = (h, *whole[1:]) if isinstance(whole, tuple) else h
        if visit.is_input:
            envoy.input = new
        else:
            envoy.output = new
    return h
