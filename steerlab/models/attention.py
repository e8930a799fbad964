"""Attention over a prompt that many rows share: its keys are multiplied with all of their queries at once.

Hugging Face joins the keys of a cache to those of each row, and repeats them for every query head. For rows of two
tokens after a prompt of a hundred, that copies far more numbers than it multiplies. Here nothing is copied: the queries
of all rows on one prompt form one matrix, and one softmax covers both parts of the scores.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from steerlab.errors import SteeringError

NAME = "steerlab_prefix"


@dataclass
class PrefixKV:
    """Prefix keys and values of one layer, `(row, head, column, size)`. Each prefix row serves `copies` query rows.

    Attributes:
        attended: whether `prefix_attention` has used it.
    """

    keys: Tensor
    values: Tensor
    copies: int
    attended: bool = False

    def join(self, prefix: Tensor, new: Tensor) -> Tensor:
        """Keys or values of the prefix, repeated, followed by those of the rows."""
        # one allocation, one write of each: repeating first and joining afterwards would copy the prefix twice
        rows, heads, width, size = prefix.shape
        joined = new.new_empty(self.copies * rows, heads, width + new.shape[2], size)
        joined.view(self.copies, rows, *joined.shape[1:])[..., :width, :] = prefix
        joined[:, :, width:] = new
        return joined


def supports_prefix_attention(hf: PreTrainedModel) -> bool:
    """Whether the model's attention can be replaced: implementations other than "sdpa" may differ."""
    return hf.config.get_text_config()._attn_implementation == "sdpa" and hf._supports_attention_backend


@contextmanager
def use_prefix_attention(hf: PreTrainedModel) -> Iterator[None]:
    """Replace the model's attention by `prefix_attention`, for as long as the context lasts."""
    config: Any = hf.config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def prefix_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Scaled dot-product attention, over `key.prefix` as well where the cache has set it.

    Raises:
        SteeringError: the prefix was lost between the cache and the attention.
    """
    prefix: PrefixKV | None = getattr(key, "prefix", None)
    if prefix is None:
        if attention_mask is not None and attention_mask.shape[-1] != key.shape[2]:
            fix = "load the model with attn_implementation='eager'"
            raise SteeringError(f"{type(module).__name__} changes keys after they left the cache: {fix}")
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    prefix.attended = True
    if options.get("position_bias") is not None:
        whole = prefix.join(prefix.keys, key), prefix.join(prefix.values, value)
        return sdpa_attention_forward(module, query, *whole, attention_mask, **options)
    scale = options.get("scaling") or query.shape[-1] ** -0.5
    return _attention(query * scale, key, value, attention_mask, prefix), None


def _attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, prefix: PrefixKV) -> Tensor:
    """`c` copies of `r` prefix rows make `b` rows; `h` key heads serve `g` query heads each; `t` tokens; `w` keys."""
    heads, tokens, width = key.shape[1], query.shape[2], prefix.keys.shape[2]
    by_prefix = rearrange(query, "(c r) (h g) t d -> r h (c g t) d", c=prefix.copies, h=heads, t=tokens)
    by_row = rearrange(query, "b (h g) t d -> b h (g t) d", h=heads)
    old = rearrange(by_prefix @ prefix.keys.mT, "r h (c g t) w -> (c r) h g t w", c=prefix.copies, t=tokens)
    new = rearrange(by_row @ key.mT, "b h (g t) w -> b h g t w", t=tokens)
    scores = torch.cat([old, new], -1)
    if mask is None:
        mask = torch.ones(tokens, width + tokens, dtype=torch.bool, device=query.device).tril(width)[None, None]
    mask = mask[:, :, None]
    lowest = torch.finfo(scores.dtype).min
    scores = scores.masked_fill(~mask, lowest) if mask.dtype == torch.bool else scores + mask
    weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
    from_prefix = rearrange(weights[..., :width], "(c r) h g t w -> r h (c g t) w", c=prefix.copies) @ prefix.values
    from_row = rearrange(weights[..., width:], "b h g t w -> b h (g t) w") @ value
    out = rearrange(from_prefix, "r h (c g t) d -> (c r) h (g t) d", c=prefix.copies, t=tokens) + from_row
    return rearrange(out, "b h (g t) d -> b t (h g) d", t=tokens)


AttentionInterface.register(NAME, prefix_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
