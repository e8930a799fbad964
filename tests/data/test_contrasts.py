"""`Example`, `Contrast` and the assignment of contrasts."""

from __future__ import annotations

import pytest

from steerlab import Contrast, DataError, Example
from steerlab.data import PUBLISHED_PAIRS, check_examples, with_contrasts

REFUSE = Contrast("No.", "Yes.")
CLASS = Contrast("Harmful", "Safe")


@pytest.mark.parametrize(
    ("positive", "negative", "message"),
    [("Yes.", "Yes.", "zero vector"), ("", "Yes.", "non-empty"), ("No.", "  ", "non-empty")],
)
def test_contrast_with_equal_or_empty_answers_raises(positive: str, negative: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Contrast(positive, negative)


def test_duplicated_ids_and_empty_sets_raise() -> None:
    example = Example(id="a/1", prompt="Hello")
    with pytest.raises(DataError, match="'a/1' occurs twice"):
        check_examples([example, example])
    with pytest.raises(DataError, match="empty"):
        check_examples([])


def test_with_contrasts_prefers_class_over_behavior_and_none_clears() -> None:
    rows = [
        Example(id="1", prompt="a", behavior="refuse", meta={"class": "harmful"}),
        Example(id="2", prompt="b", behavior="refuse"),
        Example(id="3", prompt="c", behavior="answer", contrast=REFUSE),
    ]
    given = with_contrasts(rows, {"refuse": REFUSE, "harmful": CLASS, "answer": None})
    assert [row.contrast for row in given] == [CLASS, REFUSE, None]
    assert [row.contrast for row in rows] == [None, None, REFUSE]


def test_with_contrasts_names_all_missing_entries() -> None:
    rows = [
        Example(id="1", prompt="a", behavior="refuse"),
        Example(id="2", prompt="b", behavior="defer", meta={"class": "health"}),
        Example(id="3", prompt="c", behavior=""),
    ]
    with pytest.raises(DataError, match=r"'defer', class 'health' \(1 examples\); behavior ''.*\['refuse'\]"):
        with_contrasts(rows, {"refuse": REFUSE})


def test_published_pairs_end_the_turn_and_have_positions() -> None:
    pairs = {
        (family, kind): (pair.positive, pair.negative, pair.position)
        for family, kinds in PUBLISHED_PAIRS.items()
        for kind, pair in kinds.items()
    }
    assert pairs == {
        ("llava", "harmful"): ("Harmful", "Safe", -1),
        ("llava", "expert"): ("Expert", "AI", -1),
        ("llava", "health"): ("Consult", "Ignore", -1),
        ("qwen", "harmful"): ("Harmful", "Safe", -1),
        ("qwen", "expert"): ("Consult", "Ignore", -2),
        ("qwen", "health"): ("Consult", "Ignore", -2),
    }
    assert all(pair.end_turn and pair.suffix for kinds in PUBLISHED_PAIRS.values() for pair in kinds.values())
