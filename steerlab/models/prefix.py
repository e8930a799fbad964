"""What rows of one batch have in common at their beginning: a system message, an instruction, worked examples."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer

WORTH_SHARING = 8  # columns
# how many tokens keep a device busy: with more, matrix products slow down again where caches are small
TOKENS = {"cpu": 640, "other": 16384}


def common_columns(input_ids: Tensor, attention_mask: Tensor, config: PretrainedConfig) -> int:
    """How many tokens all left-padded rows begin with; 0 where computing them once would not pay, or not be exact.

    Rows then lie with a gap between what they share and the rest of the shorter ones. A layer that slides counts
    columns, not tokens, so it would see less than it should.
    """
    rows, width = input_ids.shape
    lengths = attention_mask.sum(1)
    window = getattr(config, "sliding_window", None) or getattr(config, "attention_chunk_size", None)
    if rows < 3 or (window is not None and window < 2 * width):
        return 0
    starts = width - lengths
    most = int(lengths.min()) - 1  # every row keeps a token of its own
    columns = (starts[:, None] + torch.arange(max(most, 0), device=input_ids.device)).long()
    tokens = input_ids.gather(1, columns)
    same = (tokens == tokens[:1]).all(0).long().cumprod(0)
    shared = int(same.sum())
    return shared if shared >= WORTH_SHARING else 0


def length_buckets(attention_mask: Tensor, shared: int) -> list[tuple[int, int, int]]:
    """Consecutive rows that go through the model together: start, stop, and the longest row's tokens.

    One long row would pad all others of a large batch, and more tokens than keep the device busy only outgrow its
    caches.
    """
    lengths = attention_mask.sum(1).tolist()
    most = TOKENS["cpu" if attention_mask.device.type == "cpu" else "other"]
    found, start, longest = [], 0, 0
    for row, length in enumerate(lengths):
        grown = max(longest, length)
        if row > start and (row - start + 1) * (grown - shared) > most:
            found.append((start, row, longest))
            start, grown = row, length
        longest = grown
    return [*found, (start, len(lengths), longest)]


def prefill_cost(input_ids: Tensor, attention_mask: Tensor, config: PretrainedConfig) -> int:
    """Row-columns that are run for the prompts of a batch."""
    shared = common_columns(input_ids, attention_mask, config)
    return shared + sum((stop - start) * (n - shared) for start, stop, n in length_buckets(attention_mask, shared))


def split(inputs: dict[str, Tensor], shared: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Inputs of the common beginning, as one row, and of all rows' rest, whose mask is of both."""
    mask = inputs["attention_mask"]
    width, lengths = mask.shape[1], mask.sum(1)
    start, longest = int(width - lengths[0]), int(lengths.max())
    first = {k: t[:1, start : start + shared] for k, t in inputs.items()}
    tail = longest - shared
    rest = {k: t[:, width - tail :] for k, t in inputs.items()}
    own = torch.arange(tail, device=mask.device) >= (tail - (lengths - shared))[:, None]
    rest["attention_mask"] = torch.cat([mask.new_ones(len(mask), shared), own.to(mask.dtype)], 1)
    return first, rest


def expand_cache(cache: DynamicCache, rows: int) -> DynamicCache:
    """The same keys and values for several rows, to be added to."""
    wider = DynamicCache()
    for number, layer in enumerate(cache.layers):
        assert isinstance(layer, DynamicLayer) and layer.keys is not None and layer.values is not None
        wider.update(layer.keys.expand(rows, -1, -1, -1), layer.values.expand(rows, -1, -1, -1), number)
    return wider


def in_columns(stored: Tensor, attention_mask: Tensor, shared: int) -> Tensor:
    """Keys or values `(row, head, shared + rest, size)` where the left-padded rows have them."""
    # a model may be spread over devices, and each layer's keys are where the layer is
    width, lengths = attention_mask.shape[1], attention_mask.sum(1).to(stored.device)
    token = torch.arange(width, device=stored.device) - (width - lengths)[:, None]
    gap = stored.shape[2] - lengths[:, None]
    column = torch.where(token < shared, token, token + gap).clamp(min=0)
    return stored.gather(2, column[:, None, :, None].expand(-1, stored.shape[1], -1, stored.shape[3]))
