"""MM-SafetyBench: the texts with the published split, the images, and drawn phrases."""

import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from data_files import draw, shared, write

from steerlab import data
from steerlab._support.images import open_image
from steerlab.data.mm_safety_bench import SCENARIOS
from steerlab.errors import DataError, LoadError

REAL = ("noncommercial_cc_by_nc", "mm_safetybench")
IDS = (97, 163, 44, 144, 122, 154, 109, 153, 139, 130, 167, 109, 149)


def write_folder(folder: Path, ids: tuple[int, ...] = (1,) * 13, **more: object) -> Path:
    for scenario, count in zip(SCENARIOS, ids, strict=True):
        records = {
            str(key): {
                "Question": f"Question {key} of {scenario.number}?",
                "Changed Question": f"List steps for {key} of {scenario.number}.",
                "Key Phrase": f"phrase {key} of {scenario.number}",
                "Rephrased Question": "The bottom shows a phrase.",
                "Rephrased Question(SD)": "The image shows a phrase.",
            }
            for key in range(count)
        }
        write(folder / scenario.file, records | more)
    return folder


@pytest.fixture
def folder(tmp_path):
    """Every scenario with two records, and one that was removed."""
    return write_folder(tmp_path, (2,) * 13, **{"2": {"removed": True}})


def test_each_scenario_has_its_behavior_and_class(tmp_path):
    examples = data.mm_safety_bench(write_folder(tmp_path), include_unscored=True, strict=False)
    assert [e.id for e in examples] == [f"mmsb/{n:02d}/0" for n in range(1, 14)]
    assert [e.behavior for e in examples] == ["refuse"] * 9 + ["defer"] * 3 + [""]
    assert [e.meta["class"] for e in examples] == ["harmful"] * 9 + ["expert"] * 2 + ["health"] + ["harmful"]
    assert examples[9].meta == {"scenario": "10", "name": "Legal_Opinion", "class": "expert", "index": "9"}
    assert data.mm_safety_bench(tmp_path, strict=False) == examples[:-1], "the unscored scenario is left out by default"
    assert data.mm_safety_bench(tmp_path, field="Changed Question", strict=False)[0].prompt == "List steps for 0 of 01."


def test_split_is_the_published_one_and_removed_records_keep_their_index(tmp_path):
    examples = data.mm_safety_bench(write_folder(tmp_path, IDS), include_unscored=True)
    assert [int(e.meta["index"]) for e in examples if e.split == "test"] == data.published_split()[1].tolist()
    assert sum(e.split == "test" and e.behavior == "defer" for e in examples) == 75
    write_folder(tmp_path, IDS, **{"5": {"removed": True}})
    rest = data.mm_safety_bench(tmp_path, include_unscored=True)
    assert rest == [e for e in examples if not e.id.endswith("/5")], "with the same index and split"


@pytest.fixture(scope="module")
def real():
    return data.mm_safety_bench(shared(*REAL), include_unscored=True)


@pytest.mark.data
def test_real_files_give_every_record_that_was_not_removed(real):
    counts = Counter(e.meta["scenario"] for e in real)
    assert len(real) == 1653 and real[-1].meta["index"] == "1679"
    removed = {f"{n:02d}": ids - counts[f"{n:02d}"] for n, ids in enumerate(IDS, start=1)}
    assert {scenario: count for scenario, count in removed.items() if count} == {"01": 6, "04": 21}
    assert sum(e.split == "test" and e.behavior == "defer" for e in real) == 75


@pytest.mark.data
def test_published_pairs_cover_every_class(real):
    for pairs in data.PUBLISHED_PAIRS.values():
        paired = data.with_contrasts(real, pairs)
        assert all(e.contrast is not None and e.contrast.end_turn for e in paired)
        assert data.data_hash(paired) != data.data_hash(real)


IMAGE = Path("imgs/02-HateSpeech")


def test_image_examples_keep_order_and_split_of_the_texts(folder):
    texts = data.mm_safety_bench(folder, strict=False)
    examples = data.mm_safety_images(folder, "TYPO", strict=False, width=64)
    assert [e.id for e in examples] == [f"{text.id}/TYPO" for text in texts]
    assert [(e.split, e.behavior) for e in examples] == [(text.split, text.behavior) for text in texts]
    assert examples[0].prompt == "The bottom shows a phrase."
    added = {"kind": "TYPO", "phrase": "phrase 0 of 01", "image": "01-Illegal_Activitiy/TYPO/0.jpg", "drawn": "yes"}
    assert examples[0].meta == {**texts[0].meta, **added}
    assert all(e.contrast for e in data.with_contrasts(examples, data.PUBLISHED_PAIRS["llava"]))


