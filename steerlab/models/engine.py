"""The interface of an engine. `_hooks.py` has plain hooks, `_nnsight/` has nnsight in this process and on servers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from steerlab.errors import LayoutError, SteeringError
from steerlab.models.interventions import SiteEdits
from steerlab.models.kv_prefix import ForwardState, Prefix
from steerlab.models.layout import Layout
from steerlab.models.sites import Site
from steerlab.models.versions import forward_options

# one for all `Model`s around a module, whose hooks they share
LOCKS: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()

Inputs = dict[str, Tensor]
StateSelector = Callable[[Tensor], Tensor]
LogitsReducer = Callable[[Tensor], Any]
FULL_FORWARD = ForwardState()


@runtime_checkable
class PerRowReducer(Protocol):
    """A logits reducer that can be applied to one row at a time, so a remote engine returns only the reduced values."""

    def for_row(self, number: int) -> LogitsReducer:
        """The reducer of one row, for logits `(1, keep, vocabulary)`; results of the rows are concatenated."""


def identity(values: Tensor) -> Tensor:
    """The values themselves: the default reducer of logits, and the selector of whole states."""
    return values


@runtime_checkable
class Engine(Protocol):
    """Runs a model under edits. Every method leaves the model as it was, also after an exception.

    Attributes:
        supports_forward_state: whether forwards can start from a `ForwardState`; remote engines always run whole rows.
    """

    supports_forward_state: bool

    def capture_states(
        self, inputs: Inputs, edits: SiteEdits, sites: Sequence[Site], select: StateSelector,
        forward_state: ForwardState = FULL_FORWARD,
    ) -> Tensor:  # fmt: skip
        """Run a forward up to the deepest site and return `select(state)` at each site, `(row, site, hidden)`.

        States include the edits of their site. `inputs` holds `input_ids`, `attention_mask` and, where the model takes
        them, `position_ids`; with a prefix, of the columns after it, but the mask of all columns.
        """

    def generate(self, inputs: Inputs, edits: SiteEdits, **options: Any) -> Tensor:
        """Run Hugging Face's `generate` under the edits and return ids `(row, token)`, prompt included."""

    def logits(
        self,
        inputs: Inputs,
        edits: SiteEdits,
        keep: int | Tensor,
        forward_state: ForwardState = FULL_FORWARD,
        reduce: LogitsReducer = identity,
    ) -> Any:
        """Run a forward under the edits and return `reduce(logits)`, logits being `(row, keep, vocabulary)`.

        `keep` selects columns among those given: an int keeps the last n, a tensor lists indices. The reduction runs
        where the model runs. Where the forward starts at the output of a block, edits of that block are added to it,
        and edits below it are refused.
        """

    def prefill(self, inputs: Inputs, share_beginning: bool = True, joined: bool = False) -> Prefix:
        """Run a forward without edits and return keys and values of the columns given; see `kv_prefix.prefill`."""


def forward_inputs(hf: nn.Module, inputs: Inputs, keep: int | Tensor = 1) -> dict[str, Any]:
    """The inputs of a forward without a cache of its own, whose logits of the columns `keep` are wanted.

    These columns are requested only where they are fewer than all: `choose_columns` can then tell whether the model
    gave them or everything.
    """
    requested: dict[str, Any] = {"use_cache": False}
    if isinstance(keep, int) or len(keep) < inputs["input_ids"].shape[1]:
        requested["logits_to_keep"] = keep
    return {**inputs, **forward_options(hf, **requested)}


def choose_columns(logits: Tensor, keep: int | Tensor, requested: bool) -> Tensor:
    """The logits of the columns `keep`, also of a model that was `requested` to give them alone and gave all."""
    if isinstance(keep, int):
        return logits[:, -keep:]
    return logits if requested and logits.shape[1] == len(keep) else logits[:, keep.to(logits.device)]


def point_path(site: Site, layout: Layout) -> str:
    """The dotted path, inside a block, of the module that holds a site; "" is the block itself.

    Raises:
        LayoutError: the blocks of this model have no module of that kind.
    """
    if site.point in ("block_in", "block_out"):  # the only points outside the text
        return ""
    name = {"heads": layout.heads_name, "attn_out": layout.attention_name, "mlp_out": layout.mlp_name}[site.point]
    if name is None:
        raise LayoutError(
            f"the blocks at {layout.blocks_path!r} have no module for {site.point!r} that gives one state per token: "
            f"read and written are {', '.join(layout.points)}"
        )
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


def site_path(site: Site, layout: Layout) -> str:
    """The dotted path, from the root of the model, of the module that holds a site.

    Raises:
        LayoutError: this model has no such part, or its blocks no module of that kind.
    """
    block, inner = block_path(site, layout), point_path(site, layout)
    return f"{block}.{inner}" if inner else block


def check_forward_state(edits: SiteEdits, forward_state: ForwardState) -> None:
    """Refuse a forward that starts above a site with edits.

    Raises:
        SteeringError: names the site.
    """
    layer = forward_state.layer
    if layer is None:
        return
    for site in edits:
        if site.block_before is None or site.block_before < layer:
            raise SteeringError(f"a forward that starts at the output of block {layer} never passes {site}")
