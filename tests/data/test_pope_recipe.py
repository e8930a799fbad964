"""POPE's recipe against its published definitions."""

from __future__ import annotations

import logging
import os
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steerlab._support.errors import DataError
from steerlab.data import Example, coco_objects, pope_file, pope_questions
from steerlab.data.pope_recipe import SPLITS, article

SHOWN = {
    "a.jpg": ["dog", "ball", "person"],
    "b.jpg": ["cat", "sofa", "person"],
    "c.jpg": ["dog", "cat", "person", "orange"],
    "d.jpg": ["dog", "leash"],
}
THINGS = ["person", "dog", "cat", "apple", "car", "bus", "chair", "elephant"]
images = st.dictionaries(
    st.sampled_from([f"{i}.jpg" for i in range(8)]),
    st.lists(st.sampled_from(THINGS), max_size=6),
    min_size=1,
)


def asked(rows: list[Example], label: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if row.behavior == label:
            found[row.meta["image"]].append(row.meta["object"])
    return found


def near(shown: dict[str, set[str]], one: str, others: set[str]) -> int:
    """In how many pictures `one` is together with each of the others, added up."""
    return sum(len(objects & (others - {one})) for objects in shown.values() if one in objects)


@given(images, st.sampled_from(SPLITS), st.sampled_from([2, 4, 6]), st.sampled_from(["image", "question"]))
def test_answers_agree_with_the_annotations_and_are_balanced(
    shown: dict[str, list[str]], split: str, per_image: int, ranked_by: str
) -> None:
    try:
        rows = pope_questions(shown, split, per_image, ranked_by=ranked_by, fewer="shrink")
    except DataError:
        everything = set().union(*shown.values())
        assert all(not objects or everything <= set(objects) for objects in shown.values())
        return
    assert [row.behavior for row in rows] == ["yes", "no"] * (len(rows) // 2)
    assert all((row.meta["object"] in shown[row.meta["image"]]) == (row.behavior == "yes") for row in rows)
    for objects in (*asked(rows, "yes").values(), *asked(rows, "no").values()):
        assert len(set(objects)) == len(objects) <= per_image // 2


@given(images)
def test_popular_asks_for_the_most_frequent_absent_objects(shown: dict[str, list[str]]) -> None:
    often = Counter(one for objects in shown.values() for one in set(objects))
    try:
        rows = pope_questions(shown, "popular", fewer="shrink")
    except DataError:
        return
    for image, others in asked(rows, "no").items():
        left = [often[one] for one in often if one not in shown[image] and one not in others]
        assert min(often[one] for one in others) >= max(left, default=0)


@given(images)
def test_adversarial_asks_for_what_is_most_often_together_with_the_objects(shown: dict[str, list[str]]) -> None:
    sets = {image: set(objects) for image, objects in shown.items()}
    try:
        rows = pope_questions(shown, "adversarial", fewer="shrink", ranked_by="image")
    except DataError:
        return
    for image, others in asked(rows, "no").items():
        absent = set(THINGS).intersection(*[set().union(*sets.values())]) - sets[image]
        left = [near(sets, one, sets[image]) for one in absent - set(others)]
        assert min(near(sets, one, sets[image]) for one in others) >= max(left, default=0)


def test_each_question_can_have_its_own_adversary() -> None:
    shown = {
        "a.jpg": ["dog", "car"],
        "b.jpg": ["dog", "leash"],
        "c.jpg": ["dog", "leash"],
        "d.jpg": ["car", "road"],
        "e.jpg": ["car", "road"],
        "f.jpg": ["car", "road"],
    }
    rows = [r for r in pope_questions(shown, "adversarial", 4) if r.meta["image"] == "a.jpg"]
    pairs = {rows[i].meta["object"]: rows[i + 1].meta["object"] for i in (0, 2)}
    assert pairs == {"dog": "leash", "car": "road"}


def test_the_yes_half_is_the_same_in_all_three_splits() -> None:
    halves = [asked(pope_questions(SHOWN, split), "yes") for split in SPLITS]
    assert halves[0] == halves[1] == halves[2]


def test_equal_seeds_ask_the_same_and_order_does_not_matter() -> None:
    turned = {image: list(reversed(objects)) for image, objects in SHOWN.items()}
    assert pope_questions(SHOWN, "random", 2) == pope_questions(turned, "random", 2)
    drawn = {tuple(row.id for row in pope_questions(SHOWN, "random", 2, seed)) for seed in range(8)}
    assert len(drawn) > 1


def test_ties_go_to_the_more_frequent_object_and_then_to_the_alphabet() -> None:
    rows = pope_questions(SHOWN, "popular", 4)
    assert asked(rows, "no")["a.jpg"] == ["cat", "leash"]  # leash, orange and sofa are there once each
    counts = {**SHOWN, "x": ["orange"]}
    assert asked(pope_questions(SHOWN, "popular", 4, counts=counts), "no")["a.jpg"] == ["cat", "orange"]


def test_counts_bring_their_vocabulary_along() -> None:
    rows = pope_questions({"a.jpg": ["dog"]}, "popular", 2, counts={"x": ["zebra", "dog"], "y": ["zebra"]})
    assert asked(rows, "no") == {"a.jpg": ["zebra"]}


def test_pictures_with_too_few_objects_are_left_out_or_asked_less(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert "d.jpg" not in asked(pope_questions(SHOWN, "random"), "yes")
    assert "1 pictures have too few objects for 6 questions" in caplog.text
    assert len(asked(pope_questions(SHOWN, "random", fewer="shrink"), "no")["d.jpg"]) == 2


@pytest.mark.parametrize(
    ("noun", "expected"),
    [
        ("orange", "an"),
        ("umbrella", "an"),
        ("hourglass", "an"),
        ("utensil", "a"),
        ("unicycle", "a"),
        ("uninvited guest", "an"),
        ("one-way sign", "a"),
        ("onion", "an"),
        ("Apple", "an"),
        ("skis", "a"),
        ("house", "a"),
        ("urn", "an"),
        ("urinal", "a"),
    ],
)
def test_article_follows_the_sound(noun: str, expected: str) -> None:
    assert article(noun) == expected


def test_bad_options_are_refused() -> None:
    with pytest.raises(DataError, match="split='hard' is unknown; expected one of random, popular, adversarial"):
        pope_questions(SHOWN, "hard")
    with pytest.raises(DataError, match="expected an even number"):
        pope_questions(SHOWN, "random", 5)
    with pytest.raises(DataError, match="none of 1 pictures has 3 objects"):
        pope_questions({"a.jpg": ["dog"]}, "random")


def contradictions(rows: list[Example], absent: dict[str, set[str]], per_question: bool) -> tuple[int, int]:
    """How often one absent object was asked for before another, and how often the other came first elsewhere."""
    before: set[tuple[str, str, str]] = set()
    used: dict[str, set[str]] = defaultdict(set)
    for there, other in zip(*(asked_in_order(rows, label) for label in ("yes", "no")), strict=True):
        image, chosen = other
        used[image].add(chosen)
        before |= {(there[1] * per_question, chosen, left) for left in absent[image] - used[image]}
    return len(before), sum((key, left, chosen) in before for key, chosen, left in before)


def asked_in_order(rows: list[Example], label: str) -> list[tuple[str, str]]:
    return sorted(
        ((row.meta["image"], row.meta["object"]) for row in rows if row.behavior == label), key=lambda pair: pair[0]
    )


@pytest.mark.data
@pytest.mark.parametrize("source", ["coco_pope", "aokvqa_pope_seem", "gqa_pope_seem"])
def test_published_files_rank_absent_objects_as_we_do(free: Path, source: str) -> None:
    parts = {split: pope_file(free.parent / "pope" / f"{source}_{split}.jsonl") for split in SPLITS}
    absent: dict[str, set[str]] = defaultdict(set)
    for rows in parts.values():
        for image, objects in asked(rows, "no").items():
            absent[image].update(objects)
    seen, against = contradictions(parts["popular"], absent, per_question=False)
    assert seen > 500 and against == 0  # one order for all pictures
    seen, against = contradictions(parts["adversarial"], absent, per_question=True)
    assert seen > 3000 and against == 0  # one order for each object asked about, as ranked_by="question"
    assert contradictions(parts["adversarial"], absent, per_question=False)[1] > 500
    assert contradictions(parts["random"], absent, per_question=False)[1] > 500


@pytest.fixture(scope="module")
def free() -> Path:
    folder = Path(os.environ.get("STEERLAB_DATA", "nowhere")) / "coco_free"
    if not folder.is_dir():
        pytest.skip("STEERLAB_DATA names no folder with coco_free")
    return folder


@pytest.mark.data
@pytest.mark.parametrize("split", SPLITS)
def test_the_recipe_meets_the_questions_made_elsewhere(free: Path, split: str) -> None:
    shown, counts = coco_objects(free / "annotations.jsonl"), coco_objects(free / "objects_all.jsonl")
    made = pope_file(free / f"pope_style_{split}.jsonl", images=free / "images")
    options = {"counts": counts, "fewer": "shrink", "ranked_by": "image", "images": free / "images"}
    ours = pope_questions(shown, split, **options)
    often = Counter(one for objects in counts.values() for one in objects)

    def rank(image: str, one: str) -> int:
        if split == "random":
            return 0
        return often[one] if split == "popular" else near(counts, one, shown[image])

    mine, theirs = asked(ours, "no"), asked(made, "no")
    assert set(theirs) <= set(mine)
    for image, others in theirs.items():
        assert not set(others) & shown[image]
        ranks = [sorted(rank(image, one) for one in names) for names in (others, mine[image])]
        assert ranks[0] == ranks[1]
    assert {row.meta["object"] for row in made if row.behavior == "yes"} <= set().union(*shown.values())
    assert len(ours) == 536 + 22  # eleven pictures of one object are asked too
