"""Signs of degenerate text under strong steering (few distinct n-grams, loops), and the share of unchanged answers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import regex  # whose words keep their combining marks: those of Indic scripts, and accents written apart

from steerlab._support.checks import as_text, as_texts, as_whole
from steerlab.errors import DataError

# Thai, Japanese and Chinese have no spaces between words: there each character counts as one
_UNSPACED = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff"
_WORD = regex.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+(?:['’][^\W{_UNSPACED}]+)*")


def words(text: str) -> list[str]:
    """The lower-cased words of a text without punctuation; "can't" is one word."""
    return _WORD.findall(as_text(text).lower())


def distinct_n(text: str, n: int = 2) -> float:
    """The number of distinct n-grams of one text divided by the number of its n-grams.

    Example:
        >>> distinct_n("no no no no")
        0.3333333333333333

    Args:
        text: one answer.
        n: words per n-gram, at least 1.

    Returns:
        A share in (0, 1]; NaN for a text of fewer than `n` words, which has no n-gram.

    Raises:
        DataError: `n` below 1.

    Source: Li et al. (2016), arXiv 1510.03055, per text instead of per corpus.
    """
    as_whole("n", n)
    tokens = words(text)
    grams = list(zip(*(tokens[i:] for i in range(n)), strict=False))
    return len(set(grams)) / len(grams) if grams else math.nan


def repetition(text: str) -> float:
    """The share of words that lie in the longest loop: one chunk of words repeated back to back at least twice.

    Example:
        >>> repetition("I can't help. I can't help. I can't")
        1.0
        >>> repetition("Boil the eggs, then cool them.")
        0.0

    Args:
        text: one answer; a truncated last copy of the chunk belongs to the loop.

    Returns:
        A share in [0, 1]; 0 for an empty text.
    """
    tokens = words(text)
    longest = max((_loop(tokens, period) for period in range(1, len(tokens) // 2 + 1)), default=0)
    return longest / len(tokens) if tokens else 0.0


def is_fluent(
    text: str, *, perplexity: float | None = None, min_distinct2: float = 0.8, max_perplexity: float = 5.75,
    min_words: int = 3,
) -> bool:  # fmt: skip
    """Whether a text has enough words and distinct bigrams, and is not too unlikely for the unsteered model.

    Example:
        >>> is_fluent("Boil the eggs for six minutes."), is_fluent("eggs eggs eggs eggs eggs")
        (True, False)
        >>> is_fluent("I'm sorry for any misgripations of the role.", perplexity=9.2)
        False

    Args:
        text: one answer.
        perplexity: of the text under the unsteered model (`metrics.perplexity`); without it, only words are counted.
        min_distinct2: the minimum of `distinct_n(text, 2)`.
        max_perplexity: the maximum of `perplexity`.
        min_words: the minimum number of words.

    Two readers called 400 answers of about 25 words, steered and not, fluent or not, without knowing the method. Where
    they agree with each other (.97), the rule with the perplexity agrees with them on .92 (kappa .78; .90 and .94 on
    the halves of the answers when both thresholds are chosen on the other half) and finds 67 of 77 broken texts.
    Without the perplexity it agrees on .90 (kappa .64) and finds 43: nonsense made of distinct words passes. All
    broken texts were those of a model of 135 million parameters, and so is the bound: of one of 500 million, no text
    was broken, and none reached it. Choose it anew for a model whose own answers come near it. Long texts repeat word
    pairs naturally: lower `min_distinct2` beyond some 200 words. How a text ends is not judged: of 1,196 steered
    answers that ended by themselves none broke off in a sentence, so a rule for it could not be tested.

    Raises:
        DataError: the perplexity is below 1.
    """
    if perplexity is not None and perplexity < 1:
        raise DataError(f"perplexity is {perplexity}; expected at least 1: the exponential of a mean surprise in nats")
    if len(words(text)) < min_words or (perplexity is not None and not perplexity <= max_perplexity):
        return False
    value = distinct_n(text, 2)
    return math.isnan(value) or value >= min_distinct2


def share_identical(before: Sequence[str], after: Sequence[str]) -> float:
    """The share of answers that are identical, character by character, with and without steering.

    Example:
        >>> share_identical(["A park.", "Two dogs."], ["A park.", "Two cats."])
        0.5

    Args:
        before: answers without steering.
        after: answers with steering, in the same order.

    Raises:
        DataError: nothing to compare, different lengths, or one string instead of a list.

    Source: L2S, arXiv 2508.12815, appendix (safe questions of VLGuard).
    """
    before, after = as_texts("before", before), as_texts("after", after)
    if not before or len(before) != len(after):
        raise DataError(f"share_identical got {len(before)} and {len(after)} texts; expected as many, at least 1")
    return sum(map(str.__eq__, before, after)) / len(before)


def _loop(tokens: list[str], period: int) -> int:
    """Number of words in the longest stretch with this period; 0 without two full copies."""
    best = run = 0
    for i in range(len(tokens) - period):
        run = run + 1 if tokens[i] == tokens[i + period] else 0
        best = max(best, run)
    return best + period if best >= period else 0
