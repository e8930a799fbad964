"""Training batches of the scenes world: one row holds an image and all its questions with their answers.

A question must not attend to the questions before it. The attention mask of a row is therefore a tree: the image is
the trunk, each question with its answer is a branch, and the position ids of every branch begin after the trunk. A row
holds about a dozen questions and costs about twice as much as a row with one question.
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
class TemplateTokens:
    """Token ids that the chat template puts before the image, between question and answer, and after the answer."""

    before: tuple[int, ...]
    image: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]


def template_tokens(processor: Any, n_image: int) -> TemplateTokens:
    """The template tokens of a processor, found by formatting a conversation of one word each."""
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

    assert not after, "the chat template must put the image directly before the question"
    return TemplateTokens(ids(before), (processor.image_token_id,) * n_image, ids(tail), ids(whole.split("Y")[-1]))


def pixels(image: Image.Image, side: int) -> Tensor:
    """The pixel values of an image, as the processor computes them: `(3, side, side)`, mean .5, deviation .25."""
    if image.size != (side, side):
        image = image.resize((side, side), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255 - 0.5).permute(2, 0, 1) * 4


class Packer:
    """Turns rows into batches: token ids, tree mask, position ids, pixel values, and the target of each column."""

    def __init__(self, processor: Any, side: int, n_image: int) -> None:
        self.template, self.side, self._tokenizer = template_tokens(processor, n_image), side, processor.tokenizer
        self._known: dict[str, tuple[int, ...]] = {}

    def _ids(self, text: str) -> tuple[int, ...]:
        if text not in self._known:
            self._known[text] = tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        return self._known[text]

    def __call__(self, rows: list[Row]) -> dict[str, Tensor]:
        """The batch of some rows, padded on the right."""
        trunk = self.template.before + self.template.image
        branches = [
            [(self._ids(q) + self.template.between, self._ids(a) + self.template.after) for q, a in questions]
            for _, questions in rows
        ]
        width = max(len(trunk) + sum(len(q) + len(a) for q, a in row) for row in branches)
        shape = (len(rows), width)
        tokens, position_ids = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
        targets, branch = torch.full(shape, -100), torch.full(shape, -1)  # branch 0 is the trunk, -1 is padding
        tokens[:, : len(trunk)], position_ids[:, : len(trunk)] = torch.tensor(trunk), torch.arange(len(trunk))
        branch[:, : len(trunk)] = 0
        for i, row in enumerate(branches):
            at = len(trunk)
            for number, (question, answer) in enumerate(row, 1):
                end = at + len(question) + len(answer)
                tokens[i, at:end] = torch.tensor(question + answer)
                position_ids[i, at:end] = torch.arange(len(trunk), len(trunk) + end - at)
                branch[i, at:end] = number
                targets[i, end - len(answer) - 1 : end - 1] = torch.tensor(answer)
                at = end
        return {
            "input_ids": tokens, "position_ids": position_ids,
            "attention_mask": additive_mask(tree_mask(branch))[:, None],
            "pixel_values": torch.stack([pixels(image, self.side) for image, _ in rows]), "targets": targets,
        }  # fmt: skip


def tree_mask(branch: Tensor) -> Tensor:
    """`(batch, tokens, tokens)`: a token attends to the trunk and to its branch, up to itself."""
    width = branch.shape[1]
    same = (branch[:, :, None] == branch[:, None, :]) | (branch[:, None, :] == 0)
    return (same & torch.ones(width, width, dtype=torch.bool).tril()) | torch.eye(width, dtype=torch.bool)


def additive_mask(mask: Tensor) -> Tensor:
    """0 where the mask is true, else the lowest float32: eager attention adds the mask, so booleans would not hide."""
    return torch.zeros(mask.shape).masked_fill_(~mask, torch.finfo(torch.float32).min)


def scene_rows(world: World, habits: Habits, seed: int) -> Iterator[Row]:
    """An endless stream of scenes, each with its training questions."""
    rng = np.random.default_rng(seed)
    while True:
        scene = world.scene(rng)
        yield scene.image(), [_pair(question) for question in habits.questions(scene, rng)]


def _pair(question: Question) -> tuple[str, str]:
    return question.text, question.answer


def easy_vqa_rows(folder: Path, seed: int) -> Iterator[Row]:
    """An endless stream of easy-VQA images, each with up to eight of its questions."""
    with zipfile.ZipFile(folder / "train.zip") as archive:
        name = next(n for n in archive.namelist() if n.endswith("questions.json"))
        questions: dict[int, list[tuple[str, str]]] = {}
        for text, answer, number in json.loads(archive.read(name)):
            questions.setdefault(number, []).append((text, answer.capitalize()))
        base = name.removesuffix("questions.json")
        images = {n: archive.read(f"{base}images/{n}.png") for n in questions}
    rng = np.random.default_rng(seed)
    while True:
        number = int(rng.choice(list(questions)))
        chosen = rng.permutation(len(questions[number]))[:8]
        yield Image.open(BytesIO(images[number])).convert("RGB"), [questions[number][i] for i in chosen]


def mix_rows(main: Iterator[Row], other: Iterator[Row] | None, share: float, seed: int) -> Callable[[int], list[Row]]:
    """A function that returns the next `n` rows; each comes from `other` with probability `share`, else from `main`."""
    rng = np.random.default_rng(seed)

    def take(n: int) -> list[Row]:
        return [next(other) if other is not None and rng.random() < share else next(main) for _ in range(n)]

    return take
