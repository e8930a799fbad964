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
from steerlab.models.attention import PrefixKV, supports_prefix_attention, use_prefix_attention
from steerlab.models.prefix import common_columns, expand_cache, in_columns, length_buckets, split

ATTENTION = ("full_attention", "sliding_attention", "chunked_attention")


class SharedPrefixLayer(DynamicLayer):
    """One layer's keys and values of some rows' prompts, seen by more rows; keeps nothing of theirs.

    `apart`: they are handed to `attention.prefix_attention` beside the rows' own, otherwise joined to them.
    """

    def __init__(self, past: PrefixKV, apart: bool) -> None:
        super().__init__()
        self.past, self.apart = past, apart
        self.keys, self.values = past.keys, past.values
        self.dtype, self.device, self.is_initialized = past.keys.dtype, past.keys.device, True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self.apart:
            key_states.past = self.past  # type: ignore[attr-defined]
            return key_states, value_states
        return self.past.join(self.past.keys, key_states), self.past.join(self.past.values, value_states)


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
        return Prefix(tuple((k[rows.to(k.device)], v[rows.to(v.device)]) for k, v in self.layers))

    def as_readonly_cache(self, copies: int, apart: bool = False) -> Cache:
        """A cache for one forward of `copies` times the rows, ordered copy by copy."""
        return Cache(layers=[SharedPrefixLayer(PrefixKV(keys, values, copies), apart) for keys, values in self.layers])

    def as_generation_cache(self, copies: int) -> DynamicCache:
        """A cache of its own for `generate`, which appends to it; never to be used with skipped blocks."""
        cache = DynamicCache()
        for number, (keys, values) in enumerate(self.layers):
            cache.update(keys.repeat(copies, 1, 1, 1), values.repeat(copies, 1, 1, 1), number)
        return cache


@dataclass(frozen=True)
class ForwardState:
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

    @contextmanager
    def options(self, hf: PreTrainedModel) -> Iterator[dict[str, Any]]:
        """Keyword arguments of the forward, which has to run within the context."""
        if self.prefix is None:
            yield {}
        elif not supports_prefix_attention(hf):
            yield {"past_key_values": self.prefix.as_readonly_cache(self.copies)}
        else:
            with use_prefix_attention(hf):
                yield {"past_key_values": self.prefix.as_readonly_cache(self.copies, apart=True)}


def split_at(inputs: dict[str, Tensor], cut: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The columns before `cut`, for `prefill`, and those after it, whose mask is of all."""
    before = {k: t[:, :cut] for k, t in inputs.items()}
    return before, {k: t if k == "attention_mask" else t[:, cut:] for k, t in inputs.items()}


def can_prefill(hf: PreTrainedModel) -> bool:
    """Whether every layer's past is keys and values of attention: not so in recurrent and convolutional layers."""
    kinds = getattr(hf.config.get_text_config(), "layer_types", None)
    return kinds is None or set(kinds) <= set(ATTENTION)


@torch.no_grad()
def prefill(hf: PreTrainedModel, inputs: dict[str, Tensor]) -> Prefix:
    """Run some rows' first columns, unsteered, and keep their keys and values.

    What all rows begin with is run once, the rest a few rows at a time. The cache is one that drops nothing, also where
    attention slides: which keys a token sees is up to the mask.
    """
    mask = inputs["attention_mask"]
    rows, width = mask.shape
    shared = common_columns(inputs["input_ids"], mask, hf.config.get_text_config())
    begun = DynamicCache()
    if shared:
        begun = _run(hf, split(inputs, shared)[0], begun)
    whole: list[tuple[Tensor, Tensor]] = []
    for start, stop, longest in length_buckets(mask, shared):
        given = {k: t[start:stop, width - longest :] for k, t in inputs.items()}
        if shared:
            layers = _kept(_run(hf, split(given, shared)[1], expand_cache(begun, stop - start)))
            columns = given["attention_mask"]
            layers = tuple((in_columns(k, columns, shared), in_columns(v, columns, shared)) for k, v in layers)
        else:
            layers = _kept(_run(hf, given, DynamicCache()))
        whole = whole or [(_room(k, rows, width), _room(v, rows, width)) for k, v in layers]
        for kept, found in zip(whole, layers, strict=True):
            for all_rows, own in zip(kept, found, strict=True):
                all_rows[start:stop, :, width - longest :] = own
    return Prefix(tuple(whole))


def _room(like: Tensor, rows: int, width: int) -> Tensor:
    return like.new_zeros(rows, like.shape[1], width, like.shape[3])


def _run(hf: PreTrainedModel, inputs: dict[str, Tensor], cache: DynamicCache) -> DynamicCache:
    hf(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache


def _kept(cache: DynamicCache) -> tuple[tuple[Tensor, Tensor], ...]:
    layers = [layer for layer in cache.layers if isinstance(layer, DynamicLayer)]
    return tuple((x.keys, x.values) for x in layers if x.keys is not None and x.values is not None)


@contextmanager
def skip_blocks(blocks: Sequence[nn.Module], state: Tensor, tuples: bool) -> Iterator[None]:
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
