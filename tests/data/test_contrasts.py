from __future__ import annotations

import pytest

from steerlab._support.errors import DataError
from steerlab.data import (
    PUBLISHED_PAIRS,
    Contrast,
    Example,
    check_examples,
    with_contrasts,
)

REFUSE = Contrast("No.", "Yes.")
CLASS = Contrast("Harmful", "Safe")


def test_contrast_with_equal_sides_is_refused() -> None:
    with pytest.raises(DataError, match="zero vector"):
        Contrast("Yes.", "Yes.")


@pytest.mark.parametrize(("positive", "negative"), [("", "Yes."), ("No.", "  ")])
def test_contrast_with_an_empty_side_is_refused(positive: str, negative: str) -> None:
    with pytest.raises(DataError, match="non-empty"):
        Contrast(positive, negative)


def test_duplicated_ids_and_empty_sets_are_refused() -> None:
    row = Example(id="a/1", prompt="Hello")
    with pytest.raises(DataError, match="'a/1' occurs twice"):
        check_examples([row, row])
    with pytest.raises(DataError, match="empty"):
        check_examples([])


def test_class_goes_before_behavior() -> None:
    rows = [
        Example(id="1", prompt="a", behavior="refuse", meta={"class": "harmful"}),
        Example(id="2", prompt="b", behavior="refuse"),
    ]
    given = with_contrasts(rows, {"refuse": REFUSE, "harmful": CLASS})
    assert [row.contrast for row in given] == [CLASS, REFUSE]
    assert [row.contrast for row in rows] == [None, None]


def test_none_is_an_entry_and_clears_a_contrast() -> None:
    rows = [Example(id="1", prompt="a", behavior="answer", contrast=REFUSE)]
    assert with_contrasts(rows, {"answer": None})[0].contrast is None


def test_missing_entries_are_all_named() -> None:
    rows = [
        Example(id="1", prompt="a", behavior="refuse"),
        Example(id="2", prompt="b", behavior="defer", meta={"class": "health"}),
        Example(id="3", prompt="c", behavior=""),
    ]
    with pytest.raises(DataError, match=r"'defer', class 'health' \(1 examples\); behavior ''.*\['refuse'\]"):
        with_contrasts(rows, {"refuse": REFUSE})


def test_published_words_are_closed_and_have_read_positions() -> None:
    words = {
        family: {kind: (pair.positive, pair.negative) for kind, pair in pairs.items()}
        for family, pairs in PUBLISHED_PAIRS.items()
    }
    assert words["llava"]["expert"] == ("Expert", "AI")
    assert words["qwen"]["expert"] == words["qwen"]["health"] == ("Consult", "Ignore")
    assert {pairs["harmful"] for pairs in words.values()} == {("Harmful", "Safe")}
    for pairs in PUBLISHED_PAIRS.values():
        assert all(pair.end_turn and pair.suffix for pair in pairs.values())
    assert {name: pair.position for name, pair in PUBLISHED_PAIRS["qwen"].items()} == {
        "harmful": -1,
        "expert": -2,
        "health": -2,
    }
    assert {pair.position for pair in PUBLISHED_PAIRS["llava"].values()} == {-1}
