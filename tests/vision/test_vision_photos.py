"""Photographs with questions by POPE's recipe: sizes, color modes and contents of real images."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from image_models import vlm

from steerlab import Example, capture
from steerlab.data import coco_objects, pope_questions
from steerlab.models.positions import resolve

PHOTOS = 50


@pytest.fixture(scope="module")
def rows() -> list[Example]:
    """Two questions about each of fifty photographs, adversarial by the counts of all annotated ones."""
    folder = Path(os.environ.get("STEERLAB_DATA", "nowhere")) / "coco_free"
    if not folder.is_dir():
        pytest.skip("STEERLAB_DATA names no folder with coco_free")
    objects = coco_objects(folder / "annotations.jsonl")
    questions = pope_questions(objects, "adversarial", 2, images=folder / "images", name="free")
    return questions[: 2 * PHOTOS]


@pytest.mark.data
@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_photographs_are_encoded_and_captured(rows: list[Example], family: str) -> None:
    model = vlm(family)
    assert len({row.meta["image"] for row in rows}) == PHOTOS and [row.behavior for row in rows[:2]] == ["yes", "no"]
    acts = capture(model, rows, positions=["last", "images"], progress=False)
    assert torch.isfinite(acts.values).all()
    for position in ("last", "images"):
        assert acts.select(position=position).index["example_id"].tolist() == [row.id for row in rows]
    spans = acts.select(position="images").index["n_tokens"].tolist()
    for row, n in zip(rows, spans, strict=True):
        places = resolve("images", model.encode(row.prompt, images=row.images))
        assert n == len(places) == model.vision.n_tokens(row.images)
    assert set(spans) == {9} if family == "llava" else len(set(spans)) > 1, "Qwen's counts follow the image's shape"
    last = acts.select(position="last").at(model.n_layers - 1)
    assert len(last.unique(dim=0)) == len(rows), "every image and every question is seen"
