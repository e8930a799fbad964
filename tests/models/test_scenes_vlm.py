"""The image-text model that ships with the package: it loads, it sees, and it says what is usual all the same."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from scenes.questions import Habits, Question, color, existence, scene_vocabulary, usual_answer
from scenes.world import Scene, World

import steerlab
from steerlab import Example
from steerlab.errors import LoadError
from steerlab.metrics import chair
from steerlab.models import smollm2
from steerlab.models.model import Model


@cache
def model() -> Model:
    return steerlab.load("scenes-vlm", device="cpu")


@cache
def new_scenes() -> list[Scene]:
    rng = np.random.default_rng(99)
    return [World().scene(rng) for _ in range(80)]


def answers(questions: Sequence[tuple[Scene, Question]]) -> list[str]:
    """The first token of each answer: every value is one."""
    rows = [Example(q.text, id=str(i), images=(scene.image(),)) for i, (scene, q) in enumerate(questions)]
    return list(steerlab.generate(model(), rows, max_new_tokens=1, batch_size=64))


def test_scenes_vlm_loads_with_its_card_or_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert model().id == "scenes-vlm" and model().vision is not None
    folder, script = smollm2.SHIPPED["scenes-vlm"]
    recipe = json.loads((folder / "recipe.json").read_text())
    assert str(recipe["seed"]) in str(model().revision) and recipe["kinds"] == list(World().kinds)
    assert sum(file.stat().st_size for file in folder.iterdir()) < 25 * 2**20
    card = (folder / "README.md").read_text()
    assert all(word in card for word in ("Data", "Recipe", "Seed", "Curve", "Limits"))
    monkeypatch.setitem(smollm2.SHIPPED, "scenes-vlm", (tmp_path, script))
    with pytest.raises(LoadError, match=r"model\.safetensors and recipe\.json are missing.*train_scenes_vlm"):
        steerlab.load("scenes-vlm")


@pytest.mark.parametrize("kind", ["existence", "color"])
def test_scenes_vlm_says_what_is_usual_where_its_habit_is_strong_and_what_it_sees_where_it_is_weak(kind: str) -> None:
    rng = np.random.default_rng(3)
    pairs: list[tuple[Scene, Question]] = []
    for scene in new_scenes():
        questions = [color(scene, rng)] if kind == "color" else [existence(scene, k) for k in World().kinds]
        pairs += [(scene, q) for q in questions if q is not None and usual_answer(scene, q) != q.answer]
    strengths = np.array([Habits().strength(World().kinds, kind, q.kind) for _, q in pairs])
    said = answers(pairs)
    usual = np.array([answer == usual_answer(*one) for answer, one in zip(said, pairs, strict=True)])
    true = np.array([answer == q.answer for answer, (_, q) in zip(said, pairs, strict=True)])
    assert usual[strengths > 0.7].mean() > 0.8, "learned from the language side"
    assert true[strengths < 0.3].mean() > 0.8, "not because it can't see"


def test_captions_name_most_things_and_hallucinate_some() -> None:
    rows = [Example("Describe the image.", id=str(i), images=(s.image(),)) for i, s in enumerate(new_scenes())]
    texts = steerlab.generate(model(), rows, max_new_tokens=40, batch_size=40)
    objects = {row.id: scene.kinds for row, scene in zip(rows, new_scenes(), strict=True)}
    scores = chair(dict(zip(objects, texts, strict=True)), objects, scene_vocabulary(World().kinds))
    assert scores.recall > 0.7 and 0 < scores.chair_i < 0.2
