"""Questions about scenes whose answers are usual things or true things, and what a model answers to them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scenes.questions import COUNTS, Question, absent_partners, color, existence, neighbor, number, usual_answer
from scenes.shapes import COLORS
from scenes.world import Scene, World

import steerlab
from steerlab import Contrast, Example, Request
from steerlab.models.model import Model

VALUES: dict[str, tuple[str, ...]] = {
    "existence": ("yes", "no"), "color": tuple(COLORS), "number": COUNTS[1:4], "neighbor": World().kinds,
}  # fmt: skip
TYPES = tuple(VALUES)
CAPTION = "caption"
PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class ImageQuestions:
    """The scenes of one part of the data, their questions, and the usual answer to each question."""

    scenes: dict[str, Scene]
    rows: list[Example]
    usual: dict[str, str]

    def of_type(self, *types: str) -> list[Example]:
        """The questions of some types."""
        return [row for row in self.rows if row.split in types]


def image_questions(part: str, n: int, seed: int) -> ImageQuestions:
    """Questions about `n` new scenes, and about as many more that are asked for a number.

    Their `split` is the type of question, their `behavior` the true answer; each has a contrast of the true answer and
    another of its type. Every scene has a question about a present kind and one about an absent kind, in half of the
    scenes the partner of a present one; and a question about a color, one about a neighbor, where it has them, and one
    for a caption, which has no contrast. One, two and three are equally frequent.
    """
    rng = np.random.default_rng([30_000 + seed, PARTS.index(part)])
    scenes = {f"{part}-{i:04d}": World().scene(rng) for i in range(n)}
    pairs: list[tuple[str, Question]] = []
    for i, (name, scene) in enumerate(scenes.items()):
        partners = absent_partners(scene) if i % 2 else []
        absent = partners or [kind for kind in scene.world.kinds if kind not in scene.kinds]
        found = [existence(scene, some[rng.integers(len(some))]) for some in (scene.kinds, absent)]
        pairs += [(name, question) for question in (*found, color(scene, rng), neighbor(scene, rng)) if question]
    for missing, scene, question in _number_questions(n, rng):
        name = f"{part}-number-{missing:04d}"
        scenes[name] = scene
        pairs.append((name, question))
    images = {name: scene.image() for name, scene in scenes.items()}
    rows, usual = [], {}
    for number_of_row, (name, question) in enumerate(pairs):
        true = question.answer.lower()
        others = [value for value in VALUES[question.type] if value != true]
        contrast = Contrast(question.answer, others[rng.integers(len(others))].capitalize())
        row = Example(
            question.text, id=f"{name}/{question.type}-{number_of_row}", images=(images[name],), behavior=true,
            split=question.type, contrast=contrast, meta={"image": name},
        )  # fmt: skip
        rows.append(row)
        usual[row.id] = usual_answer(scenes[name], question).lower()
    captions = [
        Example("Describe the image.", id=f"{name}/{CAPTION}", images=(images[name],), behavior=CAPTION, split=CAPTION,
                meta={"image": name})
        for name in list(scenes)[:n]
    ]  # fmt: skip
    return ImageQuestions(scenes, [*rows, *captions], usual)


def _number_questions(n: int, rng: np.random.Generator) -> Iterator[tuple[int, Scene, Question]]:
    """About `n` new scenes with a question about a number each, the same number of each answer.

    Each comes after how many are still missing.
    """
    missing = Counter({value: n // len(VALUES["number"]) for value in VALUES["number"]})
    while missing.total():
        scene = World().scene(rng)
        question = number(scene, rng)
        if missing[question.answer.lower()]:
            missing[question.answer.lower()] -= 1
            yield missing.total(), scene, question


def answers(model: Model, rows: Sequence[Example], request: Request | None, batch_size: int) -> pd.DataFrame:
    """The answer to each question by its most likely first token, "" where that begins no answer of its type."""
    values = list(dict.fromkeys(value for row in rows for value in VALUES[row.split]))
    ids = [model.tokenizer(value.capitalize(), add_special_tokens=False)["input_ids"] for value in values]
    assert all(len(one) == 1 for one in ids), "every answer must be one token"
    logits = steerlab.next_token_logits(
        model, rows, [one[0] for one in ids], max_other=True, steer=() if request is None else request,
        batch_size=batch_size, progress=False,
    )  # fmt: skip
    chosen = [*values, ""]
    said = [chosen[place] for place in logits.argmax(1).tolist()]
    return as_answers(rows, [word if word in VALUES[row.split] else "" for word, row in zip(said, rows, strict=True)])


def as_answers(rows: Sequence[Example], said: Sequence[str]) -> pd.DataFrame:
    """Answers as a frame, with whether each is the true one."""
    right = [float(word == row.behavior) for word, row in zip(said, rows, strict=True)]
    return pd.DataFrame({"example_id": [row.id for row in rows], "said": said, "right": right})


def shares_by_image(answered: pd.DataFrame, part: ImageQuestions) -> pd.DataFrame:
    """The share of true answers by type of question and image (rows) and method, averaged over seeds."""
    rows = {row.id: row for row in part.rows}
    keys = {
        "type": [rows[i].split for i in answered["example_id"]],
        "image": [rows[i].meta["image"] for i in answered["example_id"]],
    }
    return answered.assign(**keys).groupby(["type", "image", "method"])["right"].mean().unstack("method")
