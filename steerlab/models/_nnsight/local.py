"""The nnsight engine for a model in this process.

Pictures are encoded inside the forward of a trace, but before the first step of `generate`, where no step is open:
there the plan's edits of the vision tower and the projector are put in place by plain hooks (a test in
`tests/vision/test_vision_sites.py`).
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import nnsight
import torch
from nnsight.intervention.interleaver import OutOfOrderError
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from steerlab._support.errors import LayoutError, SteeringError
from steerlab.models._hooks import HooksEngine
from steerlab.models._nnsight import traces
from steerlab.models._nnsight.traces import Leaf, Visit, lay_out
from steerlab.models.engine import FULL_FORWARD, Inputs, LogitsReducer, StateSelector, check_forward_state, identity
from steerlab.models.interventions import SiteEdits, apply_edits
from steerlab.models.kv_prefix import ForwardState, Prefix, prefill
from steerlab.models.layout import Layout
from steerlab.models.layout import blocks as find_blocks
from steerlab.models.sites import Site


class NnsightEngine:
    """Carries out plans in nnsight traces."""

    supports_forward_state = True

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
            self._root = nnsight.TransformersModel(hf, **given, envoys={block_type: Leaf})
        self._layout = layout
        self._hf = hf
        self._hooks = HooksEngine(hf, layout)

    def capture_states(
        self,
        inputs: Inputs,
        plan: SiteEdits,
        sites: Sequence[Site],
        select: StateSelector,
        forward_state: ForwardState = FULL_FORWARD,
    ) -> Tensor:
        """See `Engine.capture_states`."""
        visits = self._visits(plan, sites)
        with torch.no_grad(), forward_state.options(self._hf) as past:
            try:
                found = traces.read(self._root, inputs | past, visits, select, inputs["attention_mask"].shape[-1])
            except OutOfOrderError as error:
                raise self._unordered(error) from error
        places = {visit.site: i for i, visit in enumerate(v for v in visits if v.wanted)}
        return torch.stack([found[places[site]].to(found[0].device) for site in sites], 1)

    def generate(self, inputs: Inputs, plan: SiteEdits, **options: Any) -> Tensor:
        """See `Engine.generate`."""
        visits = self._visits({site: edits for site, edits in plan.items() if site.part == "text"}, ())
        images = {site: edits for site, edits in plan.items() if site.part != "text"}
        counter = [0]
        handle = self._hf.register_forward_pre_hook(lambda *_: counter.__setitem__(0, counter[0] + 1))
        try:
            with torch.no_grad(), self._hooks.hooked(images) if images else nullcontext():
                ids, steps = traces.generate(self._root, inputs, visits, options)
        finally:
            handle.remove()
        if visits and steps != counter[0]:
            raise SteeringError(
                f"the model made {counter[0]} forwards but only {steps} were steered; the blocks at "
                f"{self._layout.blocks_path!r} are not visited in order. Use load(..., backend='hooks')."
            )
        return ids

    def logits(
        self,
        inputs: Inputs,
        plan: SiteEdits,
        keep: int | Tensor,
        forward_state: ForwardState = FULL_FORWARD,
        reduce: LogitsReducer = identity,
    ) -> Any:
        """See `Engine.logits`."""
        check_forward_state(plan, forward_state)
        stop = inputs["attention_mask"].shape[-1]
        with torch.no_grad(), forward_state.options(self._hf) as past:
            left_out, handed = self._left_out(plan, forward_state, stop)
            visits = self._visits({s: e for s, e in plan.items() if s != Site(len(left_out) - 1)}, ())
            try:
                return reduce(traces.logits(self._root, inputs | past, visits, keep, stop, left_out, handed))
            except OutOfOrderError as error:
                raise self._unordered(error) from error

    def prefill(self, inputs: Inputs) -> Prefix:
        """See `Engine.prefill`; nothing is read or written, so no trace is needed."""
        return prefill(self._hf, inputs)

    def _left_out(self, plan: SiteEdits, forward_state: ForwardState, stop: int) -> tuple[list[Any], Any]:
        """The blocks that a forward leaves out, and what the last of them hands on: the known state, edited."""
        if forward_state.layer is None or forward_state.state is None:
            return [], None
        state = (
            apply_edits(edits, forward_state.state, stop)
            if (edits := plan.get(Site(forward_state.layer)))
            else forward_state.state
        )
        envoys = [self._root.get(f"{self._layout.blocks_path}.{k}") for k in range(forward_state.layer + 1)]
        return envoys, (state, None) if self._hooks.gives_tuples() else state

    def _unordered(self, error: OutOfOrderError) -> LayoutError:
        return LayoutError(
            f"the model does not run the blocks at {self._layout.blocks_path!r} one after the other ({error}): "
            "give load(..., blocks='dotted.path'), or load(..., backend='hooks')"
        )

    def _visits(self, plan: SiteEdits, sites: Sequence[Site]) -> list[Visit]:
        return lay_out(self._root, self._layout, plan, sites)
