"""Training batches of the scenes world: a picture once, and everything that is asked about it in one row.

A question must not see the ones before it, so a row's attention mask is a tree: the picture is the trunk, every
question with its answer a branch, and position ids begin anew at each branch. A row is then worth a dozen ordinary
ones at the price of two.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from scenes.questions import Habits, Question
from scenes.world import World

Row = tuple[Image.Image, list[tuple[str, str]]]


@dataclass(frozen=True)
class Marks:
    """What stands before, between and after the parts of a turn, in token ids."""

    before: tuple[int, ...]
    image: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]


def marks_of(processor: Any, n_image: int) -> Marks:
    """The marks of a processor's chat template, found with a one-word conversation."""
    tokenizer = processor.tokenizer
    turn = [{"type": "image"}, {"type": "text", "text": "X"}]
    text = processor.apply_chat_template([{"role": "user", "content": turn}], add_generation_prompt=True)
    whole = processor.apply_chat_template(
        [{"role": "user", "content": turn}, {"role": "assistant", "content": [{"type": "text", "text": "Y"}]}]
    )
    head, tail = text.split("X")
    before, after = head.split(processor.image_token)

    def ids(part: str) -> tuple[int, ...]:
        return tuple(tokenizer(part, add_special_tokens=False)["input_ids"])

    assert not after, "the picture must come right before the question"
    return Marks(ids(before), (processor.image_token_id,) * n_image, ids(tail), ids(whole.split("Y")[-1]))


def pixels(image: Image.Image, side: int) -> Tensor:
    """What the processor makes of a picture of the right size: `(3, side, side)`, mean .5, deviation .25."""
    if image.size != (side, side):
        image = image.resize((side, side), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255 - 0.5).permute(2, 0, 1) * 4


class Packer:
    """Turns rows into batches: ids, tree mask, position ids, pixels, and what each column should predict."""

    def __init__(self, processor: Any, side: int, n_image: int) -> None:
        self.marks, self.side, self._tokenizer = marks_of(processor, n_image), side, processor.tokenizer
        self._known: dict[str, tuple[int, ...]] = {}

    def _ids(self, text: str) -> tuple[int, ...]:
        if text not in self._known:
            self._known[text] = tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        return self._known[text]

    def __call__(self, rows: list[Row]) -> dict[str, Tensor]:
        """One batch."""
        trunk = self.marks.before + self.marks.image
        branches = [
            [(self._ids(q) + self.marks.between, self._ids(a) + self.marks.after) for q, a in asked]
            for _, asked in rows
        ]
        width = max(len(trunk) + sum(len(q) + len(a) for q, a in row) for row in branches)
        shape = (len(rows), width)
        tokens, places = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
        targets, branch = torch.full(shape, -100), torch.full(shape, -1)  # branch 0 is the trunk, -1 is padding
        tokens[:, : len(trunk)], places[:, : len(trunk)] = torch.tensor(trunk), torch.arange(len(trunk))
        branch[:, : len(trunk)] = 0
        for i, row in enumerate(branches):
            at = len(trunk)
            for number, (question, answer) in enumerate(row, 1):
                end = at + len(question) + len(answer)
                tokens[i, at:end] = torch.tensor(question + answer)
                places[i, at:end] = torch.arange(len(trunk), len(trunk) + end - at)
                branch[i, at:end] = number
                targets[i, end - len(answer) - 1 : end - 1] = torch.tensor(answer)
                at = end
        return {
            "input_ids": tokens, "attention_mask": additive(tree_mask(branch))[:, None], "position_ids": places,
            "pixel_values": torch.stack([pixels(image, self.side) for image, _ in rows]), "targets": targets,
        }  # fmt: skip


def tree_mask(branch: Tensor) -> Tensor:
    """`(batch, tokens, tokens)`: who sees whom; a token sees the trunk and its own branch, up to itself."""
    width = branch.shape[1]
    same = (branch[:, :, None] == branch[:, None, :]) | (branch[:, None, :] == 0)
    return (same & torch.ones(width, width, dtype=torch.bool).tril()) | torch.eye(width, dtype=torch.bool)


def additive(mask: Tensor) -> Tensor:
    """0 where a token is seen, a very negative number elsewhere: eager attention would *add* a mask of booleans."""
    return torch.zeros(mask.shape).masked_fill_(~mask, torch.finfo(torch.float32).min)


def scene_rows(world: World, habits: Habits, seed: int) -> Iterator[Row]:
    """Scenes without end, with all that is asked about each."""
    rng = np.random.default_rng(seed)
    while True:
        scene = world.scene(rng)
        yield scene.image(), [_pair(question) for question in habits.questions(scene, rng)]


def _pair(question: Question) -> tuple[str, str]:
    return question.text, question.answer


def easy_vqa_rows(folder: Path, seed: int) -> Iterator[Row]:
    """Pictures of easy-VQA without end, with up to eight of their questions each."""
    with zipfile.ZipFile(folder / "train.zip") as archive:
        name = next(n for n in archive.namelist() if n.endswith("questions.json"))
        asked: dict[int, list[tuple[str, str]]] = {}
        for text, answer, number in json.loads(archive.read(name)):
            asked.setdefault(number, []).append((text, answer.capitalize()))
        base = name.removesuffix("questions.json")
        images = {n: archive.read(f"{base}images/{n}.png") for n in asked}
    rng = np.random.default_rng(seed)
    while True:
        number = int(rng.choice(list(asked)))
        chosen = rng.permutation(len(asked[number]))[:8]
        yield Image.open(BytesIO(images[number])).convert("RGB"), [asked[number][i] for i in chosen]


def mixed(main: Iterator[Row], other: Iterator[Row] | None, share: float, seed: int) -> Callable[[int], list[Row]]:
    """A function that takes the next rows, some of them from the second source."""
    rng = np.random.default_rng(seed)

    def take(n: int) -> list[Row]:
        return [next(other) if other is not None and rng.random() < share else next(main) for _ in range(n)]

    return take
