"""easy-VQA: drawings with questions made from templates."""

from __future__ import annotations

import json
import zipfile
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from data_files import draw, shared

from steerlab import DataError, Example, LoadError
from steerlab._support.images import open_image
from steerlab.data import data_hash, easy_vqa

QUESTIONS = [
    ["what is the red shape?", "triangle", 0],
    ["what color is the circle?", "teal", 1],
    ["is there a red shape?", "yes", 0],
    ["is there a blue shape?", "no", 0],
    ["is there a gray shape?", "no", 1],
    ["is there a teal shape?", "no", 0],
    ["is no circle present?", "no", 1],
]


def write_folder(root: Path) -> Path:
    for number in (0, 1):
        draw(root / "train" / "images" / f"{number}.png", (64, 64))
    (root / "train" / "questions.json").write_text(json.dumps(QUESTIONS), encoding="utf-8")
    return root


def answers_per_template(examples: list[Example]) -> dict[str, Counter[str]]:
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for example in examples:
        if example.meta["kind"] == "yes/no":
            found[example.meta["template"]][example.behavior] += 1
    return found


def test_easy_vqa_examples_have_template_kind_and_image(tmp_path: Path) -> None:
    examples = easy_vqa(write_folder(tmp_path))
    assert [e.meta["kind"] for e in examples[:3]] == ["shape", "color", "yes/no"]
    assert examples[0].meta["template"] == "what is the {color} shape?"
    assert examples[-1].meta["template"] == "is no {shape} present?"
    assert (examples[0].id, examples[0].behavior, examples[0].split) == ("easy_vqa/train/0", "triangle", "train")
    assert examples[1].images == (tmp_path / "train" / "images" / "1.png",)


def test_easy_vqa_zip_file_and_package_folder_give_the_same_examples(tmp_path: Path) -> None:
    plain = easy_vqa(write_folder(tmp_path / "package" / "data"))
    assert [e.images for e in easy_vqa(tmp_path / "package")] == [e.images for e in plain]
    with zipfile.ZipFile(tmp_path / "train.zip", "w") as archive:
        for file in sorted((tmp_path / "package" / "data" / "train").rglob("*.*")):
            archive.write(file, file.relative_to(tmp_path / "package" / "data" / "train"))
    zipped = easy_vqa(tmp_path)
    assert [e.replace(images=()) for e in zipped] == [e.replace(images=()) for e in plain]
    assert open_image(zipped[0].images[0]).size == (64, 64) and zipped[0].images[0] is zipped[2].images[0]
    assert data_hash(zipped) == data_hash(easy_vqa(tmp_path))


def test_easy_vqa_balanced_keeps_as_many_yes_as_no_and_every_open_question(tmp_path: Path) -> None:
    examples = easy_vqa(write_folder(tmp_path), balanced=True)
    assert answers_per_template(examples) == {"is there a {color} shape?": {"yes": 1, "no": 1}}
    assert [e.behavior for e in examples[:2]] == ["triangle", "teal"]
    assert len({tuple(e.id for e in easy_vqa(tmp_path, balanced=True, seed=s)) for s in range(9)}) == 3


def test_easy_vqa_missing_or_broken_data_raise(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="no split 'test'"):
        easy_vqa(write_folder(tmp_path), split="test")
    (tmp_path / "train" / "images" / "1.png").unlink()
    with pytest.raises(DataError, match=r"lacks 1 images of 3 of 7 examples: images/1\.png"):
        easy_vqa(tmp_path)
    (tmp_path / "train" / "questions.json").write_text('[["what?", "yes"]]', encoding="utf-8")
    with pytest.raises(LoadError, match="broken"):
        easy_vqa(tmp_path)


@pytest.mark.data
@pytest.mark.parametrize(("split", "count", "kept"), [("train", 38575, 20466), ("test", 9673, 5029)])
def test_real_templates_predict_the_answer_unless_balanced(split: str, count: int, kept: int) -> None:
    examples = easy_vqa(shared("easy_vqa"), split=split)
    assert len(examples) == count and len({e.meta["template"] for e in examples}) == 24
    counts = answers_per_template(examples).values()
    assert len(counts) == 16 and sum(max(c.values()) for c in counts) / sum(map(Counter.total, counts)) > 0.8
    balanced = easy_vqa(shared("easy_vqa"), split=split, balanced=True)
    assert len(balanced) == kept and all(c["yes"] == c["no"] for c in answers_per_template(balanced).values())
