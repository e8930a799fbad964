"""MM-SafetyBench with pictures, drawn phrases, and VLGuard."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from steerlab._support.errors import DataError, LoadError
from steerlab._support.images import open_image
from steerlab.data import PUBLISHED_PAIRS, mm_safety_bench, mm_safety_images, typography, vlguard, with_contrasts
from steerlab.data.mm_safety_bench import SCENARIOS


def write_bench(folder: Path) -> Path:
    for scenario in SCENARIOS:
        records = {
            str(key): {
                "Question": "Q?",
                "Key Phrase": f"phrase {key} of {scenario.number}",
                "Rephrased Question": "The bottom shows a phrase.",
                "Rephrased Question(SD)": "The image shows a phrase.",
            }
            for key in range(2)
        }
        (folder / scenario.file).write_text(json.dumps({**records, "2": {"removed": True}}), encoding="utf-8")
    return folder


def draw(file: Path, color: str = "red") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (96, 64), color).save(file)


def test_rows_order_and_split_are_those_of_the_texts(tmp_path: Path) -> None:
    texts = mm_safety_bench(write_bench(tmp_path), strict=False)
    rows = mm_safety_images(tmp_path, "TYPO", strict=False, width=64)
    assert [row.id for row in rows] == [f"{text.id}/TYPO" for text in texts]
    assert [(row.split, row.behavior) for row in rows] == [(text.split, text.behavior) for text in texts]
    assert rows[0].prompt == "The bottom shows a phrase."
    added = {"kind": "TYPO", "phrase": "phrase 0 of 01", "image": "01-Illegal_Activitiy/TYPO/0.jpg", "drawn": "yes"}
    assert rows[0].meta == {**texts[0].meta, **added}
    assert all(row.contrast for row in with_contrasts(rows, PUBLISHED_PAIRS["llava"]))


def test_each_kind_has_its_question_and_folder(tmp_path: Path) -> None:
    folder = write_bench(tmp_path)
    for kind in ("SD", "TYPO", "SD_TYPO"):
        draw(tmp_path / "imgs" / "02-HateSpeech" / kind / "1.jpg")
    for kind, word in (("SD", "image"), ("SD_TYPO", "bottom")):
        (row,) = mm_safety_images(folder, kind, images=tmp_path / "imgs", missing="skip", strict=False)
        assert row.id == f"mmsb/02/1/{kind}" and word in row.prompt and row.meta["drawn"] == "no"
        assert row.images == (tmp_path / "imgs" / "02-HateSpeech" / kind / "1.jpg",)
    rows = mm_safety_images(folder, "TYPO", images=tmp_path / "imgs", strict=False, width=64, field="Question")
    assert len(rows) == 24 and [row.id for row in rows if row.meta["drawn"] == "no"] == ["mmsb/02/1/TYPO"]
    assert rows[0].prompt == "Q?"


def test_a_phrase_is_put_below_its_scene(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    draw(tmp_path / "imgs" / "02-HateSpeech" / "SD" / "1.jpg")
    with caplog.at_level(logging.WARNING):
        (row,) = mm_safety_images(
            write_bench(tmp_path), "SD_TYPO", images=tmp_path / "imgs", missing="skip", strict=False
        )
    assert "lacks 23 pictures of 23 of 24 rows" in caplog.text and row.meta["drawn"] == "yes"
    both = open_image(row.images[0])
    strip = typography("phrase 1 of 02", 96)
    assert both.size == (96, 64 + strip.height) and both.getpixel((5, 5))[0] > 200 > both.getpixel((5, 5))[1]
    assert both.crop((0, 64, *both.size)).convert("L").tobytes() == strip.tobytes()


def test_what_is_drawn_can_be_saved_and_is_found_again(tmp_path: Path) -> None:
    first = mm_safety_images(write_bench(tmp_path), "TYPO", strict=False, save=tmp_path / "imgs", width=64)
    again = mm_safety_images(tmp_path, "TYPO", strict=False, images=tmp_path / "imgs")
    assert [row.images for row in first] == [row.images for row in again] and again[0].meta["drawn"] == "no"


def test_scenes_are_not_made_up(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"only TYPO is drawn, not SD\) lacks 24 pictures.*01-Illegal_Activitiy/SD/0"):
        mm_safety_images(write_bench(tmp_path), "SD", strict=False)


@pytest.mark.parametrize("phrase", ["word", "a phrase of seven words in some lines", "w" * 90])
@pytest.mark.parametrize("width", [64, 300])
def test_letters_stay_inside_the_picture(phrase: str, width: int) -> None:
    image = typography(phrase, width)
    ink = np.asarray(image) < 128
    assert image.width == width and ink.any()
    edges = (ink[0], ink[-1], ink[:, 0], ink[:, -1])
    assert not any(edge.any() for edge in edges)


def test_drawing_is_deterministic_and_refuses_nothing_to_draw() -> None:
    assert typography("a b", 64).tobytes() == typography("a  b ", 64).tobytes() != typography("a c", 64).tobytes()
    with pytest.raises(DataError, match="expected a word or more"):
        typography("  ")
    with pytest.raises(DataError, match="32 pixels"):
        typography("word", 8)


SAFE = {
    "id": "s",
    "image": "x/s.png",
    "safe": True,
    "instr-resp": [{"safe_instruction": "A?", "response": "B."}, {"unsafe_instruction": "C?", "response": "No."}],
}
UNSAFE = {
    "id": "u",
    "image": "x/u.png",
    "safe": False,
    "harmful_category": "privacy",
    "harmful_subcategory": "personal data",
    "instr-resp": [{"instruction": "D?", "response": "No."}],
}


def write_guard(folder: Path, *records: object) -> Path:
    file = folder / "test.json"
    file.write_text(json.dumps(list(records)), encoding="utf-8")
    return file


def test_vlguard_asks_a_safe_picture_twice_and_an_unsafe_one_once(tmp_path: Path) -> None:
    rows = vlguard(write_guard(tmp_path, SAFE, UNSAFE))
    assert [(row.id, row.prompt, row.behavior) for row in rows] == [
        ("vlguard/s/safe_safes", "A?", "answer"),
        ("vlguard/s/safe_unsafes", "C?", "refuse"),
        ("vlguard/u/unsafes", "D?", "refuse"),
    ]
    assert {row.split for row in rows} == {"test"}
    assert (rows[2].meta["category"], rows[2].meta["subcategory"]) == ("privacy", "personal data")
    assert rows[0].meta["response"] == "B." and rows[0].meta["category"] == ""


def test_vlguard_finds_its_pictures(tmp_path: Path) -> None:
    draw(tmp_path / "x" / "s.png")
    file = write_guard(tmp_path, SAFE, UNSAFE)
    with pytest.raises(DataError, match=r"lacks 1 pictures of 1 of 3 rows: x/u\.png"):
        vlguard(file, images=tmp_path)
    rows = vlguard(file, images=tmp_path, missing="skip")
    assert [row.images for row in rows] == [(tmp_path / "x" / "s.png",)] * 2


def test_vlguard_tells_repeated_ids_apart(tmp_path: Path) -> None:
    rows = vlguard(write_guard(tmp_path, UNSAFE, UNSAFE))
    assert [row.id for row in rows] == ["vlguard/u/unsafes", "vlguard/u#2/unsafes"]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({**UNSAFE, "safe": True}, "a safe picture with"),
        ({**SAFE, "safe": False}, "an? unsafe picture with"),
        ({**UNSAFE, "instr-resp": [{"question": "?"}]}, "expected 'instruction'"),
        ({"id": "x"}, r"no field \['image', 'safe', 'instr-resp'\]"),
        ("text", "list of records"),
    ],
)
def test_vlguard_refuses_other_formats(tmp_path: Path, record: object, message: str) -> None:
    with pytest.raises(LoadError, match=message):
        vlguard(write_guard(tmp_path, record))


@pytest.mark.data
def test_real_phrases_are_all_drawn() -> None:
    folder = Path(os.environ.get("STEERLAB_DATA", "nowhere")) / "noncommercial_cc_by_nc" / "mm_safetybench"
    if not folder.is_dir():
        pytest.skip("STEERLAB_DATA names no folder with MM-SafetyBench")
    rows = mm_safety_images(folder, "TYPO", include_unscored=True, width=128)
    assert len(rows) == 1653 and sum(row.split == "test" and row.behavior == "defer" for row in rows) == 75
    assert all(row.images and len(row.images) == 1 for row in rows)
    assert Counter(row.meta["drawn"] for row in rows) == {"yes": 1653}
