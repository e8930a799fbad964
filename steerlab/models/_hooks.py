"""The plain back end: torch forward hooks around the same plan. Oracle of the tests, fallback without nnsight."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from steerlab._support.errors import LayoutError
from steerlab.models.engine import (
    FULL_FORWARD,
    Inputs,
    LogitsReducer,
    StateSelector,
    block_path,
    check_forward_state,
    identity,
    point_path,
)
from steerlab.models.interventions import SiteEdits, apply_edits, last_column
from steerlab.models.kv_prefix import ForwardState, Prefix, prefill, skip_blocks
from steerlab.models.layout import Layout, blocks, module_at
from steerlab.models.sites import Site


class _Stop(Exception):
    """Everything asked for has been read; the rest of the forward is not needed."""


class HooksEngine:
    """Carries out plans with `register_forward_hook`."""

    supports_forward_state = True

    def __init__(self, hf: PreTrainedModel, layout: Layout) -> None:
        self._hf = hf
        self._layout = layout
        self._tuples: bool | None = None

    def capture_states(
        self,
        inputs: Inputs,
        plan: SiteEdits,
        sites: Sequence[Site],
        select: StateSelector,
        forward_state: ForwardState = FULL_FORWARD,
    ) -> Tensor:
        """`select` of the state at each site, `(row, site, hidden)`, stopping after the deepest."""
        found: dict[Site, Tensor] = {}

        def keep(site: Site, h: Tensor) -> None:
            found[site] = select(h)
            if len(found) == len(sites):
                raise _Stop

        with torch.no_grad(), self._resumed(forward_state) as past, self._hooked(plan, set(sites), keep):
            try:
                self._hf(**inputs, **past, use_cache=False, logits_to_keep=1)
            except _Stop:
                return torch.stack([found[site].to(found[sites[0]].device) for site in sites], 1)
        missed = ", ".join(str(site) for site in sites if site not in found)
        raise LayoutError(
            f"the model never ran the blocks at {self._layout.blocks_path!r} that hold the sites {missed}: "
            "give load(..., blocks='dotted.path')"
        )

    def generate(self, inputs: Inputs, plan: SiteEdits, **options: Any) -> Tensor:
        """Hugging Face's `generate` under the plan: prompt and new ids."""
        with torch.no_grad(), self.hooked(plan):
            return self._hf.generate(**inputs, **options)  # type: ignore[operator]

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
        with torch.no_grad(), self._resumed(forward_state) as past, self.hooked(plan):
            logits: Tensor = self._hf(**inputs, **past, use_cache=False, logits_to_keep=keep).logits
        return reduce(logits[:, -keep:] if isinstance(keep, int) else logits)

    def prefill(self, inputs: Inputs) -> Prefix:
        """See `Engine.prefill`."""
        return prefill(self._hf, inputs)

    @contextmanager
    def _resumed(self, forward_state: ForwardState) -> Iterator[dict[str, Any]]:
        with ExitStack() as stack:
            if forward_state.layer is not None and forward_state.state is not None:
                below = blocks(self._hf, self._layout)[: forward_state.layer + 1]
                stack.enter_context(skip_blocks(below, forward_state.state, self.gives_tuples()))
            yield stack.enter_context(forward_state.options(self._hf))

    def gives_tuples(self) -> bool:
        """Whether the blocks answer with tuples: found out on one token, once."""
        if self._tuples is None:
            seen: list[bool] = []
            block = blocks(self._hf, self._layout)[0]
            handle = block.register_forward_hook(lambda _m, _a, out: seen.append(isinstance(out, tuple)))
            try:
                one = torch.zeros((1, 1), dtype=torch.long, device=self._hf.get_input_embeddings().weight.device)  # type: ignore[arg-type]
                self._hf(input_ids=one, attention_mask=torch.ones_like(one), use_cache=False)
            finally:
                handle.remove()
            self._tuples = seen[0]
        return self._tuples

    def hooked(self, plan: SiteEdits) -> AbstractContextManager[None]:
        """The plan's edits in place, for as long as the context lasts."""
        return self._hooked(plan, set(), _nothing)

    @contextmanager
    def _hooked(self, plan: SiteEdits, sites: set[Site], keep: Callable[[Site, Tensor], None]) -> Iterator[None]:
        stop = [0]  # columns so far, from the attention mask of the forward in progress

        def remember(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            stop[0] = last_column(kwargs)

        def visit(site: Site, h: Tensor) -> Tensor:
            if site in plan:
                h = apply_edits(plan[site], h, stop[0])
            if site in sites:
                keep(site, h)
            return h

        with ExitStack() as stack:
            stack.callback(self._hf.register_forward_pre_hook(remember, with_kwargs=True).remove)
            for site in set(plan) | sites:
                stack.callback(self._attach(site, visit).remove)
            yield

    def _attach(self, site: Site, visit: Callable[[Site, Tensor], Tensor]) -> Any:
        module = module_at(module_at(self._hf, block_path(site, self._layout)), point_path(site, self._layout))
        if site.point == "block_in":

            def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
                if args:
                    return (visit(site, args[0]), *args[1:]), kwargs
                return args, {**kwargs, "hidden_states": visit(site, kwargs["hidden_states"])}

            return module.register_forward_pre_hook(before, with_kwargs=True, prepend=True)

        def after(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            if isinstance(output, tuple):
                return (visit(site, output[0]), *output[1:])
            return visit(site, output)

        # first of all hooks: Hugging Face collects the states that some projectors read by hooks of its own
        return module.register_forward_hook(after, prepend=True)


def _nothing(site: Site, h: Tensor) -> None:
    """No site is read in this run."""
