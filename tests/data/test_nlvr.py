"""NLVR: sentences about drawings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from data_files import draw, shared, write

from steerlab import DataError, LoadError
from steerlab._support.images import open_image
from steerlab.data import nlvr


def write_folder(root: Path, label: str = "true") -> Path:
    boxes = [[{"type": "square", "color": "Black", "x_loc": 1, "y_loc": 2, "size": 20}], [], []]
    fields = {"image": "d.png", "sentence": "There is a black squere.", "identifier": "1-0", "structured_rep": boxes}
    write(root / "dev.jsonl", {**fields, "label": label})
    draw(root / "images" / "d.png", (400, 100))
    return root


def test_nlvr_example_keeps_sentence_and_drawing(tmp_path: Path) -> None:
    (example,) = nlvr(write_folder(tmp_path), prompt="True or false? {sentence}")
    assert (example.id, example.behavior, example.split) == ("nlvr/dev/1-0", "true", "validation")
    assert example.prompt == "True or false? There is a black squere." and example.meta["sentence"] in example.prompt
    assert json.loads(example.meta["structured_rep"])[0][0]["color"] == "Black"
    assert example.images == (tmp_path / "images" / "d.png",)


def test_nlvr_bad_labels_prompts_and_folders_raise(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="label='perhaps' is unknown; expected one of true, false"):
        nlvr(write_folder(tmp_path, "perhaps"))
    with pytest.raises(DataError, match="no place for the sentence"):
        nlvr(tmp_path, prompt="True?")
    with pytest.raises(LoadError, match="no file"):
        nlvr(tmp_path, "test")


@pytest.mark.data
@pytest.mark.parametrize(("split", "count", "true"), [("dev", 989, 547), ("test", 990, 556)])
def test_real_statements_have_their_images(split: str, count: int, true: int) -> None:
    examples = nlvr(shared("nlvr"), split)
    assert (len(examples), sum(e.behavior == "true" for e in examples)) == (count, true)
    assert open_image(examples[0].images[0]).size == (400, 100)
    assert {len(json.loads(e.meta["structured_rep"])) for e in examples} == {3}
