"""POPE against scikit-learn, and the identity behind the published number."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score

from steerlab.errors import DataError
from steerlab.metrics import l2s_accuracy, l2s_f1, parse_yes_no, pope_scores

answers = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40)


@given(st.lists(st.booleans(), min_size=1, max_size=50))
@example([False])
@example([True])
@example([True] * 4 + [False])
def test_l2s_f1_is_the_f1_against_all_true(correct: list[bool]) -> None:
    accuracy = sum(correct) / len(correct)
    assert l2s_f1(accuracy) == pytest.approx(f1_score([True] * len(correct), correct, zero_division=0))


@given(answers)
def test_scores_of_parsed_answers_equal_scikit_learn(pairs: list[tuple[bool, bool]]) -> None:
    gold, said = ([p[i] for p in pairs] for i in (0, 1))
    names = {True: "yes", False: "no"}
    got = pope_scores([names[g] for g in gold], [names[s].title() + ", indeed." for s in said])
    assert got.accuracy == accuracy_score(gold, said)
    assert got.yes_rate == sum(said) / len(said)
    for value, score in ((got.precision, precision_score), (got.recall, recall_score), (got.f1, f1_score)):
        assert value == pytest.approx(score(gold, said, zero_division=float("nan")), nan_ok=True)


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("Yes.", "yes"), ("NO", "no"), ("Yes, another one.", "yes"), ("Another dog, nothing else.", None),
        ("The image shows no cat.", "no"), ("", None), ("Noël: yes", "yes"),
        ("word " * 12 + "yes", None), ("word " * 11 + "yes", "yes"),
    ],
)  # fmt: skip
def test_parse_yes_no_finds_the_first_whole_word(text: str, parsed: str | None) -> None:
    assert parse_yes_no(text) == parsed


def test_unparsed_answers_count_as_wrong_and_not_as_yes() -> None:
    got = pope_scores(["yes", "no"], ["perhaps", "perhaps"])
    assert (got.accuracy, got.recall, got.yes_rate, got.parse_failures, got.n) == (0, 0, 0, 2, 2)
    assert got.precision != got.precision


def test_l2s_accuracy_searches_substrings_of_fifteen_characters() -> None:
    gold = ["no", "no", "yes", "yes"]
    said = ["Yes, another dog.", "There is none of them", "YES", "I would say that yes"]
    assert l2s_accuracy(gold, said) == 0.75 and pope_scores(gold, said).accuracy == 0.5
    with pytest.raises(DataError, match="2 labels and 1 answers"):
        l2s_accuracy(["yes", "no"], ["yes"])
