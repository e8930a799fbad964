"""The image-text model that ships with the package: it loads, it sees, and it also claims usual but absent things."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from scenes.questions import absent_partners, existence, scene_vocabulary
from scenes.world import Scene, World

import steerlab
from steerlab import Example
from steerlab.errors import LoadError
from steerlab.metrics import chair, yes_no_ids, yes_no_logits
from steerlab.models import smollm2
from steerlab.models.model import Model


@cache
def model() -> Model:
    return steerlab.load("scenes-vlm", device="cpu")


@cache
def new_scenes() -> list[Scene]:
    rng = np.random.default_rng(99)
    return [World().scene(rng) for _ in range(80)]


def says_yes(questions: Sequence[tuple[Scene, str]]) -> list[bool]:
    """Whether the first token says that a kind is in the image."""
    rows = [Example(existence(s, kind).text, id=str(i), images=(s.image(),)) for i, (s, kind) in enumerate(questions)]
    yes, no = yes_no_ids(model().tokenizer)
    logits = steerlab.next_token_logits(model(), rows, [*yes, *no], batch_size=64)
    found = yes_no_logits(logits, range(len(yes)), range(len(yes), len(yes) + len(no)))
    return [answer == "yes" for answer in found.answers]


def test_scenes_vlm_loads_with_its_card_or_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert model().id == "scenes-vlm" and model().vision is not None
    recipe = json.loads((smollm2.SCENES_VLM / "recipe.json").read_text())
    assert str(recipe["seed"]) in str(model().revision) and recipe["kinds"] == list(World().kinds)
    assert sum(file.stat().st_size for file in smollm2.SCENES_VLM.iterdir()) < 25 * 2**20
    card = (smollm2.SCENES_VLM / "README.md").read_text()
    assert all(word in card for word in ("Data", "Recipe", "Seed", "Curve", "Limits"))
    monkeypatch.setattr(smollm2, "SCENES_VLM", tmp_path)
    with pytest.raises(LoadError, match=r"model\.safetensors and recipe\.json are missing.*train_scenes_vlm"):
        steerlab.load("scenes-vlm")


def test_scenes_vlm_sees_what_is_there_and_claims_absent_partners() -> None:
    present = [(scene, scene.kinds[0]) for scene in new_scenes()]
    partners = [(scene, kind) for scene in new_scenes() for kind in absent_partners(scene)]
    usual = {World().partner[kind] for kind in World().kinds[:6]} | set(World().kinds[:6])
    rare = [
        (scene, next(k for k in World().kinds if k not in usual | {*scene.kinds, *absent_partners(scene)}))
        for scene in new_scenes()
    ]
    assert np.mean(says_yes(present)) > 0.85
    assert np.mean(says_yes(partners)) > 0.6, "learned from the language side"
    assert np.mean(says_yes(rare)) < 0.35, "not because it can't see"


def test_captions_name_most_things_and_hallucinate_some() -> None:
    rows = [Example("Describe the image.", id=str(i), images=(s.image(),)) for i, s in enumerate(new_scenes())]
    texts = steerlab.generate(model(), rows, max_new_tokens=40, batch_size=40)
    objects = {row.id: scene.kinds for row, scene in zip(rows, new_scenes(), strict=True)}
    scores = chair(dict(zip(objects, texts, strict=True)), objects, scene_vocabulary(World().kinds))
    assert scores.recall > 0.7 and 0 < scores.chair_i < 0.2
