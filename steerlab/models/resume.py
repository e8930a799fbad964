"""Where a forward takes up work that was done before: after a prompt's columns, at the output of a block, or both.

A sweep asks for the same rows hundreds of times, and most of each forward is the same: everything below the steered
block, and every column before the first steered one. Two things are kept and handed to later forwards:

- a `Prefix`: keys and values of the columns before the first steered one, read-only. A forward that joins it to its own
  tokens keeps nothing, so no decoding step can ever follow on a cache that skipped blocks left half empty.
- a state: the output of one block, from which the forward begins anew; the blocks up to it are not run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from steerlab._support.errors import SteeringError
from steerlab.models.prefix import common_columns, in_columns, split, spread

ATTENTION = ("full_attention", "sliding_attention", "chunked_attention")


class _Joined(DynamicLayer):
    """One layer's keys and values of some rows' prompts, seen by `copies` times as many rows; keeps nothing."""

    def __init__(self, keys: Tensor, values: Tensor, copies: int) -> None:
        super().__init__()
        self.keys, self.values, self.copies = keys, values, copies
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        assert self.keys is not None and self.values is not None
        return self._join(self.keys, key_states), self._join(self.values, value_states)

    def _join(self, old: Tensor, new: Tensor) -> Tensor:
        # one allocation, one write of each: repeating first and joining afterwards would copy the prompt twice
        rows, heads, width, size = old.shape[0], old.shape[1], old.shape[2], old.shape[3]
        joined = new.new_empty(self.copies * rows, heads, width + new.shape[2], size)
        joined.view(self.copies, rows, *joined.shape[1:])[..., :width, :] = old
        joined[:, :, width:] = new
        return joined


@dataclass(frozen=True)
class Prefix:
    """Keys and values of the first columns of some rows, at every layer.

    Attributes:
        layers: per layer, keys and values `(row, head, column, size)`.
    """

    layers: tuple[tuple[Tensor, Tensor], ...]

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return sum(k.nbytes + v.nbytes for k, v in self.layers)

    def rows(self, start: int, stop: int) -> Prefix:
        """The same for some of the rows; nothing is copied."""
        return Prefix(tuple((k[start:stop], v[start:stop]) for k, v in self.layers))

    def take(self, rows: Tensor) -> Prefix:
        """Rows by number, each as often as it is named."""
        return Prefix(tuple((k[rows], v[rows]) for k, v in self.layers))

    def joined(self, copies: int) -> Cache:
        """A cache for one forward of `copies` times the rows, ordered copy by copy."""
        return Cache(layers=[_Joined(keys, values, copies) for keys, values in self.layers])

    def growing(self, copies: int) -> DynamicCache:
        """A cache of its own for `generate`, which appends to it; never to be used with skipped blocks."""
        cache = DynamicCache()
        for number, (keys, values) in enumerate(self.layers):
            cache.update(keys.repeat(copies, 1, 1, 1), values.repeat(copies, 1, 1, 1), number)
        return cache


@dataclass(frozen=True)
class Resume:
    """What a forward need not do again.

    Attributes:
        prefix: keys and values of the columns before those given; None where all columns are given.
        copies: how many times the prefix's rows occur in the forward, copy by copy.
        layer: the block whose output is known, unedited; None: the forward begins at the embeddings.
        state: that output, `(row, column, hidden)`.
    """

    prefix: Prefix | None = None
    copies: int = 1
    layer: int | None = None
    state: Float[Tensor, "row column hidden"] | None = None

    def options(self) -> dict[str, Any]:
        """Keyword arguments of the forward."""
        return {} if self.prefix is None else {"past_key_values": self.prefix.joined(self.copies)}


def can_prefill(hf: PreTrainedModel) -> bool:
    """Whether every layer's past is keys and values of attention: not so in recurrent and convolutional layers."""
    kinds = getattr(hf.config.get_text_config(), "layer_types", None)
    return kinds is None or set(kinds) <= set(ATTENTION)


@torch.no_grad()
def prefill(hf: PreTrainedModel, inputs: dict[str, Tensor]) -> Prefix:
    """Run some rows' first columns, unsteered, and keep their keys and values.

    What all rows begin with is run once. The cache is one that drops nothing, also where attention slides: which keys
    a token sees is up to the mask.
    """
    mask = inputs["attention_mask"]
    shared = common_columns(inputs["input_ids"], mask, hf.config.get_text_config())
    if not shared:
        return Prefix(_kept(_run(hf, inputs, DynamicCache())))
    first, rest = split(inputs, shared)
    begun = spread(_run(hf, first, DynamicCache()), len(mask))
    layers = _kept(_run(hf, rest, begun))
    return Prefix(tuple((in_columns(k, mask, shared), in_columns(v, mask, shared)) for k, v in layers))


def _run(hf: PreTrainedModel, inputs: dict[str, Tensor], cache: DynamicCache) -> DynamicCache:
    hf(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache


def _kept(cache: DynamicCache) -> tuple[tuple[Tensor, Tensor], ...]:
    layers = [layer for layer in cache.layers if isinstance(layer, DynamicLayer)]
    return tuple((x.keys, x.values) for x in layers if x.keys is not None and x.values is not None)


@contextmanager
def skipping(blocks: Sequence[nn.Module], state: Tensor, tuples: bool) -> Iterator[None]:
    """The blocks do nothing but hand on `state`, for as long as the context lasts."""
    handed = (state, None) if tuples else state
    for block in blocks:
        if "forward" in vars(block):
            raise SteeringError(f"{type(block).__name__} is patched already: its forward can't be left out")
    try:
        for block in blocks:
            block.forward = lambda *_, **__: handed
        yield
    finally:
        for block in blocks:
            vars(block).pop("forward", None)
