"""Examples, contrasts, splits, the demo set, and the docstrings of all data modules."""

import doctest
import importlib
import pkgutil
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import steerlab.data
from steerlab import Contrast, Example, data
from steerlab.errors import DataError

REFUSE = Contrast("No.", "Yes.")
CLASS = Contrast("Harmful", "Safe")


def test_with_contrasts_prefers_class_over_behavior_and_none_clears():
    rows = [
        Example(id="1", prompt="a", behavior="refuse", meta={"class": "harmful"}),
        Example(id="2", prompt="b", behavior="refuse"),
        Example(id="3", prompt="c", behavior="answer", contrast=REFUSE),
    ]
    given = data.with_contrasts(rows, {"refuse": REFUSE, "harmful": CLASS, "answer": None})
    assert [row.contrast for row in given] == [CLASS, REFUSE, None]
    assert [row.contrast for row in rows] == [None, None, REFUSE]
    others = [Example("b", id="2", behavior="defer", meta={"class": "health"}), *examples_of(["refuse", ""])]
    with pytest.raises(DataError, match=r"'defer', class 'health' \(1 examples\); behavior ''.*\['refuse'\]"):
        data.with_contrasts(others, {"refuse": REFUSE})


def test_published_pairs_end_the_turn_and_have_positions():
    pairs = {
        (family, kind): (pair.positive, pair.negative, pair.position)
        for family, kinds in data.PUBLISHED_PAIRS.items()
        for kind, pair in kinds.items()
    }
    assert pairs == {
        ("llava", "harmful"): ("Harmful", "Safe", -1), ("llava", "expert"): ("Expert", "AI", -1),
        ("llava", "health"): ("Consult", "Ignore", -1), ("qwen", "harmful"): ("Harmful", "Safe", -1),
        ("qwen", "expert"): ("Consult", "Ignore", -2), ("qwen", "health"): ("Consult", "Ignore", -2),
    }  # fmt: skip
    assert all(pair.end_turn and pair.suffix for kinds in data.PUBLISHED_PAIRS.values() for pair in kinds.values())


def examples_of(behaviors: list[str], split: str = "train") -> list[Example]:
    return [Example(f"question {i}", id=f"row/{i}", behavior=name, split=split) for i, name in enumerate(behaviors)]


def test_published_split_has_the_published_numbers():
    train, test = data.published_split()
    assert (len(train), len(test)) == (1344, 336)
    assert ((test < 1125).sum(), (test < 1531).sum()) == (228, 303)
    assert np.array_equal(np.sort(np.concatenate([train, test])), np.arange(1680))
    sliced = test[test < 1531][227:303]
    assert len(sliced) == data.ED_SLICE_PUBLISHED == 76
    assert (sliced < 1125).sum() == 1, "the published slice includes one harmful row"


@given(
    behaviors=st.lists(st.sampled_from(["refuse", "defer", "answer"]), min_size=6, max_size=60),
    fraction=st.floats(0.2, 0.8),
    seed=st.integers(0, 2**32 - 1),
)
def test_validation_split_is_disjoint_complete_and_deterministic(behaviors, fraction, seed):
    examples = examples_of(behaviors)
    try:
        train, validation = data.validation_split(examples, fraction, seed)
    except DataError:
        return  # so few examples per behavior that rounding empties a part
    ids = {e.id for e in train}, {e.id for e in validation}
    assert not ids[0] & ids[1] and ids[0] | ids[1] == {e.id for e in examples}
    assert (train, validation) == data.validation_split(examples, fraction, seed)
    backwards = data.validation_split(examples[::-1], fraction, seed)[1]
    assert ids[1] == {e.id for e in backwards}, "the order does not matter"
    for behavior in set(behaviors):
        taken = sum(e.behavior == behavior for e in validation)
        assert abs(taken - fraction * behaviors.count(behavior)) <= 0.5 + 1e-6


def test_validation_split_depends_on_the_seed_and_never_takes_test_examples():
    training = examples_of(["refuse"] * 40)
    assert data.validation_split(training, 0.25, 0) != data.validation_split(training, 0.25, 1)
    test = [e.replace(id=f"test/{e.id}", split="test") for e in training]
    train, validation = data.validation_split([*test, *training], 0.2, 0)
    assert {e.id for e in [*train, *validation]} == {e.id for e in training}


