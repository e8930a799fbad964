"""easy-VQA and NLVR: drawings with questions and statements."""

from __future__ import annotations

import json
import os
import zipfile
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from PIL import Image

from steerlab._support.errors import DataError, LoadError
from steerlab._support.images import open_image
from steerlab.data import Example, data_hash, easy_vqa, nlvr

QUESTIONS = [
    ["what is the red shape?", "triangle", 0],
    ["what color is the circle?", "teal", 1],
    ["is there a red shape?", "yes", 0],
    ["is there a blue shape?", "no", 0],
    ["is there a gray shape?", "no", 1],
    ["is there a teal shape?", "no", 0],
    ["is no circle present?", "no", 1],
]


def draw(file: Path, size: tuple[int, int] = (64, 64)) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "teal").save(file)


def vqa_folder(root: Path) -> Path:
    for number in (0, 1):
        draw(root / "train" / "images" / f"{number}.png")
    (root / "train" / "questions.json").write_text(json.dumps(QUESTIONS), encoding="utf-8")
    return root


def per_template(rows: list[Example]) -> dict[str, Counter[str]]:
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        if row.meta["kind"] == "yes/no":
            found[row.meta["template"]][row.behavior] += 1
    return found


def test_questions_know_their_template_and_picture(tmp_path: Path) -> None:
    rows = easy_vqa(vqa_folder(tmp_path))
    assert [row.meta["kind"] for row in rows[:3]] == ["shape", "color", "yes/no"]
    assert rows[0].meta["template"] == "what is the {color} shape?"
    assert rows[-1].meta["template"] == "is no {shape} present?"
    assert (rows[0].id, rows[0].behavior, rows[0].split) == ("easy_vqa/train/0", "triangle", "train")
    assert rows[1].images == (tmp_path / "train" / "images" / "1.png",)


def test_zip_file_and_package_folder_give_the_same_rows(tmp_path: Path) -> None:
    plain = easy_vqa(vqa_folder(tmp_path / "package" / "data"))
    assert [row.images for row in easy_vqa(tmp_path / "package")] == [row.images for row in plain]
    with zipfile.ZipFile(tmp_path / "train.zip", "w") as box:
        for file in sorted((tmp_path / "package" / "data" / "train").rglob("*.*")):
            box.write(file, file.relative_to(tmp_path / "package" / "data" / "train"))
    zipped = easy_vqa(tmp_path)
    assert [row.replace(images=()) for row in zipped] == [row.replace(images=()) for row in plain]
    assert open_image(zipped[0].images[0]).size == (64, 64) and zipped[0].images[0] is zipped[2].images[0]
    assert data_hash(zipped) == data_hash(easy_vqa(tmp_path))


def test_balancing_keeps_as_many_yes_as_no_and_every_open_question(tmp_path: Path) -> None:
    rows = easy_vqa(vqa_folder(tmp_path), balanced=True)
    assert per_template(rows) == {"is there a {color} shape?": {"yes": 1, "no": 1}}
    assert [row.behavior for row in rows[:2]] == ["triangle", "teal"]
    drawn = {tuple(row.id for row in easy_vqa(tmp_path, balanced=True, seed=s)) for s in range(9)}
    assert len(drawn) == 3


def test_data_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="no split 'test'"):
        easy_vqa(vqa_folder(tmp_path), split="test")
    (tmp_path / "train" / "images" / "1.png").unlink()
    with pytest.raises(DataError, match=r"lacks 1 pictures of 3 of 7 rows: images/1\.png"):
        easy_vqa(tmp_path)
    (tmp_path / "train" / "questions.json").write_text('[["what?", "yes"]]', encoding="utf-8")
    with pytest.raises(LoadError, match="broken"):
        easy_vqa(tmp_path)


def nlvr_folder(root: Path, label: str = "true") -> Path:
    boxes = [[{"type": "square", "color": "Black", "x_loc": 1, "y_loc": 2, "size": 20}], [], []]
    fields = {"image": "d.png", "sentence": "There is a black squere.", "identifier": "1-0", "structured_rep": boxes}
    (root / "dev.jsonl").write_text(json.dumps({**fields, "label": label}), encoding="utf-8")
    draw(root / "images" / "d.png", (400, 100))
    return root


def test_statements_keep_what_is_drawn(tmp_path: Path) -> None:
    (row,) = nlvr(nlvr_folder(tmp_path), prompt="True or false? {sentence}")
    assert (row.id, row.behavior, row.split) == ("nlvr/dev/1-0", "true", "validation")
    assert row.prompt == "True or false? There is a black squere." and row.meta["sentence"] in row.prompt
    assert json.loads(row.meta["structured_rep"])[0][0]["color"] == "Black"
    assert row.images == (tmp_path / "images" / "d.png",)


def test_broken_statements_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'perhaps'; expected true or false"):
        nlvr(nlvr_folder(tmp_path, "perhaps"))
    with pytest.raises(DataError, match="no place for the sentence"):
        nlvr(tmp_path, prompt="True?")
    with pytest.raises(LoadError, match="no file"):
        nlvr(tmp_path, "test")


def shared(name: str) -> Path:
    folder = Path(os.environ.get("STEERLAB_DATA", "nowhere")) / name
    if not folder.is_dir():
        pytest.skip(f"STEERLAB_DATA names no folder with {name}")
    return folder


@pytest.mark.data
@pytest.mark.parametrize(("split", "count", "kept"), [("train", 38575, 20466), ("test", 9673, 5029)])
def test_real_templates_give_the_answer_away_until_balanced(split: str, count: int, kept: int) -> None:
    rows = easy_vqa(shared("easy_vqa"), split=split)
    assert len(rows) == count and len({row.meta["template"] for row in rows}) == 24
    counts = per_template(rows)
    assert (
        len(counts) == 16
        and sum(max(c.values()) for c in counts.values()) / sum(map(Counter.total, counts.values())) > 0.8
    )
    fair = easy_vqa(shared("easy_vqa"), split=split, balanced=True)
    assert len(fair) == kept and all(c["yes"] == c["no"] for c in per_template(fair).values())


@pytest.mark.data
@pytest.mark.parametrize(("split", "count", "true"), [("dev", 989, 547), ("test", 990, 556)])
def test_real_statements_have_their_pictures(split: str, count: int, true: int) -> None:
    rows = nlvr(shared("nlvr"), split)
    assert (len(rows), sum(row.behavior == "true" for row in rows)) == (count, true)
    assert open_image(rows[0].images[0]).size == (400, 100)
    assert {len(json.loads(row.meta["structured_rep"])) for row in rows} == {3}
