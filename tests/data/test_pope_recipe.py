"""POPE's recipe against its published definitions."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict

import pytest
from data_files import shared
from hypothesis import given
from hypothesis import strategies as st

from steerlab import DataError, Example
from steerlab.data import coco_objects, pope_file, pope_questions
from steerlab.data.pope_recipe import SPLITS, article

OBJECTS = {
    "a.jpg": ["dog", "ball", "person"],
    "b.jpg": ["cat", "sofa", "person"],
    "c.jpg": ["dog", "cat", "person", "orange"],
    "d.jpg": ["dog", "leash"],
}
NOUNS = ["person", "dog", "cat", "apple", "car", "bus", "chair", "elephant"]
annotations = st.dictionaries(
    st.sampled_from([f"{i}.jpg" for i in range(8)]), st.lists(st.sampled_from(NOUNS), max_size=6), min_size=1
)


def objects_by_image(examples: list[Example], label: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for example in examples:
        if example.behavior == label:
            found[example.meta["image"]].append(example.meta["object"])
    return found


def cooccurrence(objects_of: dict[str, set[str]], one: str, others: set[str]) -> int:
    """The number of images with `one` and another object, summed over the others."""
    return sum(len(objects & (others - {one})) for objects in objects_of.values() if one in objects)


@given(annotations, st.sampled_from(SPLITS), st.sampled_from([2, 4, 6]), st.sampled_from(["image", "question"]))
def test_answers_agree_with_the_annotations_and_are_balanced(
    objects_of: dict[str, list[str]], split: str, per_image: int, ranked_by: str
) -> None:
    try:
        examples = pope_questions(objects_of, split, per_image, ranked_by=ranked_by, fewer="shrink")
    except DataError:
        everything = set().union(*objects_of.values())
        assert all(not objects or everything <= set(objects) for objects in objects_of.values())
        return
    assert [e.behavior for e in examples] == ["yes", "no"] * (len(examples) // 2)
    assert all((e.meta["object"] in objects_of[e.meta["image"]]) == (e.behavior == "yes") for e in examples)
    for label in ("yes", "no"):
        for objects in objects_by_image(examples, label).values():
            assert len(set(objects)) == len(objects) <= per_image // 2


@given(annotations, st.sampled_from(["popular", "adversarial"]))
def test_absent_objects_are_the_most_frequent_or_cooccur_most_often(
    objects_of: dict[str, list[str]], split: str
) -> None:
    sets = {image: set(objects) for image, objects in objects_of.items()}
    frequency = Counter(one for objects in sets.values() for one in objects)

    def rank(image: str, one: str) -> int:
        return frequency[one] if split == "popular" else cooccurrence(sets, one, sets[image])

    try:
        examples = pope_questions(objects_of, split, fewer="shrink", ranked_by="image")
    except DataError:
        return
    for image, chosen in objects_by_image(examples, "no").items():
        others = [rank(image, one) for one in set(frequency) - sets[image] - set(chosen)]
        assert min(rank(image, one) for one in chosen) >= max(others, default=0)


def test_ranked_by_question_takes_the_object_seen_with_the_one_asked_about() -> None:
    objects_of = {
        "a.jpg": ["dog", "car"],
        **dict.fromkeys(["b.jpg", "c.jpg"], ("dog", "leash")),
        **dict.fromkeys(["d.jpg", "e.jpg", "f.jpg"], ("car", "road")),
    }
    examples = [e for e in pope_questions(objects_of, "adversarial", 4) if e.meta["image"] == "a.jpg"]
    pairs = {examples[i].meta["object"]: examples[i + 1].meta["object"] for i in (0, 2)}
    assert pairs == {"dog": "leash", "car": "road"}


def test_yes_questions_are_the_same_in_all_splits() -> None:
    halves = [objects_by_image(pope_questions(OBJECTS, split), "yes") for split in SPLITS]
    assert halves[0] == halves[1] == halves[2]


def test_equal_seeds_give_equal_questions_whatever_the_order() -> None:
    turned = {image: list(reversed(objects)) for image, objects in OBJECTS.items()}
    assert pope_questions(OBJECTS, "random", 2) == pope_questions(turned, "random", 2)
    assert len({tuple(e.id for e in pope_questions(OBJECTS, "random", 2, seed)) for seed in range(8)}) > 1


def test_ties_go_to_the_more_frequent_object_and_then_to_the_alphabet() -> None:
    examples = pope_questions(OBJECTS, "popular", 4)
    assert objects_by_image(examples, "no")["a.jpg"] == ["cat", "leash"]  # leash, orange and sofa occur once each
    examples = pope_questions(OBJECTS, "popular", 4, counts={**OBJECTS, "x": ["orange"]})
    assert objects_by_image(examples, "no")["a.jpg"] == ["cat", "orange"]
    examples = pope_questions({"a.jpg": ["dog"]}, "popular", 2, counts={"x": ["zebra", "dog"], "y": ["zebra"]})
    assert objects_by_image(examples, "no") == {"a.jpg": ["zebra"]}


def test_images_with_too_few_objects_are_skipped_or_get_fewer_questions(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert "d.jpg" not in objects_by_image(pope_questions(OBJECTS, "random"), "yes")
    assert "1 images have too few objects for 6 questions" in caplog.text
    assert len(objects_by_image(pope_questions(OBJECTS, "random", fewer="shrink"), "no")["d.jpg"]) == 2


@pytest.mark.parametrize(
    ("expected", "nouns"),
    [
        ("an", "orange, umbrella, hourglass, uninvited guest, onion, Apple, urn"),
        ("a", "utensil, unicycle, one-way sign, skis, house, urinal"),
    ],
)
def test_article_follows_the_sound(expected: str, nouns: str) -> None:
    assert {noun: article(noun) for noun in nouns.split(", ")} == dict.fromkeys(nouns.split(", "), expected)


@pytest.mark.parametrize(
    ("objects_of", "options", "message"),
    [
        (OBJECTS, {"split": "hard"}, "split='hard' is unknown; expected one of random, popular, adversarial"),
        (OBJECTS, {"per_image": 5}, "expected an even number"),
        ({"a.jpg": ["dog"]}, {}, "none of 1 images has 3 objects"),
    ],
)
def test_pope_questions_bad_options_raise(objects_of, options, message) -> None:
    with pytest.raises(DataError, match=message):
        pope_questions(objects_of, **{"split": "random", **options})


def contradictions(examples: list[Example], absent: dict[str, set[str]], per_question: bool) -> tuple[int, int]:
    """How often one absent object was chosen before another, and how often it was the other way round elsewhere."""
    before: set[tuple[str, str, str]] = set()
    used: dict[str, set[str]] = defaultdict(set)
    for present, other in zip(*(sorted_pairs(examples, label) for label in ("yes", "no")), strict=True):
        image, chosen = other
        used[image].add(chosen)
        before |= {(present[1] * per_question, chosen, left) for left in absent[image] - used[image]}
    return len(before), sum((key, left, chosen) in before for key, chosen, left in before)


def sorted_pairs(examples: list[Example], label: str) -> list[tuple[str, str]]:
    pairs = [(e.meta["image"], e.meta["object"]) for e in examples if e.behavior == label]
    return sorted(pairs, key=lambda pair: pair[0])


@pytest.mark.data
@pytest.mark.parametrize("source", ["coco_pope", "aokvqa_pope_seem", "gqa_pope_seem"])
def test_published_files_rank_absent_objects_the_same_way(source: str) -> None:
    parts = {split: pope_file(shared("pope", f"{source}_{split}.jsonl")) for split in SPLITS}
    absent: dict[str, set[str]] = defaultdict(set)
    for examples in parts.values():
        for image, objects in objects_by_image(examples, "no").items():
            absent[image].update(objects)
    seen, against = contradictions(parts["popular"], absent, per_question=False)
    assert seen > 500 and against == 0  # one order for all images
    seen, against = contradictions(parts["adversarial"], absent, per_question=True)
    assert seen > 3000 and against == 0  # one order for each object asked about, as ranked_by="question"
    assert contradictions(parts["adversarial"], absent, per_question=False)[1] > 500
    assert contradictions(parts["random"], absent, per_question=False)[1] > 500


@pytest.mark.data
@pytest.mark.parametrize("split", SPLITS)
def test_questions_match_those_of_an_independent_implementation(split: str) -> None:
    folder = shared("coco_free")
    objects_of, counts = coco_objects(folder / "annotations.jsonl"), coco_objects(folder / "objects_all.jsonl")
    theirs = pope_file(folder / f"pope_style_{split}.jsonl", images=folder / "images")
    options = {"counts": counts, "fewer": "shrink", "ranked_by": "image", "images": folder / "images"}
    ours = pope_questions(objects_of, split, **options)
    frequency = Counter(one for objects in counts.values() for one in objects)

    def rank(image: str, one: str) -> int:
        if split == "random":
            return 0
        return frequency[one] if split == "popular" else cooccurrence(counts, one, objects_of[image])

    absent, expected = objects_by_image(ours, "no"), objects_by_image(theirs, "no")
    assert set(expected) <= set(absent)
    for image, others in expected.items():
        assert not set(others) & objects_of[image]
        ranks = [sorted(rank(image, one) for one in names) for names in (others, absent[image])]
        assert ranks[0] == ranks[1]
    assert {e.meta["object"] for e in theirs if e.behavior == "yes"} <= set().union(*objects_of.values())
    assert len(ours) == 536 + 22  # eleven images with one object get questions, too
