from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steerlab._support.errors import DataError
from steerlab.data import ED_SLICE_PUBLISHED, Example, published_split, stratified_split, validation_split


def rows_of(behaviors: list[str], split: str = "train") -> list[Example]:
    return [
        Example(id=f"row/{i}", prompt=f"question {i}", behavior=behavior, split=split)
        for i, behavior in enumerate(behaviors)
    ]


def test_published_split_has_the_published_numbers() -> None:
    train, test = published_split()
    assert (len(train), len(test)) == (1344, 336)
    assert (test < 1531).sum() == 303
    assert (test < 1125).sum() == 228
    assert ((test >= 1125) & (test < 1531)).sum() == 75


def test_published_split_covers_every_row_once() -> None:
    train, test = published_split()
    assert np.array_equal(np.sort(np.concatenate([train, test])), np.arange(1680))


def test_published_ed_slice_includes_one_harmful_row() -> None:
    scored = [index for index in published_split()[1] if index < 1531]
    sliced = scored[227:303]
    assert len(sliced) == ED_SLICE_PUBLISHED == 76
    assert sum(index < 1125 for index in sliced) == 1


@pytest.mark.parametrize(("n", "fraction"), [(10, 0.0), (10, 1.0), (1, 0.8), (0, 0.5)])
def test_published_split_refuses_an_empty_side(n: int, fraction: float) -> None:
    with pytest.raises(DataError, match="both need at least one"):
        published_split(n, fraction=fraction)


behaviors = st.lists(st.sampled_from(["refuse", "defer", "answer"]), min_size=6, max_size=60)


@given(behaviors=behaviors, fraction=st.floats(0.2, 0.8), seed=st.integers(0, 2**32 - 1))
def test_validation_split_is_disjoint_complete_and_deterministic(
    behaviors: list[str], fraction: float, seed: int
) -> None:
    rows = rows_of(behaviors)
    try:
        train, validation = validation_split(rows, fraction, seed)
    except DataError:
        return  # so few rows a behavior that rounding empties a side
    ids = [row.id for row in train], [row.id for row in validation]
    assert not set(ids[0]) & set(ids[1])
    assert set(ids[0]) | set(ids[1]) == {row.id for row in rows}
    assert (train, validation) == validation_split(rows, fraction, seed)
    for behavior in set(behaviors):
        taken = sum(row.behavior == behavior for row in validation)
        assert abs(taken - fraction * behaviors.count(behavior)) <= 0.5 + 1e-6


def test_validation_split_does_not_depend_on_row_order() -> None:
    rows = rows_of(["refuse", "defer"] * 20)
    chosen = {row.id for row in validation_split(rows, 0.25, 3)[1]}
    assert chosen == {row.id for row in validation_split(rows[::-1], 0.25, 3)[1]}


def test_validation_split_depends_on_the_seed() -> None:
    rows = rows_of(["refuse"] * 40)
    assert validation_split(rows, 0.25, 0) != validation_split(rows, 0.25, 1)


def test_validation_split_never_touches_test_rows() -> None:
    training = rows_of(["refuse"] * 10)
    test = [row.replace(id=f"test/{row.id}", split="test") for row in training]
    train, validation = validation_split([*test, *training], 0.2, 0)
    assert {row.id for row in [*train, *validation]} == {row.id for row in training}


def test_validation_split_without_training_rows_names_the_splits() -> None:
    with pytest.raises(DataError, match=r"\['test'\]"):
        validation_split(rows_of(["refuse"] * 4, split="test"), 0.5, 0)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 1.5])
def test_validation_split_refuses_an_impossible_fraction(fraction: float) -> None:
    with pytest.raises(DataError, match="between 0 and 1"):
        validation_split(rows_of(["refuse"] * 4), fraction, 0)


def test_validation_split_refuses_an_empty_side() -> None:
    with pytest.raises(DataError, match="both need at least one"):
        validation_split(rows_of(["refuse", "defer"]), 0.1, 0)


def test_stratified_split_refuses_shares_that_do_not_sum_to_one() -> None:
    with pytest.raises(DataError, match="sum to 1"):
        stratified_split(rows_of(["refuse"] * 4), {"train": 0.5, "test": 0.4})


def test_stratified_split_keeps_the_order_and_names_every_row() -> None:
    rows = rows_of(["refuse", "defer"] * 10)
    divided = stratified_split(rows, {"train": 0.6, "validation": 0.2, "test": 0.2}, seed=1)
    assert [row.id for row in divided] == [row.id for row in rows]
    assert {row.split for row in divided} == {"train", "validation", "test"}
