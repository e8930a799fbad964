"""CHAIR: mentioned objects, hallucinated ones, and the scores."""

import json
import math
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steerlab.data import coco_objects, coco_synonyms
from steerlab.errors import DataError
from steerlab.metrics import chair, mentioned_objects

OBJECTS = sorted(coco_synonyms())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Two dogs and a dog.", ["dog", "dog"]), ("A hot dog near a dog", ["hot dog", "dog"]),
        ("A teddy-bear on a bed", ["teddy bear", "bed"]), ("Women, policemen and children", ["person"] * 3),
        ("knives, couches, buses, ponies and wine glasses", ["knife", "couch", "bus", "horse", "wine glass"]),
        ("mice beside geese", ["mouse", "bird"]),
        ("A baby bird, a baby, a passenger train", ["bird", "person", "train"]),
        ("An adult animal in a toilet seat's place", ["toilet"]),
        ("Somebody carries a catalogue past the doghouse", []),
        ("THE MAN'S SUV; the dogs' ball", ["person", "car", "dog", "sports ball"]),
        ("an orange cat", ["orange", "cat"]), ("", []),
    ],
)  # fmt: skip
def test_mentions_are_whole_words_in_singular_and_plural(text: str, expected: list[str]) -> None:
    assert mentioned_objects(text) == expected


@pytest.mark.parametrize("thing", OBJECTS)
def test_every_coco_name_is_found(thing: str) -> None:
    for name in (thing, *coco_synonyms()[thing]):
        assert mentioned_objects(f"we see {name.upper()}, here") == [thing]


def test_scores_of_three_captions() -> None:
    captions = {"a": "A dog, a dog and a cat.", "b": "A man on a bench.", "c": "Nothing much."}
    scores = chair(captions, {"a": ["dog"], "b": ["person", "bench"], "c": ["car"]})
    assert (scores.chair_s, scores.chair_i, scores.recall) == (1 / 3, 1 / 5, 3 / 4)
    assert (scores.length, scores.n) == (14 / 3, 3)
    assert scores.captions["a"].hallucinated == {"cat"} and scores.captions["a"].mentioned == {"dog", "cat"}
    assert (scores.captions["a"].n_mentions, scores.captions["a"].n_hallucinated) == (3, 1)


def test_objects_of_references_count_as_present() -> None:
    captions, objects = {"a": "A dog with a ball."}, {"a": ["dog"]}
    assert chair(captions, objects).chair_s == 1
    scores = chair(captions, objects, references={"a": ["A puppy plays.", "A ball!"]})
    assert (scores.chair_s, scores.recall) == (0, 1)


def test_vocabulary_can_be_given() -> None:
    words = {"red square": ["crimson square"], "square": [], "sphere": ("orb",)}
    scores = chair({"a": "Red squares, a square, an orb"}, {"a": ["crimson square"]}, words)
    assert scores.captions["a"].mentioned == {"red square", "square", "sphere"}
    assert scores.captions["a"].hallucinated == {"square", "sphere"}


def test_scores_without_mentions_or_objects_are_nan() -> None:
    scores = chair({"a": "Hm."}, {"a": []})
    assert scores.chair_s == 0 and math.isnan(scores.chair_i) and math.isnan(scores.recall)


captions_of = st.dictionaries(
    st.sampled_from("abcd"),
    st.tuples(st.lists(st.sampled_from(OBJECTS), max_size=6), st.sets(st.sampled_from(OBJECTS), max_size=6)),
    min_size=1,
)


@given(captions_of)
def test_scores_equal_counts_of_the_lists(rows: dict[str, tuple[list[str], set[str]]]) -> None:
    captions = {key: "; ".join(f"a {name}" for name in said) for key, (said, _) in rows.items()}
    scores = chair(captions, {key: there for key, (_, there) in rows.items()})
    wrong = {key: [name for name in said if name not in there] for key, (said, there) in rows.items()}
    n_said, n_wrong = (sum(map(len, lists)) for lists in ((s for s, _ in rows.values()), wrong.values()))
    assert scores.chair_s == sum(map(bool, wrong.values())) / len(rows)
    assert scores.chair_i == pytest.approx(n_wrong / n_said if n_said else math.nan, nan_ok=True)
    assert {key: set(one.hallucinated) for key, one in scores.captions.items()} == {k: set(w) for k, w in wrong.items()}
    full = chair(captions, {key: {*said, *there} for key, (said, there) in rows.items()})
    assert full.chair_s == 0 and (math.isnan(full.chair_i) or full.chair_i == 0)


def test_bad_input_is_refused() -> None:
    with pytest.raises(DataError, match="no word"):
        chair({"a": "x"}, {"a": []}, {"x": ["..."]})
    with pytest.raises(DataError, match="a list of human captions"):
        chair({"a": "x"}, {"a": []}, references={"a": "A dog."})
    assert chair({"a": "A dog."}, {"a": []}, references={}).chair_s == 1, "a caption may have none"


@pytest.mark.data("coco_free")
def test_human_captions_have_low_scores() -> None:
    folder = Path(os.environ["STEERLAB_DATA"]) / "coco_free"
    records = map(json.loads, (folder / "annotations.jsonl").read_text().splitlines())
    texts = {record["image"]: record["captions"] for record in records if record["captions"]}
    objects = coco_objects(folder / "annotations.jsonl")
    first = {key: said[0] for key, said in texts.items()}
    alone = chair(first, objects)
    helped = chair(first, objects, references={key: said[1:] for key, said in texts.items()})
    assert alone.n == 87 and alone.chair_s < 0.15 and helped.chair_s < 0.05
    assert helped.chair_i <= alone.chair_i < alone.chair_s
