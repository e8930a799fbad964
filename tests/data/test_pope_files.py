"""POPE's files, and images found in folders and zip files."""

from __future__ import annotations

import io
import json
import logging
import zipfile
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from data_files import draw, shared, write
from PIL import Image

from steerlab import DataError, Example, LoadError, capture
from steerlab._support.images import open_image
from steerlab.data import ONE_WORD, data_hash, pope_file
from steerlab.data.pope_recipe import article
from steerlab.testing import tiny_vlm

NUMBERED = "COCO_val2014_000000000042.jpg"


def line(number: int, image: str = "a.jpg", text: str = "Is there a dog in the image?", **more: str) -> str:
    return json.dumps({"question_id": number, "image": image, "text": text, "label": "yes", **more}) + "\n"


def write_pope(folder: Path, *lines: str) -> Path:
    return write(folder / "coco_pope_popular.jsonl", *lines)


def jpeg(color: str = "red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), color).save(file, "JPEG")
    return file.getvalue()


def write_zip(place: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(place, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return place


def test_pope_question_becomes_an_example(tmp_path: Path) -> None:
    image = draw(tmp_path / "a.jpg")
    file = write_pope(tmp_path, line(7, label="No"))
    (example,) = pope_file(file, images=tmp_path)
    found = (example.id, example.behavior, example.prompt)
    assert found == ("coco_pope_popular/7", "no", "Is there a dog in the image?")
    assert example.meta == {"image": "a.jpg", "subset": "popular", "object": "dog"}
    assert example.images == (image,) and pope_file(file)[0].images == ()


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        (None, "Is it? One word please."),
        ("", "Is it?"),
        (ONE_WORD, f"Is it? {ONE_WORD}"),
        ("\nBriefly.", "Is it?\nBriefly."),
    ],
)
def test_instruction_is_kept_cut_or_replaced(tmp_path: Path, instruction: str | None, expected: str) -> None:
    file = write_pope(tmp_path, line(1, text="Is it? One word please."))
    assert pope_file(file, instruction=instruction)[0].prompt == expected


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (line(1, label="maybe"), DataError, "line 1: label='maybe' is unknown; expected one of yes, no"),
        (line(1) + line(1), DataError, "occurs twice"),
        ('{"image": "a"}\n', LoadError, r"line 1: no field 'text'; the fields are \['image'\]"),
        ("", DataError, "empty"),
    ],
)
def test_broken_pope_files_raise(tmp_path: Path, content: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pope_file(write_pope(tmp_path, content))


def test_images_of_2014_are_found_under_their_number(tmp_path: Path) -> None:
    image = draw(tmp_path / "000000000042.jpg")
    (example,) = pope_file(write_pope(tmp_path, line(1, NUMBERED)), images=tmp_path)
    assert example.images == (image,)


def test_zipped_images_are_decoded_when_used_and_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, file = write_zip(tmp_path / "all.zip", {"a.jpg": jpeg()}), write_pope(tmp_path, line(1), line(2))
    with monkeypatch.context() as patched:
        patched.setattr(Image, "open", lambda *_: pytest.fail("decoded"))
        examples = pope_file(file, images=place)
    assert data_hash(examples) == data_hash(pope_file(file, images=place))
    (tmp_path / "a.jpg").write_bytes(jpeg())
    assert data_hash(examples) == data_hash(pope_file(file, images=tmp_path)), "as in a folder"
    image = examples[0].images[0]
    opened = open_image(image)
    assert opened.size == (4, 4) and opened is not open_image(image) and "PNG" not in repr(examples)
    assert vars(image) == {"name": f"{place}/a.jpg", "data": jpeg()}, "the file and nothing else"
    assert examples[1].images[0] is image


@pytest.mark.parametrize("content", [b"", b"no image", jpeg()[:200]])
def test_broken_zipped_image_is_named_with_its_zip(tmp_path: Path, content: bytes) -> None:
    place = write_zip(tmp_path / "all.zip", {"a.jpg": content, "b.jpg": jpeg()})
    examples = pope_file(write_pope(tmp_path, line(1), line(2, "b.jpg")), images=place)
    model = tiny_vlm("llava", backend="hooks")
    for use in (
        lambda: model.encode("Hi", images=examples[0].images),
        lambda: capture(model, examples, progress=False),
    ):
        with pytest.raises(DataError, match="broken, empty or no") as caught:
            use()
        assert f"{place}/a.jpg" in str(caught.value)
    assert len(capture(model, examples[1:], progress=False)) == 1


def test_damaged_zip_file_is_named(tmp_path: Path) -> None:
    place = write_zip(tmp_path / "all.zip", {"a.jpg": jpeg()})
    place.write_bytes(place.read_bytes().replace(jpeg()[20:60], bytes(40)))
    with pytest.raises(DataError, match=r"a\.jpg can't be read from .*all\.zip .*: pack it again"):
        pope_file(write_pope(tmp_path, line(1)), images=place)


def test_zip_file_may_have_folders(tmp_path: Path) -> None:
    file = write_pope(tmp_path, line(1, NUMBERED))
    named = write_zip(tmp_path / "val2014.zip", {f"val2014/{NUMBERED}": jpeg(), "test/other.jpg": jpeg("blue")})
    assert str(pope_file(file, images=named)[0].images[0]) == f"{named}/val2014/{NUMBERED}"
    numbered = write_zip(tmp_path / "new.zip", {"val/000000000042.jpg": jpeg()})
    assert "000000000042.jpg" in str(pope_file(file, images=numbered)[0].images[0])


def test_zip_members_of_equal_name_in_other_folders_are_other_images(tmp_path: Path) -> None:
    file = write_pope(tmp_path, line(1, "SD/1.jpg"))
    with pytest.raises(DataError, match="lacks 1 images"):
        pope_file(file, images=write_zip(tmp_path / "other.zip", {"TYPO/1.jpg": jpeg()}))
    both = write_zip(tmp_path / "both.zip", {"x/SD/1.jpg": jpeg(), "y/SD/1.jpg": jpeg()})
    with pytest.raises(DataError, match=r"holds 2 files for 'SD/1\.jpg': x/SD/1\.jpg, y/SD/1\.jpg; keep one"):
        pope_file(file, images=both)
    exact = write_zip(tmp_path / "exact.zip", {"SD/1.jpg": jpeg(), "old/SD/1.jpg": jpeg()})
    assert str(pope_file(file, images=exact)[0].images[0]).endswith("exact.zip/SD/1.jpg")


def test_missing_images_raise_or_are_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = write_pope(tmp_path, *(line(i, f"{i}.jpg") for i in range(8)), line(8))
    for missing in ("raise", "skip"):  # nothing is left
        with pytest.raises(DataError, match=r"lacks 9 images of 9 of 9 examples: 0\.jpg, .*4\.jpg, \.\.\.") as caught:
            pope_file(file, images=tmp_path, missing=missing)
    assert caught.value.missing == (*(f"{i}.jpg" for i in range(8)), "a.jpg")
    assert DataError("anything else").missing == ()
    draw(tmp_path / "a.jpg")
    with caplog.at_level(logging.DEBUG):
        examples = pope_file(file, images=tmp_path, missing="skip")
    assert [e.id for e in examples] == ["coco_pope_popular/8"]
    messages = {record.levelname: record.getMessage() for record in caplog.records}
    assert "lacks 8 images of 8 of 9 examples" in messages["WARNING"]
    assert "4.jpg, ..." in messages["WARNING"] and "7.jpg" not in messages["WARNING"]
    assert ", ".join(f"{i}.jpg" for i in range(8)) in messages["DEBUG"]
    with pytest.raises(LoadError, match="no images at"):
        pope_file(file, images=tmp_path / "nowhere")


@pytest.mark.data
@pytest.mark.parametrize("source", ["coco_pope", "aokvqa_pope_seem", "gqa_pope_seem"])
def test_real_files_are_balanced_six_per_image(source: str) -> None:
    parts = {s: pope_file(shared("pope", f"{source}_{s}.jsonl")) for s in ("random", "popular", "adversarial")}
    for split, examples in parts.items():
        assert len(examples) == 3000 and {e.meta["subset"] for e in examples} == {split}
        per_image: dict[str, Counter[str]] = defaultdict(Counter)
        for example in examples:
            per_image[example.meta["image"]][example.behavior] += 1
        assert len(per_image) == 500 and all(c == {"yes": 3, "no": 3} for c in per_image.values())
        assert all(e.meta["object"] for e in examples)
    if source == "coco_pope":
        assert len({frozenset(yes_half(examples)) for examples in parts.values()}) == 1


def yes_half(examples: list[Example]) -> set[tuple[str, str]]:
    return {(e.meta["image"], e.meta["object"]) for e in examples if e.behavior == "yes"}


@pytest.mark.data
def test_articles_are_the_published_ones_but_for_one_slip() -> None:
    odd = Counter(
        example.prompt
        for file in sorted(shared("pope").glob("*_pope_*.jsonl"))
        for example in pope_file(file)
        if not example.prompt.startswith(f"Is there {article(example.meta['object'])} {example.meta['object']} in")
    )
    assert odd == {"Is there an traffic light in the image?": 1}


@pytest.mark.data
def test_real_questions_find_the_free_images() -> None:
    folder = shared("coco_free")
    examples = pope_file(folder / "pope_official_aokvqa_seem.jsonl", images=folder / "images")
    assert len(examples) == 144 and Counter(e.meta["subset"] for e in examples)["random"] == 48
    assert len({e.images for e in examples}) == 8
