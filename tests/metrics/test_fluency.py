"""Distinct n-grams, loops, fluency and identical answers."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steerlab.errors import DataError
from steerlab.metrics import distinct_n, is_fluent, repetition, share_identical
from steerlab.metrics.fluency import words

sentences = st.lists(st.sampled_from("abcde"), max_size=30).map(" ".join)


@given(sentences, st.integers(1, 5))
def test_distinct_n_is_a_share_of_the_ngrams(text: str, n: int) -> None:
    tokens = text.split()
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    value = distinct_n(text, n)
    if not grams:
        assert math.isnan(value)
    else:
        assert value == len(set(grams)) / len(grams)


@pytest.mark.parametrize("copies", [2, 3, 7])
@given(chunk=st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=6))
def test_repetition_of_a_pure_loop_is_one(copies: int, chunk: list[str]) -> None:
    assert repetition(" ".join(chunk * copies)) == 1


@given(st.permutations([f"w{i}" for i in range(8)]))
def test_repetition_of_distinct_words_is_zero(order: list[str]) -> None:
    assert repetition(" ".join(order)) == 0


def test_repetition_counts_adjacent_copies_only() -> None:
    assert repetition("a b x a b y a b") == 0
    assert repetition("x a b a b a y z") == 5 / 8  # the cut-off third copy belongs to the loop


def test_distinct_n_ignores_case_and_punctuation() -> None:
    assert distinct_n("I can't! I CAN'T. I can't") == 2 / 5


@pytest.mark.parametrize(
    ("text", "options", "fluent"),
    [
        ("Boil the eggs for six minutes.", {}, True), ("", {}, False), ("Yes.", {}, False), ("no " * 20, {}, False),
        ("I can't help with that. " * 5, {}, False), ("I can't help with that.", {}, True),
        ("Yes.", {"min_words": 1}, True), ("", {"min_words": 1}, False),
    ],
)  # fmt: skip
def test_is_fluent_requires_enough_words_and_distinct_bigrams(text: str, options: dict, fluent: bool) -> None:
    assert is_fluent(text, **options) is fluent


def test_fluency_needs_a_perplexity_within_the_bound_where_one_is_given() -> None:
    text = "Boil the eggs for six minutes."
    assert is_fluent(text, perplexity=5.75) and not is_fluent(text, perplexity=5.76)
    assert is_fluent(text, perplexity=9.0, max_perplexity=10.0) and not is_fluent("no " * 20, perplexity=1.1)
    assert not is_fluent(text, perplexity=math.nan), "an unknown perplexity is not a low one"
    with pytest.raises(DataError, match="at least 1"):
        is_fluent(text, perplexity=0.5)


def test_each_character_of_a_script_without_spaces_is_a_word() -> None:
    assert words("请放在 dry 的地方") == ["请", "放", "在", "dry", "的", "地", "方"]
    assert is_fluent("乾いた場所に保管してください。") and not is_fluent("保管" * 12)
    assert words("don't día мир") == ["don't", "día", "мир"]
    assert words("हिन्दी में résumé") == ["हिन्दी", "में", "résumé"], "marks belong to their letters"


def test_share_identical_compares_every_character() -> None:
    assert share_identical(["a", "b", "c", "d"], ["a", "b ", "C", "d"]) == 0.5
    with pytest.raises(DataError, match="2 and 1"):
        share_identical(["a", "b"], ["a"])
    with pytest.raises(DataError, match="0 and 0"):
        share_identical([], [])
