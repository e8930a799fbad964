"""The built-in data set, and the docstring examples of all data modules."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from collections import Counter
from itertools import combinations

import pytest

import steerlab.data
from steerlab.data import Example, check_examples, data_hash, demo_contrasts, demo_set, with_contrasts

BEHAVIORS = {"refuse": 200, "defer": 180, "answer": 120}
SPLITS = {"train": 0.6, "validation": 0.15, "test": 0.25}


@pytest.fixture(scope="module")
def demo() -> list[Example]:
    return demo_set()


def normalize(text: str) -> str:
    return " ".join("".join(c if c.isalnum() else " " for c in text.lower()).split())


def test_demo_set_counts(demo: list[Example]) -> None:
    assert Counter(row.behavior for row in check_examples(demo)) == BEHAVIORS
    topics = Counter(row.meta["topic"] for row in demo if row.behavior == "defer")
    assert topics == {"legal": 60, "financial": 60, "health": 60}


def test_demo_prompts_have_no_near_duplicates(demo: list[Example]) -> None:
    assert len({normalize(row.prompt) for row in demo}) == len(demo)
    words = [(row.prompt, set(normalize(row.prompt).split())) for row in demo if row.behavior != "refuse"]
    assert not [(p, q) for (p, a), (q, b) in combinations(words, 2) if len(a & b) > 0.6 * len(a | b)]


def test_demo_splits_are_disjoint_and_stratified(demo: list[Example]) -> None:
    by_split = {name: {row.prompt for row in demo if row.split == name} for name in SPLITS}
    assert sum(len(prompts) for prompts in by_split.values()) == 500
    assert not any(by_split[a] & by_split[b] for a, b in combinations(SPLITS, 2))
    counts = Counter((row.behavior, row.split) for row in demo)
    for behavior, total in BEHAVIORS.items():
        expected = {name: round(share * total) for name, share in SPLITS.items()}
        assert {name: counts[behavior, name] for name in SPLITS} == expected
    topics = Counter((row.meta["topic"], row.split) for row in demo if row.behavior == "defer")
    assert set(topics.values()) == {36, 9, 15}


def test_demo_set_seed_changes_only_the_splits(demo: list[Example]) -> None:
    other = demo_set(seed=1)
    assert demo == demo_set(seed=0)
    assert data_hash(demo) == data_hash(other)
    assert [row.split for row in demo] != [row.split for row in other]


def test_demo_examples_to_answer_alone_have_no_contrast(demo: list[Example]) -> None:
    assert all((row.contrast is None) == (row.behavior == "answer") for row in demo)
    assert with_contrasts(demo, demo_contrasts()) == demo


@pytest.mark.parametrize("name", ["", *(f".{module.name}" for module in pkgutil.iter_modules(steerlab.data.__path__))])
def test_docstring_examples_of_data_modules(name: str) -> None:
    assert doctest.testmod(importlib.import_module(f"steerlab.data{name}")).failed == 0
