"""Attention over a prompt that many rows share: its keys are multiplied with all of their queries at once.

Hugging Face joins a cache's keys to a row's own, and repeats them for every query head. For rows of two tokens after a
prompt of a hundred, that copies far more numbers than it multiplies. Here nothing is copied: the queries of all rows on
one prompt are one matrix, and the two parts of the scores meet in one softmax.
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

from steerlab._support.errors import SteeringError

NAME = "steerlab_prefix"


@dataclass(frozen=True)
class PrefixKV:
    """One layer's keys and values of some rows' prompts, `(row, head, column, size)`; `copies` times as many ask."""

    keys: Tensor
    values: Tensor
    copies: int

    def join(self, old: Tensor, new: Tensor) -> Tensor:
        """The prompt's and a row's own, in one tensor."""
        # one allocation, one write of each: repeating first and joining afterwards would copy the prompt twice
        rows, heads, width, size = old.shape
        joined = new.new_empty(self.copies * rows, heads, width + new.shape[2], size)
        joined.view(self.copies, rows, *joined.shape[1:])[..., :width, :] = old
        joined[:, :, width:] = new
        return joined


def supports_prefix_attention(hf: PreTrainedModel) -> bool:
    """Whether the model's attention may be exchanged: others than "sdpa" may do things of their own."""
    return hf.config.get_text_config()._attn_implementation == "sdpa" and hf._supports_attention_backend


@contextmanager
def use_prefix_attention(hf: PreTrainedModel) -> Iterator[None]:
    """Attention to a shared prompt in place of the model's own, for as long as the context lasts."""
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
    """Scaled dot-product attention; keys that come with a `PrefixKV` see it before themselves.

    Raises:
        SteeringError: the past was lost between the cache and the attention.
    """
    past: PrefixKV | None = getattr(key, "past", None)
    if past is None:
        if attention_mask is not None and attention_mask.shape[-1] != key.shape[2]:
            raise SteeringError(
                f"{type(module).__name__} changes keys after they left the cache, so the prompt's would be missing: "
                "load the model with attn_implementation='eager'"
            )
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    if options.get("position_bias") is not None:
        whole = past.join(past.keys, key), past.join(past.values, value)
        return sdpa_attention_forward(module, query, *whole, attention_mask, **options)
    scale = options.get("scaling") or query.shape[-1] ** -0.5
    return _attended(query * scale, key, value, attention_mask, past), None


def _attended(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, past: PrefixKV) -> Tensor:
    heads, tokens, width = key.shape[1], query.shape[2], past.keys.shape[2]
    shape: dict[str, int] = {"c": past.copies, "h": heads, "t": tokens}
    together = rearrange(query, "(c r) (h g) t d -> r h (c g t) d", **shape)
    apart = rearrange(query, "b (h g) t d -> b h (g t) d", h=heads)
    old = rearrange(together @ past.keys.mT, "r h (c g t) w -> (c r) h g t w", c=past.copies, t=tokens)
    new = rearrange(apart @ key.mT, "b h (g t) w -> b h g t w", t=tokens)
    scores = torch.cat([old, new], -1)
    if mask is None:
        mask = torch.ones(tokens, width + tokens, dtype=torch.bool, device=query.device).tril(width)[None, None]
    mask = mask[:, :, None]
    hidden = torch.finfo(scores.dtype).min
    scores = scores.masked_fill(~mask, hidden) if mask.dtype == torch.bool else scores + mask
    shares = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
    first = rearrange(shares[..., :width], "(c r) h g t w -> r h (c g t) w", c=past.copies) @ past.values
    own = rearrange(shares[..., width:], "b h g t w -> b h (g t) w") @ value
    out = rearrange(first, "r h (c g t) d -> (c r) h (g t) d", c=past.copies, t=tokens) + own
    return rearrange(out, "b h (g t) d -> b t (h g) d", t=tokens)


AttentionInterface.register(NAME, prefix_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
