"""Reading POPE's files, with and without their pictures."""

from __future__ import annotations

import json
import logging
import os
import zipfile
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from PIL import Image

from steerlab._support.errors import DataError, LoadError
from steerlab._support.pictures import open_picture
from steerlab.data import ONE_WORD, Example, pope_file
from steerlab.data.pope_recipe import article


def line(number: int, image: str = "a.jpg", text: str = "Is there a dog in the image?", **more: str) -> str:
    fields = {"question_id": number, "image": image, "text": text, "label": "yes"}
    return json.dumps({**fields, **more}) + "\n"


def write(folder: Path, *lines: str, name: str = "coco_pope_popular.jsonl") -> Path:
    file = folder / name
    file.write_text("".join(lines), encoding="utf-8")
    return file


def draw(file: Path) -> None:
    file.parent.mkdir(exist_ok=True)
    Image.new("RGB", (4, 4), "red").save(file)


def test_a_question_becomes_an_example(tmp_path: Path) -> None:
    draw(tmp_path / "a.jpg")
    (row,) = pope_file(write(tmp_path, line(7, label="No")), pictures=tmp_path)
    assert (row.id, row.behaviour, row.prompt) == ("coco_pope_popular/7", "no", "Is there a dog in the image?")
    assert row.images == (tmp_path / "a.jpg",)
    assert row.meta == {"picture": "a.jpg", "subset": "popular", "object": "dog"}


def test_pictures_are_optional(tmp_path: Path) -> None:
    assert pope_file(write(tmp_path, line(1)))[0].images == ()


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        (None, "Is it? One word please."),
        ("", "Is it?"),
        (ONE_WORD, f"Is it? {ONE_WORD}"),
        ("\nBriefly.", "Is it?\nBriefly."),
    ],
)
def test_the_instruction_is_kept_cut_or_replaced(tmp_path: Path, instruction: str | None, expected: str) -> None:
    file = write(tmp_path, line(1, text="Is it? One word please."))
    assert pope_file(file, instruction=instruction)[0].prompt == expected


def test_pictures_of_2014_are_found_under_their_number(tmp_path: Path) -> None:
    draw(tmp_path / "000000000042.jpg")
    (row,) = pope_file(write(tmp_path, line(1, "COCO_val2014_000000000042.jpg")), pictures=tmp_path)
    assert row.images == (tmp_path / "000000000042.jpg",)


def test_pictures_can_be_in_a_zip_file(tmp_path: Path) -> None:
    draw(tmp_path / "a.jpg")
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as box:
        box.write(tmp_path / "a.jpg", "a.jpg")
    rows = pope_file(write(tmp_path, line(1), line(2)), pictures=tmp_path / "all.zip")
    assert rows[0].images[0] is rows[1].images[0]
    assert open_picture(rows[0].images[0]).size == (4, 4)


def test_missing_pictures_are_counted_and_five_are_named(tmp_path: Path) -> None:
    file = write(tmp_path, *(line(i, f"{i}.jpg") for i in range(8)))
    with pytest.raises(DataError, match=r"lacks 8 pictures of 8 of 8 rows: 0\.jpg, .*4\.jpg, \.\.\."):
        pope_file(file, pictures=tmp_path)


def test_missing_pictures_can_be_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    draw(tmp_path / "a.jpg")
    file = write(tmp_path, line(1), line(2, "b.jpg"), line(3, "b.jpg"))
    with caplog.at_level(logging.WARNING):
        rows = pope_file(file, pictures=tmp_path, missing="skip")
    assert [row.id for row in rows] == ["coco_pope_popular/1"]
    assert "1 pictures of 2 of 3 rows: b.jpg" in caplog.text


def test_skipping_every_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="lacks 1 pictures"):
        pope_file(write(tmp_path, line(1)), pictures=tmp_path, missing="skip")


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (line(1, label="maybe"), DataError, "'maybe'; expected yes or no"),
        (line(1) + line(1), DataError, "occurs twice"),
        ('{"image": "a"}\n', LoadError, r"no field \['question_id', 'text', 'label'\]"),
        ("", DataError, "empty"),
    ],
)
def test_broken_files_are_refused(tmp_path: Path, content: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pope_file(write(tmp_path, content))


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="no pictures at"):
        pope_file(write(tmp_path, line(1)), pictures=tmp_path / "nowhere")


@pytest.fixture(scope="module")
def data() -> Path:
    root = os.environ.get("STEERLAB_DATA")
    if not root or not (Path(root) / "pope").is_dir():
        pytest.skip("STEERLAB_DATA names no folder with POPE")
    return Path(root)


@pytest.mark.data
@pytest.mark.parametrize("source", ["coco_pope", "aokvqa_pope_seem", "gqa_pope_seem"])
def test_real_files_are_balanced_six_a_picture(data: Path, source: str) -> None:
    parts = {s: pope_file(data / "pope" / f"{source}_{s}.jsonl") for s in ("random", "popular", "adversarial")}
    for split, rows in parts.items():
        assert len(rows) == 3000 and {row.meta["subset"] for row in rows} == {split}
        per_picture: dict[str, Counter[str]] = defaultdict(Counter)
        for row in rows:
            per_picture[row.meta["picture"]][row.behaviour] += 1
        assert len(per_picture) == 500 and all(c == {"yes": 3, "no": 3} for c in per_picture.values())
        assert all(row.meta["object"] for row in rows)
    if source == "coco_pope":
        assert len({frozenset(yes_half(rows)) for rows in parts.values()}) == 1


def yes_half(rows: list[Example]) -> set[tuple[str, str]]:
    return {(row.meta["picture"], row.meta["object"]) for row in rows if row.behaviour == "yes"}


@pytest.mark.data
def test_our_articles_are_the_published_ones_but_for_one_slip(data: Path) -> None:
    odd = Counter(
        row.prompt
        for file in sorted((data / "pope").glob("*_pope_*.jsonl"))
        for row in pope_file(file)
        if not row.prompt.startswith(f"Is there {article(row.meta['object'])} {row.meta['object']} in")
    )
    assert odd == {"Is there an traffic light in the image?": 1}


@pytest.mark.data
def test_real_questions_find_the_free_pictures(data: Path) -> None:
    rows = pope_file(data / "coco_free/pope_official_aokvqa_seem.jsonl", pictures=data / "coco_free/images")
    assert len(rows) == 144 and Counter(row.meta["subset"] for row in rows)["random"] == 48
    assert len({row.images for row in rows}) == 8
