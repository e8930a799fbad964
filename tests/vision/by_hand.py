"""The same runs by hand: plain Hugging Face forwards on what the processor makes of a row.

The references ask the family's processor about the fully rendered text, one row at a time: no steerlab encoding,
batching or engine is involved (but in `block_states`, which they are compared with).
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import plain
import torch
from torch import Tensor, nn

from steerlab import Example
from steerlab.models.interventions import SiteEdits
from steerlab.models.layout import blocks
from steerlab.models.model import Model
from steerlab.models.sites import Site

LAYER = 1
Ids = tuple[int, ...]


def processed(model: Model, row: Example) -> dict[str, Tensor]:
    """What the processor makes of the rendered text and the images."""
    text: Any = row.prompt
    if model.chat:
        parts = [{"type": "image"} for _ in row.images] + [{"type": "text", "text": row.prompt}]
        turn = [{"role": "user", "content": parts}]
        text = model.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    assert model.vision is not None
    images = [list(row.images)] if row.images else None
    found = model.vision.processor(
        text=[text], images=images, return_tensors="pt", add_special_tokens=False, return_mm_token_type_ids=True
    )
    return {name: tensor for name, tensor in found.items() if name != "labels"}


def taken(model: Model, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those of the tensors that the model's forward takes."""
    return {name: tensor for name, tensor in given.items() if name in model.accepted_inputs}


def longer(model: Model, given: dict[str, Tensor], ids: Sequence[int]) -> dict[str, Tensor]:
    """The same inputs with some answer tokens at the end."""
    new = torch.tensor([list(ids)], dtype=torch.long)
    ends = {"input_ids": new, "attention_mask": torch.ones_like(new), "mm_token_type_ids": torch.zeros_like(new)}
    # a 1 in token_type_ids is an answer in PaliGemma and an image in Gemma 3
    ends["token_type_ids"] = torch.full_like(new, model.hf.config.model_type == "paligemma")
    return given | {k: torch.cat([given[k], end.to(given[k])], 1) for k, end in ends.items() if k in given}


def hooked(modules: Sequence[nn.Module], change: Callable[[int, Tensor], Tensor]) -> AbstractContextManager:
    """Replace the output of each module by `change(number, output)`."""
    # before the hooks of Hugging Face, which collect states
    return plain.under(plain.changing(m, partial(change, number), prepend=True) for number, m in enumerate(modules))


@torch.no_grad()
def hidden(model: Model, given: dict[str, Tensor]) -> Tensor:
    """`(tokens, layer, hidden)` of one row after each block, from a plain forward with plain hooks."""
    found: list[Tensor] = []
    with hooked(blocks(model.hf, model.layout), lambda _, h: found.append(h) or h):
        model.hf(**taken(model, given), use_cache=False)
    return torch.stack([h[0] for h in found], 1)


@torch.no_grad()
def greedy(model: Model, row: Example, delta: Tensor, columns: Callable[[int, int], list[int]], steps: int) -> Ids:
    """New ids under steering at `LAYER`, the whole row recomputed at every step without a cache.

    `columns(prompt tokens, tokens so far)` says where `delta` is added.
    """
    given, new = processed(model, row), ()
    block, n = blocks(model.hf, model.layout)[LAYER], given["input_ids"].shape[1]
    for _ in range(steps):
        whole = longer(model, given, new)
        shift = torch.zeros(n + len(new), 1)
        shift[columns(n, n + len(new))] = 1
        with hooked([block], lambda _, h, shift=shift: h + shift * delta):
            logits = model.hf(**taken(model, whole), use_cache=False).logits
        logits[0, -1, model.hf.config.image_token_id] = -torch.inf  # suppressed in the generation config too
        new = (*new, int(logits[0, -1].argmax()))
        if new[-1] == model.tokenizer.eos_token_id:
            break
    return new


def block_states(model: Model, inputs: dict[str, Tensor], edits: SiteEdits) -> Tensor:
    """`(batch, layer, tokens, hidden)` after each block, from steerlab's engine."""
    return model.engine.capture_states(inputs, edits, [Site(k) for k in range(model.n_layers)], lambda h: h.clone())
