"""Shared by the tests of this folder: tiny models, rows with images, and captures and batches of them."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from steerlab import Example, capture
from steerlab.models.encoding import Batch
from steerlab.models.model import Model
from steerlab.testing import VLM_FAMILIES, tiny_vlm

HOOKED = ("llava", "qwen2_5_vl", "paligemma")
TOWERS = tuple(f for f in VLM_FAMILIES if f != "gemma4")  # Gemma 4 pads its images: its tower is not read


def _engines(families: Sequence[str]) -> Any:
    """Both engines, but plain hooks on three families only: the reference is the same."""
    pairs = [(family, "nnsight") for family in families] + [(family, "hooks") for family in HOOKED]
    return pytest.mark.parametrize(("family", "backend"), pairs)


families, towers = (pytest.mark.parametrize("family", names) for names in (VLM_FAMILIES, TOWERS))
engines, tower_engines = _engines(VLM_FAMILIES), _engines(TOWERS)
CHATS = tuple(f for f in VLM_FAMILIES if f != "paligemma")  # PaliGemma has no chat template and needs an image


@cache
def vlm(family: str, backend: str = "hooks") -> Model:
    """The same tiny model every time: for tests that do not change it."""
    return tiny_vlm(family, backend=backend)


def noise(width: int, height: int, seed: int) -> Image.Image:
    """A random image."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


WIDE, SQUARE, TALL, OTHER = noise(50, 30, 0), noise(24, 24, 1), noise(30, 70, 2), noise(50, 30, 3)
_ROWS: tuple[tuple[str, tuple[Image.Image, ...]], ...] = (
    ("Which of the two is the larger one?", (WIDE, TALL)), ("What is this?", (SQUARE,)),
    ("Nothing to be seen here.", ()), ("And what might this one be, so tall?", (TALL,)),
)  # fmt: skip


def rows_of(family: str) -> list[Example]:
    """Rows with two images, one, and none (where the family allows that), all of different sizes."""
    rows = [row for row in enumerate(_ROWS) if row[1][1] or family in CHATS]
    return [example(family, text, images, str(i)) for i, (text, images) in rows]


def rows_with_images(family: str) -> list[Example]:
    """Rows of two images, one, and one: each of another number of tiles or patches."""
    return [row for row in rows_of(family) if row.images]


def example(family: str, text: str, images: Sequence[Image.Image], id: str = "row") -> Example:
    """A row; without a chat template the prompt itself places the images."""
    marks = "" if family in CHATS else "<image>" * len(images)
    return Example(marks + text, id=id, images=tuple(images))


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
