"""MM-SafetyBench with images, and drawn phrases."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from data_files import draw, shared

from steerlab import DataError
from steerlab._support.images import open_image
from steerlab.data import PUBLISHED_PAIRS, draw_phrase, mm_safety_bench, mm_safety_images, with_contrasts
from steerlab.data.mm_safety_bench import SCENARIOS

IMAGE = Path("imgs/02-HateSpeech")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Every scenario with two records, and one that was removed."""
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
        (tmp_path / scenario.file).write_text(json.dumps({**records, "2": {"removed": True}}), encoding="utf-8")
    return tmp_path


def test_image_examples_keep_order_and_split_of_the_texts(folder: Path) -> None:
    texts = mm_safety_bench(folder, strict=False)
    examples = mm_safety_images(folder, "TYPO", strict=False, width=64)
    assert [e.id for e in examples] == [f"{text.id}/TYPO" for text in texts]
    assert [(e.split, e.behavior) for e in examples] == [(text.split, text.behavior) for text in texts]
    assert examples[0].prompt == "The bottom shows a phrase."
    added = {"kind": "TYPO", "phrase": "phrase 0 of 01", "image": "01-Illegal_Activitiy/TYPO/0.jpg", "drawn": "yes"}
    assert examples[0].meta == {**texts[0].meta, **added}
    assert all(e.contrast for e in with_contrasts(examples, PUBLISHED_PAIRS["llava"]))


def test_each_kind_has_its_question_and_folder(folder: Path) -> None:
    for kind in ("SD", "TYPO", "SD_TYPO"):
        draw(folder / IMAGE / kind / "1.jpg")
    for kind, word in (("SD", "image"), ("SD_TYPO", "bottom")):
        (example,) = mm_safety_images(folder, kind, images=folder / "imgs", missing="skip", strict=False)
        assert example.id == f"mmsb/02/1/{kind}" and word in example.prompt and example.meta["drawn"] == "no"
        assert example.images == (folder / IMAGE / kind / "1.jpg",)
    examples = mm_safety_images(folder, "TYPO", images=folder / "imgs", strict=False, width=64, field="Question")
    assert len(examples) == 24 and [e.id for e in examples if e.meta["drawn"] == "no"] == ["mmsb/02/1/TYPO"]
    assert examples[0].prompt == "Q?"


def test_sd_typo_draws_the_phrase_below_the_image(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    draw(folder / IMAGE / "SD" / "1.jpg", (96, 64))
    with caplog.at_level(logging.WARNING):
        (example,) = mm_safety_images(folder, "SD_TYPO", images=folder / "imgs", missing="skip", strict=False)
    assert "lacks 23 images of 23 of 24 examples" in caplog.text and example.meta["drawn"] == "yes"
    both = open_image(example.images[0])
    strip = draw_phrase("phrase 1 of 02", 96)
    assert both.size == (96, 64 + strip.height) and both.getpixel((5, 5))[0] > 200 > both.getpixel((5, 5))[1]
    assert both.crop((0, 64, *both.size)).convert("L").tobytes() == strip.tobytes()


def test_drawn_images_can_be_saved_and_are_found_again(folder: Path) -> None:
    first = mm_safety_images(folder, "TYPO", strict=False, save=folder / "imgs", width=64)
    again = mm_safety_images(folder, "TYPO", strict=False, images=folder / "imgs")
    assert [e.images for e in first] == [e.images for e in again] and again[0].meta["drawn"] == "no"


def test_missing_sd_images_raise(folder: Path) -> None:
    with pytest.raises(DataError, match=r"only TYPO is drawn, not SD\) lacks 24 images.*01-Illegal_Activitiy/SD/0"):
        mm_safety_images(folder, "SD", strict=False)


@pytest.mark.parametrize("phrase", ["word", "a phrase of seven words in some lines", "w" * 90])
@pytest.mark.parametrize("width", [64, 300])
def test_drawn_letters_stay_inside_the_image(phrase: str, width: int) -> None:
    image = draw_phrase(phrase, width)
    ink = np.asarray(image) < 128
    assert image.width == width and ink.any()
    assert not any(edge.any() for edge in (ink[0], ink[-1], ink[:, 0], ink[:, -1]))


def test_draw_phrase_is_deterministic_and_empty_phrases_raise() -> None:
    assert draw_phrase("a b", 64).tobytes() == draw_phrase("a  b ", 64).tobytes() != draw_phrase("a c", 64).tobytes()
    with pytest.raises(DataError, match="expected a word or more"):
        draw_phrase("  ")
    with pytest.raises(DataError, match="32 pixels"):
        draw_phrase("word", 8)


@pytest.mark.data
def test_real_phrases_are_all_drawn() -> None:
    folder = shared("noncommercial_cc_by_nc", "mm_safetybench")
    examples = mm_safety_images(folder, "TYPO", include_unscored=True, width=128)
    assert len(examples) == 1653 and sum(e.split == "test" and e.behavior == "defer" for e in examples) == 75
    assert all(len(e.images) == 1 for e in examples)
    assert Counter(e.meta["drawn"] for e in examples) == {"yes": 1653}
