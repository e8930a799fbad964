"""Reading POPE's files, with and without their pictures."""

from __future__ import annotations

import io
import json
import logging
import os
import zipfile
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from PIL import Image

from steerlab import capture
from steerlab._support.errors import DataError, LoadError
from steerlab._support.images import open_image
from steerlab.data import ONE_WORD, Example, pope_file
from steerlab.data.example import data_hash
from steerlab.data.pope_recipe import article
from steerlab.testing import tiny_vlm


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
    (row,) = pope_file(write(tmp_path, line(7, label="No")), images=tmp_path)
    assert (row.id, row.behavior, row.prompt) == ("coco_pope_popular/7", "no", "Is there a dog in the image?")
    assert row.images == (tmp_path / "a.jpg",)
    assert row.meta == {"image": "a.jpg", "subset": "popular", "object": "dog"}


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
    (row,) = pope_file(write(tmp_path, line(1, "COCO_val2014_000000000042.jpg")), images=tmp_path)
    assert row.images == (tmp_path / "000000000042.jpg",)


def test_pictures_can_be_in_a_zip_file(tmp_path: Path) -> None:
    draw(tmp_path / "a.jpg")
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as box:
        box.write(tmp_path / "a.jpg", "a.jpg")
    rows = pope_file(write(tmp_path, line(1), line(2)), images=tmp_path / "all.zip")
    assert rows[0].images[0] is rows[1].images[0]
    assert open_image(rows[0].images[0]).size == (4, 4)


def packed(place: Path, **files: bytes) -> Path:
    """A zip with these files; two underscores stand for a slash."""
    with zipfile.ZipFile(place, "w") as box:
        for name, data in files.items():
            box.writestr(name.replace("__", "/") + ".jpg", data)
    return place


def jpeg(color: str = "red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), color).save(file, "JPEG")
    return file.getvalue()


def test_pictures_in_a_zip_file_are_decoded_when_used_and_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = packed(tmp_path / "all.zip", a=jpeg())
    with monkeypatch.context() as patched:
        patched.setattr(Image, "open", lambda *_: pytest.fail("decoded"))
        (row,) = pope_file(write(tmp_path, line(1)), images=place)
        again = pope_file(write(tmp_path, line(1)), images=place)
    assert data_hash([row]) == data_hash(again)
    (tmp_path / "a.jpg").write_bytes(jpeg())
    assert data_hash([row]) == data_hash(pope_file(write(tmp_path, line(1)), images=tmp_path)), "as in a folder"
    opened = open_image(row.images[0])
    assert opened.size == (4, 4) and opened is not open_image(row.images[0]) and "PNG" not in repr(row)
    assert vars(row.images[0]) == {"name": f"{place}/a.jpg", "data": jpeg()}, "the file and nothing else"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "broken, empty or no picture"),
        (b"no picture", "broken, empty or no picture"),
        (jpeg()[:200], "broken, empty or no picture"),
    ],
)
def test_a_bad_picture_in_a_zip_file_is_named_with_its_zip(tmp_path: Path, content: bytes, message: str) -> None:
    place = packed(tmp_path / "all.zip", a=content, b=jpeg())
    rows = pope_file(write(tmp_path, line(1), line(2, "b.jpg")), images=place)
    model = tiny_vlm("llava", backend="hooks")
    for look in (lambda: model.encode("Hi", images=rows[0].images), lambda: capture(model, rows, progress=False)):
        with pytest.raises(DataError, match=message) as caught:
            look()
        assert f"{place}/a.jpg" in str(caught.value)
    assert len(capture(model, rows[1:], progress=False)) == 1


def test_a_damaged_zip_file_is_named(tmp_path: Path) -> None:
    place = packed(tmp_path / "all.zip", a=jpeg())
    whole = place.read_bytes()
    place.write_bytes(whole.replace(jpeg()[20:60], bytes(40)))
    with pytest.raises(DataError, match=r"a\.jpg can't be taken out of .*all\.zip .*: pack it again"):
        pope_file(write(tmp_path, line(1)), images=place)


