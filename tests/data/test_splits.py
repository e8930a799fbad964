"""The published split, stratified splits and validation splits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steerlab import DataError, Example
from steerlab.data import ED_SLICE_PUBLISHED, published_split, stratified_split, validation_split


def examples_of(behaviors: list[str], split: str = "train") -> list[Example]:
    return [
        Example(id=f"row/{i}", prompt=f"question {i}", behavior=behavior, split=split)
        for i, behavior in enumerate(behaviors)
    ]


def test_published_split_has_the_published_numbers() -> None:
    train, test = published_split()
    assert (len(train), len(test)) == (1344, 336)
    assert ((test < 1125).sum(), (test < 1531).sum()) == (228, 303)
    assert np.array_equal(np.sort(np.concatenate([train, test])), np.arange(1680))
    sliced = test[test < 1531][227:303]
    assert len(sliced) == ED_SLICE_PUBLISHED == 76
    assert (sliced < 1125).sum() == 1, "the published slice includes one harmful row"


@pytest.mark.parametrize(("n", "fraction"), [(10, 0.0), (10, 1.0), (1, 0.8), (0, 0.5)])
def test_published_split_empty_part_raises(n: int, fraction: float) -> None:
    with pytest.raises(DataError, match="both need at least one"):
        published_split(n, fraction=fraction)


@given(
    behaviors=st.lists(st.sampled_from(["refuse", "defer", "answer"]), min_size=6, max_size=60),
    fraction=st.floats(0.2, 0.8),
    seed=st.integers(0, 2**32 - 1),
)
def test_validation_split_is_disjoint_complete_and_deterministic(
    behaviors: list[str], fraction: float, seed: int
) -> None:
    examples = examples_of(behaviors)
    try:
        train, validation = validation_split(examples, fraction, seed)
    except DataError:
        return  # so few examples per behavior that rounding empties a part
    ids = {e.id for e in train}, {e.id for e in validation}
    assert not ids[0] & ids[1] and ids[0] | ids[1] == {e.id for e in examples}
    assert (train, validation) == validation_split(examples, fraction, seed)
    assert ids[1] == {e.id for e in validation_split(examples[::-1], fraction, seed)[1]}, "the order does not matter"
    for behavior in set(behaviors):
        taken = sum(e.behavior == behavior for e in validation)
        assert abs(taken - fraction * behaviors.count(behavior)) <= 0.5 + 1e-6


def test_validation_split_depends_on_the_seed_and_never_takes_test_examples() -> None:
    training = examples_of(["refuse"] * 40)
    assert validation_split(training, 0.25, 0) != validation_split(training, 0.25, 1)
    test = [e.replace(id=f"test/{e.id}", split="test") for e in training]
    train, validation = validation_split([*test, *training], 0.2, 0)
    assert {e.id for e in [*train, *validation]} == {e.id for e in training}


@pytest.mark.parametrize(
    ("behaviors", "split", "fraction", "message"),
    [
        (["refuse"] * 4, "test", 0.5, r"\['test'\]"),
        (["refuse"] * 4, "train", 0.0, "between 0 and 1"),
        (["refuse"] * 4, "train", 1.0, "between 0 and 1"),
        (["refuse"] * 4, "train", -0.1, "between 0 and 1"),
        (["refuse", "defer"], "train", 0.1, "both need at least one"),
    ],
)
def test_validation_split_bad_input_raises(behaviors: list[str], split: str, fraction: float, message: str) -> None:
    with pytest.raises(DataError, match=message):
        validation_split(examples_of(behaviors, split), fraction, 0)


def test_stratified_split_keeps_the_order_and_assigns_every_example() -> None:
    examples = examples_of(["refuse", "defer"] * 10)
    divided = stratified_split(examples, {"train": 0.6, "validation": 0.2, "test": 0.2}, seed=1)
    assert [e.id for e in divided] == [e.id for e in examples]
    assert {e.split for e in divided} == {"train", "validation", "test"}
    with pytest.raises(DataError, match="sum to 1"):
        stratified_split(examples, {"train": 0.5, "test": 0.4})