def test_each_kind_has_its_question_and_folder(folder):
    with pytest.raises(DataError, match=r"only TYPO is drawn, not SD\) lacks 24 images.*01-Illegal_Activitiy/SD/0"):
        data.mm_safety_images(folder, "SD", strict=False)
    for kind in ("SD", "TYPO", "SD_TYPO"):
        draw(folder / IMAGE / kind / "1.jpg")
    for kind, word in (("SD", "image"), ("SD_TYPO", "bottom")):
        (example,) = data.mm_safety_images(folder, kind, images=folder / "imgs", missing="skip", strict=False)
        assert example.id == f"mmsb/02/1/{kind}" and word in example.prompt and example.meta["drawn"] == "no"
        assert example.images == (folder / IMAGE / kind / "1.jpg",)
    examples = data.mm_safety_images(folder, "TYPO", images=folder / "imgs", strict=False, width=64, field="Question")
    assert len(examples) == 24 and [e.id for e in examples if e.meta["drawn"] == "no"] == ["mmsb/02/1/TYPO"]
    assert examples[0].prompt == "Question 0 of 01?"


def test_sd_typo_draws_the_phrase_below_the_image(folder, caplog):
    draw(folder / IMAGE / "SD" / "1.jpg", (96, 64))
    with caplog.at_level(logging.WARNING):
        (example,) = data.mm_safety_images(folder, "SD_TYPO", images=folder / "imgs", missing="skip", strict=False)
    assert "lacks 23 images of 23 of 24 examples" in caplog.text and example.meta["drawn"] == "yes"
    both = open_image(example.images[0])
    strip = data.draw_phrase("phrase 1 of 02", 96)
    assert both.size == (96, 64 + strip.height) and both.getpixel((5, 5))[0] > 200 > both.getpixel((5, 5))[1]
    assert both.crop((0, 64, *both.size)).convert("L").tobytes() == strip.tobytes()


def test_drawn_images_can_be_saved_and_are_found_again(folder):
    first = data.mm_safety_images(folder, "TYPO", strict=False, save=folder / "imgs", width=64)
    again = data.mm_safety_images(folder, "TYPO", strict=False, images=folder / "imgs")
    assert [e.images for e in first] == [e.images for e in again] and again[0].meta["drawn"] == "no"


@pytest.mark.parametrize("phrase", ["word", "a phrase of seven words in some lines", "w" * 90])
@pytest.mark.parametrize("width", [64, 300])
def test_drawn_letters_stay_inside_the_image(phrase, width):
    image = data.draw_phrase(phrase, width)
    ink = np.asarray(image) < 128
    assert image.width == width and ink.any()
    assert not any(edge.any() for edge in (ink[0], ink[-1], ink[:, 0], ink[:, -1]))


def test_draw_phrase_is_deterministic():
    one, same, other = (data.draw_phrase(phrase, 64).tobytes() for phrase in ("a b", "a  b ", "a c"))
    assert one == same != other


@pytest.mark.data
def test_real_phrases_are_all_drawn():
    examples = data.mm_safety_images(shared(*REAL), "TYPO", include_unscored=True, width=128)
    assert len(examples) == 1653 and sum(e.split == "test" and e.behavior == "defer" for e in examples) == 75
    assert all(len(e.images) == 1 and e.meta["drawn"] == "yes" for e in examples)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        *((broken, r"04-Physical_Harm\.json") for broken in ("not json", "[1, 2]", '{"0": "text"}')),
        ('{"0": {"Answer": "?"}}', r"04-Physical_Harm\.json, id 0: no field 'Question'.*Answer"),
        (None, r"lacks 04-Physical_Harm\.json\. Expected"),
    ],
)
def test_broken_or_missing_scenario_files_raise(folder, content, message):
    file = folder / SCENARIOS[3].file
    file.unlink()
    if content is not None:
        file.write_text(content, encoding="utf-8")
    with pytest.raises(LoadError, match=message):
        data.mm_safety_bench(folder, strict=False)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda folder: data.mm_safety_bench(folder / "no"), LoadError, r"01-Illegal_Activitiy\.json.*13-Gov_Decision"),
        (lambda folder: data.mm_safety_bench(write_folder(folder)), LoadError, r"has 1, not 97.*strict=False"),
        (lambda folder: data.mm_safety_bench(write_folder(folder, (0,) * 13), strict=False), DataError, "empty"),
    ],
)
def test_missing_records_images_and_phrases_raise(folder, call, error, message):
    with pytest.raises(error, match=message):
        call(folder)
