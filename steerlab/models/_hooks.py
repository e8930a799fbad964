"""The plain engine: torch forward hooks. It is the reference in the tests, and the fallback without nnsight."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from steerlab.errors import LayoutError
from steerlab.models import engine
from steerlab.models.engine import FULL_FORWARD, Inputs, LogitsReducer, StateSelector, forward_inputs, identity
from steerlab.models.forwards import given_tokens, last_column, main_output, with_main_output, with_rows
from steerlab.models.interventions import SiteEdits, apply_edits
from steerlab.models.kv_prefix import ForwardState, Prefix, prefill, skip_blocks
from steerlab.models.layout import Layout, blocks, module_at
from steerlab.models.sites import INPUTS, Site
from steerlab.models.versions import forward_options


class _Stop(Exception):
    """Raised once all sites are read; the rest of the forward is not needed."""


class HooksEngine:
    """Runs a model under edits with `register_forward_hook`."""

    supports_forward_state = True

    def __init__(self, hf: PreTrainedModel, layout: Layout) -> None:
        self._hf, self._layout = hf, layout

    def capture_states(
        self, inputs: Inputs, edits: SiteEdits, sites: Sequence[Site], select: StateSelector,
        forward_state: ForwardState = FULL_FORWARD,
    ) -> Tensor:  # fmt: skip
        """See `Engine.capture_states`."""
        found: dict[Site, Tensor] = {}

        def keep(site: Site, h: Tensor) -> None:
            found[site] = select(h)
            if len(found) == len(sites):
                raise _Stop

        with torch.no_grad(), self._start_from(forward_state) as past, self.hooked(edits, set(sites), keep):
            try:
                self._hf(**forward_inputs(self._hf, inputs), **past)
            except _Stop:
                return torch.stack([found[site].to(found[sites[0]].device) for site in sites], 1)
        path, missed = self._layout.blocks_path, ", ".join(str(site) for site in sites if site not in found)
        raise LayoutError(f"the model never ran the sites {missed} of the blocks at {path!r}: give load(..., blocks=)")

    def generate(self, inputs: Inputs, edits: SiteEdits, **options: Any) -> Tensor:
        """See `Engine.generate`."""
        with torch.no_grad(), self.hooked(edits):
            return self._hf.generate(**inputs, **options)  # type: ignore[operator]

    def logits(
        self, inputs: Inputs, edits: SiteEdits, keep: int | Tensor, forward_state: ForwardState = FULL_FORWARD,
        reduce: LogitsReducer = identity,
    ) -> Any:  # fmt: skip
        """See `Engine.logits`."""
        engine.check_forward_state(edits, forward_state)
        with torch.no_grad(), self._start_from(forward_state) as past, self.hooked(edits):
            given = forward_inputs(self._hf, inputs, keep)
            logits: Tensor = self._hf(**given, **past).logits
        return reduce(engine.choose_columns(logits, keep, "logits_to_keep" in given))

    def prefill(self, inputs: Inputs, share_beginning: bool = True, joined: bool = False) -> Prefix:
        """See `Engine.prefill`."""
        return prefill(self._hf, inputs, share_beginning, joined)

    @cached_property
    def gives_tuples(self) -> bool:
        """Whether blocks return tuples; found out once, on one token."""
        outputs: list[Any] = []
        one = torch.zeros((1, 1), dtype=torch.long, device=self._hf.get_input_embeddings().weight.device)  # type: ignore[arg-type]
        with blocks(self._hf, self._layout)[0].register_forward_hook(lambda _m, _a, out: outputs.append(out)):
            self._hf(input_ids=one, attention_mask=torch.ones_like(one), **forward_options(self._hf, use_cache=False))
        return isinstance(outputs[0], tuple)

    @contextmanager
    def hooked(
        self, edits: SiteEdits, sites: Collection[Site] = (), keep: Callable[[Site, Tensor], None] | None = None
    ) -> Iterator[None]:
        """Hooks that apply the edits, and hand the states at `sites` to `keep`, for as long as the context lasts."""
        stop, rows = 0, 0  # of the forward in progress: the column after its last, and its rows
        thread = get_ident()  # another thread may run the model as it is

        def remember(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
            nonlocal stop, rows
            if kwargs is None or get_ident() != thread:
                return
            stop, rows = last_column(kwargs, stop), len(given_tokens(kwargs))

        def visit(site: Site, given: Tensor) -> Tensor:
            if get_ident() != thread:
                return given
            h = with_rows(given, rows) if site.part == "text" else given
            if site in edits:
                h = apply_edits(edits[site], h, stop)
            if keep is not None and site in sites:
                keep(site, h)
            return h.reshape(given.shape)

        with ExitStack() as stack:
            stack.callback(self._hf.register_forward_pre_hook(remember, with_kwargs=True).remove)
            for site in set(edits) | set(sites):
                stack.callback(self.attach(site, visit).remove)
            yield

    @contextmanager
    def _start_from(self, forward_state: ForwardState) -> Iterator[dict[str, Any]]:
        with ExitStack() as stack:
            if forward_state.layer is not None and forward_state.state is not None:
                below = blocks(self._hf, self._layout)[: forward_state.layer + 1]
                stack.enter_context(skip_blocks(below, forward_state.state, self.gives_tuples))
            yield stack.enter_context(forward_state.options(self._hf))

    def attach(self, site: Site, visit: Callable[[Site, Tensor], Tensor]) -> Any:
        """A hook that puts what `visit` returns in the place of the state at a site; returns its handle."""
        module = module_at(self._hf, engine.site_path(site, self._layout))

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
            if kwargs is None:  # another thread runs the model, and torch has not attached the hook in full
                return None
            if args:
                return (visit(site, args[0]), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": visit(site, kwargs["hidden_states"])}

        def after(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            return with_main_output(output, visit(site, main_output(output)))

        if site.point in INPUTS:
            return module.register_forward_pre_hook(before, with_kwargs=True, prepend=True)
        # before all other hooks: Hugging Face collects the states that some projectors read by hooks as well
        return module.register_forward_hook(after, prepend=True)
