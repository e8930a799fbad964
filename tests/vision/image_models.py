"""What the tests of this folder share: tiny models, rows with pictures, and the same runs done by hand.

The oracles ask the family's own processor about the fully rendered text, one row at a time, and give what it says to
Hugging Face: no steerlab encoding, batching or engine is involved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from steerlab import Example, Model, capture
from steerlab.models.encoding import Batch
from steerlab.models.layout import blocks
from steerlab.testing import VLM_FAMILIES, tiny_vlm

HOOKED = ("llava", "qwen2_5_vl", "paligemma")
CHATS = tuple(f for f in VLM_FAMILIES if f != "paligemma")  # PaliGemma has no chat template and needs a picture
LAYER = 1
HIDDEN = 32
Pictures = tuple[Image.Image, ...]
Ids = tuple[int, ...]


@cache
def vlm(family: str, backend: str = "hooks") -> Model:
    """The same tiny model every time."""
    return tiny_vlm(family, backend=backend)


def noise(width: int, height: int, seed: int) -> Image.Image:
    """A picture like no other."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


WIDE, SQUARE, TALL, OTHER = noise(50, 30, 0), noise(24, 24, 1), noise(30, 70, 2), noise(50, 30, 3)
_ROWS: tuple[tuple[str, Pictures], ...] = (
    ("Which of the two is the larger one?", (WIDE, TALL)),
    ("What is this?", (SQUARE,)),
    ("Nothing to be seen here.", ()),
    ("And what might this one be, so tall?", (TALL,)),
)


def rows_of(family: str) -> list[Example]:
    """Rows with two pictures, one, and none (where the family takes that), all of different sizes."""
    return [
        example(family, text, images, str(i)) for i, (text, images) in enumerate(_ROWS) if images or family in CHATS
    ]


def example(family: str, text: str, images: Sequence[Image.Image], id: str = "row") -> Example:
    """A row; where there is no chat template the prompt itself says where the pictures go."""
    marks = "" if family in CHATS else "<image>" * len(images)
    return Example(id, marks + text, images=tuple(images))


def processed(model: Model, row: Example) -> dict[str, Tensor]:
    """The processor's own answer to the rendered text and the pictures."""
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
    """The tensors among these that the model's forward takes."""
    return {name: tensor for name, tensor in given.items() if name in model.accepted_inputs}


def longer(model: Model, given: dict[str, Tensor], ids: Sequence[int]) -> dict[str, Tensor]:
    """The same inputs with some answer tokens at the end."""
    new = torch.tensor([list(ids)], dtype=torch.long)
    ends = {"input_ids": new, "attention_mask": torch.ones_like(new), "mm_token_type_ids": torch.zeros_like(new)}
    # a 1 in token_type_ids is an answer to PaliGemma and a picture to Gemma 3
    ends["token_type_ids"] = torch.full_like(new, model.hf.config.model_type == "paligemma")
    return given | {
        name: torch.cat([given[name], end.to(given[name])], 1) for name, end in ends.items() if name in given
    }


@contextmanager
def hooked(modules: Sequence[nn.Module], change: Callable[[int, Tensor], Tensor]) -> Iterator[None]:
    """Replace the output of each module by `change(number, output)`."""

    def attach(number: int, module: nn.Module) -> Any:
        def after(_: nn.Module, args: Any, out: Any) -> Any:
            return (change(number, out[0]), *out[1:]) if isinstance(out, tuple) else change(number, out)

        return module.register_forward_hook(after, prepend=True)  # before Hugging Face's own, which collect states

    handles = [attach(number, module) for number, module in enumerate(modules)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def hidden(model: Model, given: dict[str, Tensor]) -> Tensor:
    """`(tokens, layer, hidden)` of one row after each block, from a plain forward with hooks of our own."""
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


def states(model: Model, row: Example, **options: Any) -> Tensor:
    """`(tokens, layer, hidden)` of one row as steerlab reads them."""
    return capture(model, [row], positions="all", reduce="none", progress=False, **options).values


def encoded(model: Model, rows: Sequence[Example], side: Any = "left", answers: Sequence[str] | None = None) -> Batch:
    """The rows as one batch, with their answers."""
    tails: Sequence[str | None] = answers or [None] * len(rows)
    return model.batch(
        [model.encode(e.prompt, answer=a, example_id=e.id, images=e.images) for e, a in zip(rows, tails, strict=True)],
        side,
    )