def test_a_zip_file_may_keep_its_pictures_in_a_folder(tmp_path: Path) -> None:
    name = "COCO_val2014_000000000042"
    place = packed(tmp_path / "val2014.zip", **{f"val2014__{name}": jpeg(), "test__other": jpeg("blue")})
    (row,) = pope_file(write(tmp_path, line(1, f"{name}.jpg")), images=place)
    assert str(row.images[0]) == f"{place}/val2014/{name}.jpg"
    numbered = packed(tmp_path / "new.zip", val__000000000042=jpeg())
    assert "000000000042.jpg" in str(pope_file(write(tmp_path, line(1, f"{name}.jpg")), images=numbered)[0].images[0])


def test_another_folders_file_of_the_same_name_is_another_picture(tmp_path: Path) -> None:
    file = write(tmp_path, line(1, "SD/1.jpg"))
    with pytest.raises(DataError, match="lacks 1 pictures"):
        pope_file(file, images=packed(tmp_path / "other.zip", TYPO__1=jpeg()))
    both = packed(tmp_path / "both.zip", x__SD__1=jpeg(), y__SD__1=jpeg())
    with pytest.raises(DataError, match=r"holds 2 files for 'SD/1\.jpg': x/SD/1\.jpg, y/SD/1\.jpg; keep one"):
        pope_file(file, images=both)
    exact = packed(tmp_path / "exact.zip", SD__1=jpeg(), old__SD__1=jpeg())
    assert str(pope_file(file, images=exact)[0].images[0]).endswith("exact.zip/SD/1.jpg")


def test_missing_pictures_are_counted_five_are_named_and_all_are_listed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = write(tmp_path, *(line(i, f"{i}.jpg") for i in range(8)), line(8))
    with pytest.raises(DataError, match=r"lacks 9 pictures of 9 of 9 rows: 0\.jpg, .*4\.jpg, \.\.\.") as caught:
        pope_file(file, images=tmp_path)
    assert caught.value.missing == (*(f"{i}.jpg" for i in range(8)), "a.jpg")
    draw(tmp_path / "a.jpg")
    with caplog.at_level(logging.DEBUG):
        pope_file(file, images=tmp_path, missing="skip")
    said = {record.levelname: record.getMessage() for record in caplog.records}
    assert "4.jpg, ..." in said["WARNING"] and "7.jpg" not in said["WARNING"]
    assert ", ".join(f"{i}.jpg" for i in range(8)) in said["DEBUG"]
    assert DataError("anything else").missing == ()


def test_missing_pictures_can_be_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    draw(tmp_path / "a.jpg")
    file = write(tmp_path, line(1), line(2, "b.jpg"), line(3, "b.jpg"))
    with caplog.at_level(logging.WARNING):
        rows = pope_file(file, images=tmp_path, missing="skip")
    assert [row.id for row in rows] == ["coco_pope_popular/1"]
    assert "1 pictures of 2 of 3 rows: b.jpg" in caplog.text


def test_skipping_every_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="lacks 1 pictures"):
        pope_file(write(tmp_path, line(1)), images=tmp_path, missing="skip")


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
        pope_file(write(tmp_path, line(1)), images=tmp_path / "nowhere")


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
        per_image: dict[str, Counter[str]] = defaultdict(Counter)
        for row in rows:
            per_image[row.meta["image"]][row.behavior] += 1
        assert len(per_image) == 500 and all(c == {"yes": 3, "no": 3} for c in per_image.values())
        assert all(row.meta["object"] for row in rows)
    if source == "coco_pope":
        assert len({frozenset(yes_half(rows)) for rows in parts.values()}) == 1


def yes_half(rows: list[Example]) -> set[tuple[str, str]]:
    return {(row.meta["image"], row.meta["object"]) for row in rows if row.behavior == "yes"}


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
    rows = pope_file(data / "coco_free/pope_official_aokvqa_seem.jsonl", images=data / "coco_free/images")
    assert len(rows) == 144 and Counter(row.meta["subset"] for row in rows)["random"] == 48
    assert len({row.images for row in rows}) == 8
