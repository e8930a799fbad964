"""The nnsight back end: the only module that imports nnsight, and every `with ...trace` of the project.

Facts about nnsight 0.8 that shape this file (each has a test in `tests/models/test_engines.py`, the one about pictures
in `tests/vision/test_vision_sites.py`):

- A block's reads must follow the forward's order, or a late read silently takes the *next* step's value: the
  visits are sorted once, by layer and point.
- A step that only reads needs no further work, so a run stops after the deepest site.
- `torch.no_grad()` belongs outside the trace: inside, it would leak into the model's own forward.
- An open loop over steps ends with `OutOfOrderError`; the same error would also hide a visit that never came, so
  the number of steps carried out is compared with the number of forwards the model really made.
- Pictures are encoded inside the forward of a trace, but before the first step of `generate`, where no step is open:
  there the plan's edits of the vision tower and the projector are put in place by plain hooks.
- Bodies read only tensors, envoys and plain functions: rich objects don't travel.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import nnsight
import torch
from nnsight.intervention.interleaver import OutOfOrderError
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from steerlab._support.errors import LayoutError, SteeringError
from steerlab.models._hooks import HooksEngine
from steerlab.models.engine import NOTHING, Inputs, Select, block_path, check_resume, point_path
from steerlab.models.layout import Layout
from steerlab.models.layout import blocks as find_blocks
from steerlab.models.patches import PictureEdit
from steerlab.models.plan import Edit, Plan, last_column, shifted
from steerlab.models.resume import Prefix, Resume, prefill
from steerlab.models.sites import Site


class _Leaf(nnsight.Envoy):
    """An envoy that does not instrument what is inside a block: 44 envoys instead of 399 on 30 layers.

    Inner modules are still wrapped when they are asked for.
    """

    def _add_envoy(self, name: str, module: Any) -> None:
        return None


class _Visit(NamedTuple):
    """One stop on the way through the model: what to write there, and whether it is read."""

    envoy: Any
    is_input: bool
    edits: Sequence[Edit | PictureEdit]
    wanted: bool
    site: Site


class NnsightEngine:
    """Carries out plans in nnsight traces."""

    def __init__(
        self, hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, layout: Layout, processor: Any = None
    ) -> None:
        block_type = type(find_blocks(hf, layout)[0])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # wrapping sets the tokenizer's padding side and pad token: it gets a copy of its own
            given: dict[str, Any] = {"tokenizer": copy.deepcopy(tokenizer)}
            if processor is not None:  # the task would be guessed as a text one, with a page of warning
                given |= {"processor": copy.copy(processor), "task": "image-text-to-text"}
                given["processor"].tokenizer = given["tokenizer"]
            self._root = nnsight.TransformersModel(hf, **given, envoys={block_type: _Leaf})
        self._layout = layout
        self._hf = hf
        self._hooks = HooksEngine(hf, layout)

    def read(
        self, inputs: Inputs, plan: Plan, sites: Sequence[Site], select: Select, resume: Resume = NOTHING
    ) -> Tensor:
        """See `Engine.read`."""
        visits = self._visits(plan, sites)
        with torch.no_grad(), resume.options(self._hf) as past:
            try:
                found = _read(self._root, inputs | past, visits, select, inputs["attention_mask"].shape[-1])
            except OutOfOrderError as error:
                raise self._unordered(error) from error
        places = {visit.site: i for i, visit in enumerate(v for v in visits if v.wanted)}
        return torch.stack([found[places[site]].to(found[0].device) for site in sites], 1)

    def generate(self, inputs: Inputs, plan: Plan, **options: Any) -> Tensor:
        """See `Engine.generate`."""
        visits = self._visits({site: edits for site, edits in plan.items() if site.part == "text"}, ())
        pictures = {site: edits for site, edits in plan.items() if site.part != "text"}
        counter = [0]
        handle = self._hf.register_forward_pre_hook(lambda *_: counter.__setitem__(0, counter[0] + 1))
        try:
            with torch.no_grad(), self._hooks.hooked(pictures) if pictures else nullcontext():
                ids, steps = _generate(self._root, inputs, visits, options)
        finally:
            handle.remove()
        if visits and steps != counter[0]:
            raise SteeringError(
                f"the model made {counter[0]} forwards but only {steps} were steered; the blocks at "
                f"{self._layout.blocks_path!r} are not visited in order. Use load(..., backend='hooks')."
            )
        return ids

    def logits(self, inputs: Inputs, plan: Plan, keep: int | Tensor, resume: Resume = NOTHING) -> Tensor:
        """See `Engine.logits`."""
        check_resume(plan, resume)
        stop = inputs["attention_mask"].shape[-1]
        with torch.no_grad(), resume.options(self._hf) as past:
            left_out, handed = self._left_out(plan, resume, stop)
            visits = self._visits({s: e for s, e in plan.items() if s != Site(len(left_out) - 1)}, ())
            try:
                return _logits(self._root, inputs | past, visits, keep, stop, left_out, handed)
            except OutOfOrderError as error:
                raise self._unordered(error) from error

    def prefill(self, inputs: Inputs) -> Prefix:
        """See `Engine.prefill`; nothing is read or written, so no trace is needed."""
        return prefill(self._hf, inputs)

    def _left_out(self, plan: Plan, resume: Resume, stop: int) -> tuple[list[Any], Any]:
        """The blocks that a forward leaves out, and what the last of them hands on: the known state, edited."""
        if resume.layer is None or resume.state is None:
            return [], None
        state = shifted(edits, resume.state, stop) if (edits := plan.get(Site(resume.layer))) else resume.state
        envoys = [self._root.get(f"{self._layout.blocks_path}.{k}") for k in range(resume.layer + 1)]
        return envoys, (state, None) if self._hooks.gives_tuples() else state

    def _unordered(self, error: OutOfOrderError) -> LayoutError:
        return LayoutError(
            f"the model does not run the blocks at {self._layout.blocks_path!r} one after the other ({error}): "
            "give load(..., blocks='dotted.path'), or load(..., backend='hooks')"
        )

    def _visits(self, plan: Plan, sites: Sequence[Site]) -> list[_Visit]:
        order = sorted(set(plan) | set(sites), key=lambda site: site.passed)
        return [self._visit(site, plan.get(site, ()), site in sites) for site in order]

    def _visit(self, site: Site, edits: Sequence[Edit | PictureEdit], wanted: bool) -> _Visit:
        path = point_path(site, self._layout)
        block: Any = self._root.get(block_path(site, self._layout))
        return _Visit(getattr(block, path) if path else block, site.point == "block_in", edits, wanted, site)


def _read(root: Any, inputs: Inputs, visits: list[_Visit], select: Callable[[Tensor], Tensor], stop: int) -> Any:
    with root.trace(**inputs, use_cache=False, logits_to_keep=1) as tracer:
        found = nnsight.save([])
        for envoy, is_input, edits, wanted, _site in visits:
            h = _pass(envoy, is_input, edits, stop)
            if wanted:
                found.append(select(h))
        tracer.stop()
    return found


def _generate(root: Any, inputs: Inputs, visits: list[_Visit], options: dict[str, Any]) -> tuple[Tensor, int]:
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
                    for envoy, is_input, edits, _wanted, _site in visits:
                        _pass(envoy, is_input, edits, stop)
                    n = n + 1
                    steps.append(n)
            except OutOfOrderError:
                n = -1  # how an open loop ends
        with tracer.invoke():
            ids = tracer.result.save()
    return ids, len(steps)


def _logits(
    root: Any, inputs: Any, visits: list[_Visit], keep: int | Tensor, stop: int, left_out: list[Any], handed: Any
) -> Tensor:
    with root.trace(**inputs, use_cache=False, logits_to_keep=keep):
        for envoy in left_out:
            envoy.skip(handed)
        for envoy, is_input, edits, _wanted, _site in visits:
            _pass(envoy, is_input, edits, stop)
        logits = root.output.logits.save()
    return logits[:, -keep:] if isinstance(keep, int) else logits


def _pass(envoy: Any, is_input: bool, edits: Sequence[Edit | PictureEdit], stop: int) -> Tensor:
    """The state at one visit, with the edits put in place."""
    whole = envoy.input if is_input else envoy.output
    h: Tensor = whole[0] if isinstance(whole, tuple) else whole
    if edits:
        h = shifted(edits, h, stop)
        new = (h, *whole[1:]) if isinstance(whole, tuple) else h
        if is_input:
            envoy.input = new
        else:
            envoy.output = new
    return h