def test_stratified_split_keeps_the_order_and_assigns_every_example():
    examples = examples_of(["refuse", "defer"] * 10)
    divided = data.stratified_split(examples, {"train": 0.6, "validation": 0.2, "test": 0.2}, seed=1)
    assert [e.id for e in divided] == [e.id for e in examples]
    assert {e.split for e in divided} == {"train", "validation", "test"}


DEMO = data.demo_set()
BEHAVIORS = {"refuse": 200, "defer": 180, "answer": 120}
SHARES = {"train": 0.6, "validation": 0.15, "test": 0.25}


def normalize(text: str) -> str:
    return " ".join("".join(c if c.isalnum() else " " for c in text.lower()).split())


def test_demo_prompts_have_no_near_duplicates():
    assert len({normalize(row.prompt) for row in DEMO}) == len(DEMO)
    words = [(row.prompt, set(normalize(row.prompt).split())) for row in DEMO if row.behavior != "refuse"]
    assert not [(p, q) for (p, a), (q, b) in combinations(words, 2) if len(a & b) > 0.6 * len(a | b)]


def test_demo_splits_are_disjoint_and_stratified():
    by_split = {name: {row.prompt for row in data.check_examples(DEMO) if row.split == name} for name in SHARES}
    assert sum(len(prompts) for prompts in by_split.values()) == 500
    assert not any(by_split[a] & by_split[b] for a, b in combinations(SHARES, 2))
    counts = Counter((row.behavior, row.split) for row in DEMO)
    for behavior, total in BEHAVIORS.items():
        expected = {name: round(share * total) for name, share in SHARES.items()}
        assert {name: counts[behavior, name] for name in SHARES} == expected
    topics = Counter((row.meta["topic"], row.split) for row in DEMO if row.behavior == "defer")
    sizes = {"train": 36, "validation": 9, "test": 15}
    assert topics == {(topic, name): n for topic in ("legal", "financial", "health") for name, n in sizes.items()}


def test_demo_set_seed_changes_only_the_splits():
    other = data.demo_set(seed=1)
    assert data.demo_set(seed=0) == DEMO
    assert data.data_hash(DEMO) == data.data_hash(other)
    assert [row.split for row in DEMO] != [row.split for row in other]


def test_demo_examples_to_answer_alone_have_no_contrast():
    assert all((row.contrast is None) == (row.behavior == "answer") for row in DEMO)
    assert data.with_contrasts(DEMO, data.demo_contrasts()) == DEMO


@pytest.mark.parametrize("name", ["", *(f".{module.name}" for module in pkgutil.iter_modules(steerlab.data.__path__))])
def test_docstring_examples_of_data_modules(name):
    assert doctest.testmod(importlib.import_module(f"steerlab.data{name}")).failed == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Contrast("Yes.", "Yes."), "zero vector"),
        (lambda: Contrast("", "Yes."), "non-empty"),
        (lambda: Contrast("No.", "  "), "non-empty"),
        (lambda: data.check_examples([Example("Hello", id="a/1"), Example("Hello", id="a/1")]), "'a/1' occurs twice"),
        (lambda: data.check_examples([]), "empty"),
        (lambda: data.published_split(10, fraction=0.0), "both need at least one"),
        (lambda: data.published_split(10, fraction=1.0), "both need at least one"),
        (lambda: data.published_split(1, fraction=0.8), "both need at least one"),
        (lambda: data.published_split(0, fraction=0.5), "both need at least one"),
        (lambda: data.validation_split(examples_of(["refuse"] * 4, "test"), 0.5, 0), r"\['test'\]"),
        (lambda: data.validation_split(examples_of(["refuse"] * 4), 0.0, 0), "between 0 and 1"),
        (lambda: data.validation_split(examples_of(["refuse"] * 4), -0.1, 0), "between 0 and 1"),
        (lambda: data.validation_split(examples_of(["refuse", "defer"]), 0.1, 0), "would get none"),
    ],
)
def test_impossible_contrasts_sets_and_splits_raise(call, message):
    with pytest.raises(DataError, match=message):
        call()
