"""The nnsight engine for a model in this process.

Images are encoded inside the forward of a trace, but before the first step of `generate`, where no step is open:
there, edits of the vision tower and the projector are applied by hooks (tests in `tests/vision/test_vision_sites.py`).
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import nnsight
import torch
from nnsight.intervention.interleaver import OutOfOrderError
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from steerlab.errors import LayoutError, SteeringError
from steerlab.models import engine
from steerlab.models._hooks import HooksEngine
from steerlab.models._nnsight import traces
from steerlab.models._nnsight.traces import BlockEnvoy, Visit, make_visits, stack_sites
from steerlab.models.engine import FULL_FORWARD, Inputs, LogitsReducer, StateSelector, forward_inputs, identity
from steerlab.models.interventions import SiteEdits, apply_edits
from steerlab.models.kv_prefix import ForwardState, Prefix, prefill
from steerlab.models.layout import Layout, blocks, module_at
from steerlab.models.sites import Site


class NnsightEngine:
    """Runs a model in this process in nnsight traces."""

    supports_forward_state = True

    def __init__(self, hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, layout: Layout, processor: Any) -> None:
        with _quiet():
            # nnsight sets the tokenizer's padding side and pad token: it gets a copy
            options: dict[str, Any] = {"tokenizer": copy.deepcopy(tokenizer)}
            if processor is not None:  # nnsight would guess a text task
                options |= {"processor": copy.copy(processor), "task": "image-text-to-text"}
                options["processor"].tokenizer = options["tokenizer"]
            self.root = nnsight.TransformersModel(hf, **options, envoys={type(blocks(hf, layout)[0]): BlockEnvoy})
            for number, block in enumerate(blocks(hf, layout)):  # nnsight warns when it first meets a module "output"
                for name in (layout.attention_name, layout.mlp_name):
                    if name is not None and hasattr(module_at(block, name), "output"):
                        self.root.get(f"{layout.blocks_path}.{number}.{name}")
        self._layout, self._hf = layout, hf
        self._modules: dict[str, Any] = {}  # those that nnsight has wrapped: it does so when one is first used
        self._hooks = HooksEngine(hf, layout)

    def capture_states(
        self, inputs: Inputs, edits: SiteEdits, sites: Sequence[Site], select: StateSelector,
        forward_state: ForwardState = FULL_FORWARD,
    ) -> Tensor:  # fmt: skip
        """See `Engine.capture_states`."""
        visits, end = self._visits(edits, sites, select), inputs["attention_mask"].shape[-1]
        with torch.no_grad(), forward_state.options(self._hf) as past:
            try:
                found = traces.capture_states(self.root, forward_inputs(self._hf, inputs) | past, visits, end)
            except OutOfOrderError as error:
                raise self._out_of_order(error) from error
        return stack_sites(found, visits, sites)

    def generate(self, inputs: Inputs, edits: SiteEdits, **options: Any) -> Tensor:
        """See `Engine.generate`."""
        visits = self._visits({site: at_site for site, at_site in edits.items() if site.part == "text"})
        image_edits = {site: at_site for site, at_site in edits.items() if site.part != "text"}
        forwards = [0]
        counted = self._hf.register_forward_pre_hook(lambda *_: forwards.__setitem__(0, forwards[0] + 1))
        with counted, torch.no_grad(), self._hooks.hooked(image_edits) if image_edits else nullcontext():
            ids, steps, _ = traces.generate(self.root, inputs, visits, options)
        if visits and steps != forwards[0]:
            raise SteeringError(
                f"the model made {forwards[0]} forwards but only {steps} were steered; the blocks at "
                f"{self._layout.blocks_path!r} are not run in order. Use load(..., backend='hooks')"
            )
        return ids

    def logits(
        self, inputs: Inputs, edits: SiteEdits, keep: int | Tensor, forward_state: ForwardState = FULL_FORWARD,
        reduce: LogitsReducer = identity,
    ) -> Any:  # fmt: skip
        """See `Engine.logits`."""
        engine.check_forward_state(edits, forward_state)
        end = inputs["attention_mask"].shape[-1]
        with torch.no_grad(), forward_state.options(self._hf) as past:
            skipped, output = self._skipped(edits, forward_state, end)
            visits = self._visits({s: e for s, e in edits.items() if s != Site(len(skipped) - 1)})
            try:
                given = forward_inputs(self._hf, inputs, keep) | past
                return traces.logits(self.root, given, visits, keep, end, reduce, skipped, output)
            except OutOfOrderError as error:
                raise self._out_of_order(error) from error

    def prefill(self, inputs: Inputs, share_beginning: bool = True, joined: bool = False) -> Prefix:
        """See `Engine.prefill`; nothing is read or edited, so no trace is needed."""
        return prefill(self._hf, inputs, share_beginning, joined)

    def _visits(self, edits: SiteEdits, *read: Any) -> list[Visit]:
        """What a forward passes, in the modules that the model has now.

        Raises:
            LayoutError: a module was replaced since nnsight wrapped it, by an adapter for instance.
        """
        visits = make_visits(self._layout, edits, *read)
        for path in {visit.path for visit in visits}:
            if self._modules.setdefault(path, now := module_at(self._hf, path)) is not now:
                raise LayoutError(f"{path} was replaced since the model was loaded: `load` the changed model")
        return visits

    def _skipped(self, edits: SiteEdits, forward_state: ForwardState, end: int) -> tuple[list[Any], Any]:
        """The blocks that a forward skips, and the output of the last of them: the kept state, edited."""
        if forward_state.layer is None or forward_state.state is None:
            return [], None
        at_layer = edits.get(Site(forward_state.layer))
        state = apply_edits(at_layer, forward_state.state, end) if at_layer else forward_state.state
        envoys = [self.root.get(f"{self._layout.blocks_path}.{k}") for k in range(forward_state.layer + 1)]
        return envoys, (state, None) if self._hooks.gives_tuples else state

    def _out_of_order(self, error: OutOfOrderError) -> LayoutError:
        return LayoutError(
            f"the model does not run the blocks at {self._layout.blocks_path!r} one after the other ({error}): give "
            "load(..., blocks='dotted.path'), or load(..., backend='hooks')"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence nnsight's warnings, and the 200 class names that it logs for an image-text model loaded for text."""
    log = logging.getLogger("transformers.pipelines.base")
    disabled, log.disabled = log.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.disabled = disabled
