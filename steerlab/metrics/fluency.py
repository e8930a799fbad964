"""Cheap signs that a strong vector has broken the text: too few different n-grams, and loops."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from steerlab._support.errors import DataError
from steerlab.metrics._checks import as_texts

_WORD = re.compile(r"\w+(?:['’]\w+)*")


def words(text: str) -> list[str]:
    """Lower-cased words; punctuation is dropped, "can't" is one word."""
    return _WORD.findall(text.lower())


def distinct_n(text: str, n: int = 2) -> float:
    """Distinct n-grams divided by all n-grams of one text.

    Example:
        >>> distinct_n("no no no no")
        0.3333333333333333

    Args:
        text: one answer.
        n: words per n-gram, at least 1.

    Returns:
        A share in (0, 1]; NaN for a text of fewer than `n` words, which has no n-gram to judge.

    Raises:
        DataError: `n` below 1.

    Source: Li et al. (2016), arXiv 1510.03055, per text instead of per corpus.
    """
    if n < 1:
        raise DataError(f"distinct_n got n={n}; expected at least 1")
    tokens = words(text)
    grams = list(zip(*(tokens[i:] for i in range(n)), strict=False))
    return len(set(grams)) / len(grams) if grams else math.nan


def distinct_n_mean(texts: Iterable[str], n: int = 2) -> float:
    """The mean of `distinct_n` over texts, leaving out those of fewer than `n` words.

    Example:
        >>> distinct_n_mean(["a b c", "a", "no no no"])
        0.75

    Args:
        texts: one answer per input.
        n: words per n-gram.

    Returns:
        A share in (0, 1], or NaN if every text is too short.

    Raises:
        DataError: no texts, or `n` below 1.
    """
    values = [v for v in (distinct_n(t, n) for t in as_texts(texts, "distinct_n_mean")) if not math.isnan(v)]
    return sum(values) / len(values) if values else math.nan


def repetition(text: str) -> float:
    """The share of the words that lie in the longest loop: one chunk, at least twice, back to back.

    Example:
        >>> repetition("I can't help. I can't help. I can't")
        1.0
        >>> repetition("Boil the eggs, then cool them.")
        0.0

    Args:
        text: one answer; a last, cut-off copy of the chunk belongs to the loop.

    Returns:
        A share in [0, 1]; 0 for an empty text.
    """
    tokens = words(text)
    longest = max((_loop(tokens, period) for period in range(1, len(tokens) // 2 + 1)), default=0)
    return longest / len(tokens) if tokens else 0.0


def is_fluent(text: str, *, min_distinct2: float = 0.5, min_words: int = 3) -> bool:
    """Whether a text is long enough and varied enough to be worth reading.

    Example:
        >>> is_fluent("Boil the eggs for six minutes."), is_fluent("eggs eggs eggs eggs eggs")
        (True, False)

    Args:
        text: one answer.
        min_distinct2: least `distinct_n(text, 2)`, a share.
        min_words: least number of words.

    Source: thresholds are ours; they catch loops, not nonsense made of different words (perplexity does).
    """
    if len(words(text)) < min_words:
        return False
    value = distinct_n(text, 2)
    return math.isnan(value) or value >= min_distinct2


def _loop(tokens: list[str], period: int) -> int:
    """Words in the longest stretch that repeats itself after `period` words; 0 without two full copies."""
    best = run = 0
    for i in range(len(tokens) - period):
        run = run + 1 if tokens[i] == tokens[i + period] else 0
        best = max(best, run)
    return best + period if best >= period else 0
