"""What an engine must do. There are plain hooks (`_hooks.py`), and in `_nnsight/` nnsight here and on servers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from steerlab._support.errors import LayoutError, SteeringError
from steerlab.models.interventions import SiteEdits
from steerlab.models.kv_prefix import ForwardState, Prefix
from steerlab.models.layout import Layout
from steerlab.models.sites import Site

Inputs = dict[str, Tensor]
StateSelector = Callable[[Tensor], Tensor]
LogitsReducer = Callable[[Tensor], Any]
FULL_FORWARD = ForwardState()


@runtime_checkable
class PerRowReducer(Protocol):
    """What is told of the logits, where it can be asked of each row by itself: where rows are apart, no more than the
    answer has to leave the place where the logits are.
    """

    def for_row(self, number: int) -> LogitsReducer:
        """The same of one row of the batch, `(1, keep, vocabulary)`; the rows' answers follow each other."""
        ...


def identity(logits: Tensor) -> Tensor:
    """All of the logits."""
    return logits


@runtime_checkable
class Engine(Protocol):
    """Runs a model under a plan. Every method leaves the model as it was, also after an exception.

    Attributes:
        supports_forward_state: whether forwards can take up work that was done before; elsewhere they are always whole.
    """

    supports_forward_state: bool

    def capture_states(
        self,
        inputs: Inputs,
        plan: SiteEdits,
        sites: Sequence[Site],
        select: StateSelector,
        forward_state: ForwardState = FULL_FORWARD,
    ) -> Tensor:
        """`select(state)` at each site after the plan's edits, stacked to `(row, site, hidden)` on the device.

        Stops after the deepest site. `inputs` holds `input_ids`, `attention_mask` and, where the model takes
        them, `position_ids`; with a prefix, of the columns after it, but the mask of all.
        """
        ...

    def generate(self, inputs: Inputs, plan: SiteEdits, **options: Any) -> Tensor:
        """Hugging Face's `generate` under the plan; `(rows, tokens)` ids, prompt included."""
        ...

    def logits(
        self,
        inputs: Inputs,
        plan: SiteEdits,
        keep: int | Tensor,
        forward_state: ForwardState = FULL_FORWARD,
        reduce: LogitsReducer = identity,
    ) -> Any:
        """`reduce` of the logits under the plan, `(batch, keep, vocabulary)`: of the last `keep` columns, or of those
        numbered. It is asked where the logits are: a server sends back its answer, and not a vocabulary per token.

        Edits of the block at which the forward resumes are added to the state it resumes from; the plan must hold
        none below it. Column numbers count those given.
        """
        ...

    def prefill(self, inputs: Inputs) -> Prefix:
        """Keys and values of the columns given, unsteered."""
        ...


def point_path(site: Site, layout: Layout) -> str:
    """The dotted path, inside a block, of the module that holds a site; "" is the block itself.

    Raises:
        LayoutError: this model's blocks have no module of that kind.
    """
    if site.point in ("block_in", "block_out"):  # the only points outside the text
        return ""
    name = layout.attention_name if site.point == "attn_out" else layout.mlp_name
    if name is None:
        raise LayoutError(f"the blocks at {layout.blocks_path!r} have no module for {site.point!r}")
    return name


def block_path(site: Site, layout: Layout) -> str:
    """The dotted path of the block, or of the projector, that holds a site.

    Raises:
        LayoutError: this model has no such part.
    """
    path = {"text": layout.blocks_path, "vision": layout.vision_path, "projector": layout.projector_path}[site.part]
    if path is None:
        raise LayoutError(f"this model has no {site.part} part that steerlab finds: sites there can't be read")
    return path if site.part == "projector" else f"{path}.{site.layer}"


def check_forward_state(plan: SiteEdits, forward_state: ForwardState) -> None:
    """Refuse to leave out a block that the plan writes to.

    Raises:
        SteeringError: names the site.
    """
    if forward_state.layer is None:
        return
    for site in plan:
        inside = site.layer <= forward_state.layer if site.point != "block_out" else site.layer < forward_state.layer
        if site.part != "text" or inside:
            raise SteeringError(
                f"a forward that resumes at the output of block {forward_state.layer} never passes {site}"
            )
