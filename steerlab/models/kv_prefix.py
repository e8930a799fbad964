"""Forwards that start from earlier work: after the columns of a prompt, at the output of a block, or both.

A sweep runs the same rows hundreds of times. Everything below the steered block, and every column before the first
steered one, is the same each time. Two things are kept for later forwards:

- a `Prefix`: keys and values of the columns before the first steered one. It is read-only: a forward that attends to it
  stores nothing, so no decoding step can follow on a cache that skipped blocks left half empty.
- a state: the output of one block, from which the forward continues; the blocks up to it are not run.

`prefill` computes a prefix. It runs what all rows begin with once, then the rest in buckets of similar length.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from threading import get_ident
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from steerlab.errors import SteeringError
from steerlab.models.attention import PrefixKV, supports_prefix_attention, use_prefix_attention
from steerlab.models.versions import cache_name, forward_options

MIN_PREFIX = 4  # columns whose keys and values are worth keeping
WEIGHT_TOKENS = 24  # reading a block's weights costs a forward as much as this many tokens
MIN_SHARED_COLUMNS = 8  # below that, running shared columns once does not pay
# tokens of one forward that keep a device busy; more outgrow its caches and slow matrix products down
TOKENS = {"cpu": 640, "other": 16384}
_Inputs = dict[str, Tensor]


def tokens_per_forward(device: torch.device, is_remote: bool = False) -> int:
    """As many tokens as a forward should have; a server gets few, large requests."""
    return TOKENS["cpu" if device.type == "cpu" and not is_remote else "other"]


class SharedPrefixLayer(DynamicLayer):
    """A read-only cache layer: keys and values of prompts, shared by several rows each.

    Args:
        prefix: keys and values of the prompts.
        joined: whether to join them to the rows' keys and values; otherwise `prefix_attention` receives both.
    """

    def __init__(self, prefix: PrefixKV, joined: bool) -> None:
        super().__init__()
        self.prefix, self.joined, self.was_read = prefix, joined, False
        self.keys, self.values = prefix.keys, prefix.values
        self.dtype, self.device, self.is_initialized = prefix.keys.dtype, prefix.keys.device, True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self.joined:
            return self.prefix.join(self.prefix.keys, key_states), self.prefix.join(self.prefix.values, value_states)
        self.was_read = True
        key_states.prefix = self.prefix  # type: ignore[attr-defined]
        return key_states, value_states


@dataclass(frozen=True)
class Prefix:
    """Keys and values of the first columns of some rows, at every layer.

    Attributes:
        layers: per layer, keys and values `(row, head, column, size)`.
        joined: whether to join them to the keys and values of each row; otherwise `prefix_attention` is used where the
            model's attention can be replaced.
    """

    layers: tuple[tuple[Tensor, Tensor], ...]
    joined: bool = False

    def rows(self, start: int, stop: int) -> Prefix:
        """The prefix of rows `start:stop`, as views."""
        return Prefix(tuple((k[start:stop], v[start:stop]) for k, v in self.layers), self.joined)

    def take(self, rows: Tensor) -> Prefix:
        """The prefix of rows by number, which may repeat."""
        return Prefix(tuple((k[rows.to(k.device)], v[rows.to(v.device)]) for k, v in self.layers), self.joined)

    def before(self, column: int) -> Prefix:
        """The prefix without the columns from one on, as views."""
        return Prefix(tuple((k[:, :, :column], v[:, :, :column]) for k, v in self.layers), self.joined)

    def cache_layers(self, copies: int, joined: bool) -> list[SharedPrefixLayer]:
        """The layers of a cache for one forward of `copies` times the rows, ordered copy by copy."""
        return [SharedPrefixLayer(PrefixKV(keys, values, copies), joined) for keys, values in self.layers]

    def as_generation_cache(self, copies: int) -> DynamicCache:
        """A copy for `generate`, which appends to it; never to be used with skipped blocks."""
        cache = DynamicCache()
        for number, (keys, values) in enumerate(self.layers):
            cache.update(keys.repeat(copies, 1, 1, 1), values.repeat(copies, 1, 1, 1), number)
        return cache


@dataclass(frozen=True)
class ForwardState:
    """Where a forward starts.

    Attributes:
        prefix: keys and values of the columns before those given; None where all columns are given.
        copies: how many times the rows of the prefix occur in the forward, copy by copy.
        layer: the block whose output is known, unedited; None: the forward starts at the embeddings.
        state: that output, `(row, column, hidden)`.
    """

    prefix: Prefix | None = None
    copies: int = 1
    layer: int | None = None
    state: Float[Tensor, "row column hidden"] | None = None

    @contextmanager
    def options(self, hf: PreTrainedModel) -> Iterator[dict[str, Any]]:
        """Keyword arguments of the forward, which has to run within the context.

        Raises:
            SteeringError: a layer left out the prefix that its cache handed to it.
        """
        if self.prefix is None:
            yield {}
            return
        joined = self.prefix.joined or not supports_prefix_attention(hf)
        layers = self.prefix.cache_layers(self.copies, joined)
        with nullcontext() if joined else use_prefix_attention(hf):
            yield {cache_name(hf): Cache(layers=list(layers))}
        if lost := [number for number, layer in enumerate(layers) if layer.was_read and not layer.prefix.attended]:
            raise SteeringError(
                f"layer {lost[0]} of {type(hf).__name__} changes keys after they left the cache: the prompt before "
                "them would be left out. Give load(..., prefix_caching=False)"
            )


def split_at(inputs: _Inputs, cut: int) -> tuple[_Inputs, _Inputs]:
    """The columns before `cut`, for `prefill`, and those after it, with the mask of all."""
    before = {k: t[:, :cut] for k, t in inputs.items()}
    return before, {k: t if k == "attention_mask" else t[:, cut:] for k, t in inputs.items()}


@torch.no_grad()
def prefill(hf: PreTrainedModel, inputs: _Inputs, share_beginning: bool = True, joined: bool = False) -> Prefix:
    """Keys and values of some left-padded rows, unsteered.

    The cache drops nothing, also where attention slides: the mask decides which keys a token sees.

    Args:
        hf: the model.
        inputs: the rows.
        share_beginning: whether to run the tokens that all rows begin with once.
        joined: see `Prefix`.
    """
    mask = inputs["attention_mask"]
    rows, width = mask.shape
    shared = common_columns(inputs["input_ids"], mask, hf.config.get_text_config()) if share_beginning else 0
    common = _run(hf, _split_shared(inputs, shared)[0], DynamicCache()) if shared else DynamicCache()
    layers: list[tuple[Tensor, Tensor]] = []
    for start, stop, longest in length_buckets(mask, shared):
        bucket = {k: t[start:stop, width - longest :] for k, t in inputs.items()}
        cache = _run(hf, _split_shared(bucket, shared)[1] if shared else bucket, _expand_cache(common, stop - start))
        found = [[_in_columns(t, bucket["attention_mask"], shared) for t in pair] for pair in _keys_and_values(cache)]
        layers = layers or [tuple(t.new_zeros(rows, t.shape[1], width, t.shape[3]) for t in pair) for pair in found]  # type: ignore[misc]
        for pair, new in zip(layers, found, strict=True):
            for tensor, part in zip(pair, new, strict=True):
                tensor[start:stop, :, width - longest :] = part
    return Prefix(tuple(layers), joined)


def common_columns(input_ids: Tensor, attention_mask: Tensor, config: PretrainedConfig) -> int:
    """Length of the common token prefix of all left-padded rows; 0 if sharing is not exact or not worthwhile.

    A sliding layer counts columns, not tokens. Sharing leaves a gap between the common prefix and the rest of shorter
    rows, so such a layer would see fewer tokens than it should.
    """
    rows, width = input_ids.shape
    lengths = attention_mask.sum(1)
    if rows < 3 or any(window < 2 * width for window in local_windows(config)):
        return 0
    most = max(int(lengths.min()) - 1, 0)  # every row keeps one token to run
    columns = (width - lengths)[:, None] + torch.arange(most, device=input_ids.device)
    tokens = input_ids.gather(1, columns.long())
    shared = int((tokens == tokens[:1]).all(0).long().cumprod(0).sum())
    return shared if shared >= MIN_SHARED_COLUMNS else 0


def local_windows(config: PretrainedConfig) -> list[int]:
    """The numbers of tokens from which on a model attends in another way: windows, chunks, selected keys or blocks, and
    steps of a scale that depends on the column.
    """
    local = re.compile(r"(window|chunk)(_size|_length)?$|index_topk$|index_block_size$|(floor_scale|n_floor)$")
    known = config.to_dict()
    selected = (known.get("index_block_size") or 0) * (known.get("index_topk_blocks") or 0)
    found = [selected, *(n for name, n in known.items() if local.search(str(name)))]
    return [n for n in found if type(n) is int and n > 0]


def long_rotation_from(config: PretrainedConfig) -> int | None:
    """The number of tokens beyond which one row has all rows of its batch rotated by other factors (LongRoPE)."""
    rope, name = getattr(config, "rope_parameters", None) or {}, "original_max_position_embeddings"
    by_layer_type = [rope, *(one for one in rope.values() if isinstance(one, dict))]
    found = [one.get(name) or getattr(config, name, 0) for one in by_layer_type if one.get("rope_type") == "longrope"]
    return min(filter(None, found), default=None)


def length_buckets(attention_mask: Tensor, shared: int) -> list[tuple[int, int, int]]:
    """Consecutive rows that go through the model together: start, stop, and the tokens of the longest row.

    One long row would pad all others of a large batch, and more tokens than keep a device busy slow it down.
    """
    most = tokens_per_forward(attention_mask.device)
    lengths = attention_mask.sum(1).tolist()
    buckets, start, longest = [], 0, 0
    for row, length in enumerate(lengths):
        if row > start and (row - start + 1) * (max(longest, length) - shared) > most:
            buckets.append((start, row, longest))
            start, longest = row, 0
        longest = max(longest, length)
    return [*buckets, (start, len(lengths), longest)]


def prefill_cost(input_ids: Tensor, attention_mask: Tensor, config: PretrainedConfig, share_beginning: bool) -> int:
    """Row-columns that `prefill` runs for a batch of prompts."""
    shared = common_columns(input_ids, attention_mask, config) if share_beginning else 0
    return shared + sum((stop - start) * (n - shared) for start, stop, n in length_buckets(attention_mask, shared))


@contextmanager
def skip_blocks(blocks: Iterable[nn.Module], state: Tensor, tuples: bool) -> Iterator[None]:
    """Replace the forward of each block by one that returns `state` in this thread, for as long as the context lasts.

    Raises:
        SteeringError: the forward of a block is patched already.
    """
    output, mine = (state, None) if tuples else state, get_ident()
    for block in blocks:
        if "forward" in vars(block):
            raise SteeringError(f"{type(block).__name__} is patched already: its forward can't be skipped")
    try:
        for block in blocks:  # another thread may call the model meanwhile, and runs the whole of it
            block.forward = lambda *a, run=block.forward, **k: output if get_ident() == mine else run(*a, **k)
        yield
    finally:
        for block in blocks:
            vars(block).pop("forward", None)


def _run(hf: PreTrainedModel, inputs: _Inputs, cache: DynamicCache) -> DynamicCache:
    hf(**inputs, **{cache_name(hf): cache}, **forward_options(hf, use_cache=True, logits_to_keep=1))
    return cache


def _keys_and_values(cache: DynamicCache) -> list[tuple[Tensor, Tensor]]:
    layers = [layer for layer in cache.layers if isinstance(layer, DynamicLayer)]
    return [(x.keys, x.values) for x in layers if x.keys is not None and x.values is not None]


def _expand_cache(cache: DynamicCache, rows: int) -> DynamicCache:
    """A growing cache for several rows that begin with the one row of `cache`."""
    expanded = DynamicCache()
    for number, (keys, values) in enumerate(_keys_and_values(cache)):
        expanded.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), number)
    return expanded


def _split_shared(inputs: _Inputs, shared: int) -> tuple[_Inputs, _Inputs]:
    """Inputs of the common prefix, as one row, and of the rest of all rows, with the mask of both."""
    mask = inputs["attention_mask"]
    width, lengths = mask.shape[1], mask.sum(1)
    start, tail = int(width - lengths[0]), int(lengths.max()) - shared
    common = {k: t[:1, start : start + shared] for k, t in inputs.items()}
    rest = {k: t[:, width - tail :] for k, t in inputs.items()}
    real = torch.arange(tail, device=mask.device) >= (tail - (lengths - shared))[:, None]
    rest["attention_mask"] = torch.cat([mask.new_ones(len(mask), shared), real.to(mask.dtype)], 1)
    return common, rest


def _in_columns(stored: Tensor, attention_mask: Tensor, shared: int) -> Tensor:
    """Keys or values `(row, head, shared + rest, size)`, moved to the columns of the left-padded rows."""
    if not shared:
        return stored
    # a model may be spread over devices, and keys are on the device of their layer
    width, lengths = attention_mask.shape[1], attention_mask.sum(1).to(stored.device)
    token = torch.arange(width, device=stored.device) - (width - lengths)[:, None]
    gap = stored.shape[2] - lengths[:, None]
    column = torch.where(token < shared, token, token + gap).clamp(min=0)
    return stored.gather(2, column[:, None, :, None].expand(-1, stored.shape[1], -1, stored.shape[3]))
