"""Counts of the wanted answers' letters and words, balanced subsets, and the split of the steerability paper."""

from __future__ import annotations

import random
import warnings
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate

import pandas as pd

from steerlab._support.checks import as_number
from steerlab.data.example import Example, check_examples
from steerlab.errors import DataError

PARTS = ("train", "validation", "test")
LETTERS = ("A", "B")


def answer_position_counts(examples: Sequence[Example]) -> pd.DataFrame:
    """How often the wanted answer has each letter and begins with each word.

    Example:
        >>> examples = [Example("?", id=str(i), meta={"option": "AABB"[i], "word": "Yes"}) for i in range(4)]
        >>> answer_position_counts(examples).to_dict("records")
        [{'option': 'A', 'word': 'Yes', 'n': 2}, {'option': 'B', 'word': 'Yes', 'n': 2}]

    Args:
        examples: as from `mwe` or `truthfulqa_mc`.

    Returns:
        The columns option, word ("" where the options do not begin with Yes and No) and n, one row for every
        combination of a letter and a word that occurs, also where n is 0.

    Raises:
        DataError: no examples, or one without its wanted letter in `meta["option"]`.
    """
    counts = Counter((_letter(example), example.meta.get("word", "")) for example in examples)
    if not counts:
        raise DataError("there are no rows whose answers could be counted; check the set and the split.")
    words = sorted({word for _, word in counts})
    return pd.DataFrame([{"option": a, "word": word, "n": counts[a, word]} for a in LETTERS for word in words])


def check_balance(examples: Sequence[Example], tolerance: float = 0.05) -> pd.DataFrame:
    """The counts of `answer_position_counts`, with a warning if one letter is the wanted answer too often.

    A mean difference over such examples contains, besides the behavior, the difference between the two letters.

    Example:
        >>> examples = [Example("?", id=str(i), meta={"option": "AB"[i % 2], "word": ""}) for i in range(4)]
        >>> check_balance(examples)["n"].to_list()
        [2, 2]

    Args:
        examples: the examples that a vector is to be fitted on.
        tolerance: largest allowed difference of A's share from a half; 0 allows equal counts only.

    Warns:
        UserWarning: the share differs by more; the message holds the counts.

    Raises:
        DataError: as `answer_position_counts`, or a tolerance outside 0..0.5.

    Source: steerability, arXiv 2407.12404 (letter and word as spurious factors).
    """
    if not 0 <= as_number("tolerance", tolerance) <= 0.5:
        raise DataError(f"the tolerance must lie between 0 and 0.5, got {tolerance}; 0.05 is usual.")
    frame = answer_position_counts(examples)
    n = {letter: int(frame.loc[frame["option"] == letter, "n"].sum()) for letter in LETTERS}
    total = sum(n.values())
    if abs(n["A"] / total - 0.5) > tolerance + 1e-9:
        names = ", ".join(sorted({example.behavior for example in examples})) or "the set"
        counts = ", ".join(f"{a}-{w or 'other'} {k}" for a, w, k in frame.itertuples(index=False))
        warnings.warn(
            f"{names}: the wanted answer is (A) in {n['A']} and (B) in {n['B']} of {total} items ({counts}). A vector "
            "fitted on them also contains the letter; fit on `balance_options(examples)`.",
            UserWarning,
            stacklevel=2,
        )
    return frame


def balance_options(examples: Sequence[Example], seed: int = 0) -> list[Example]:
    """The examples without a random few, so that (A) and (B) are the wanted answer equally often.

    Example:
        >>> examples = [Example("?", id=str(i), meta={"option": "AAAB"[i]}) for i in range(4)]
        >>> [example.meta["option"] for example in balance_options(examples)]
        ['A', 'B']

    Args:
        examples: examples of one set and one split; order and ids are kept.
        seed: decides which examples are dropped.

    Raises:
        DataError: no examples, duplicated ids, or one of the letters is never the wanted answer.
    """
    rows = check_examples(examples)
    ids = {letter: [row.id for row in rows if _letter(row) == letter] for letter in LETTERS}
    counts = {letter: len(found) for letter, found in ids.items()}
    if not all(counts.values()):
        raise DataError(f"these rows cannot be balanced: the counts of wanted answers are {counts}. Give rows of both.")
    draw = random.Random(seed)
    kept = {id_ for letter in LETTERS for id_ in draw.sample(ids[letter], min(counts.values()))}
    return [row for row in rows if row.id in kept]


def paper_split(
    examples: Sequence[Example], fractions: Sequence[float] = (0.4, 0.1, 0.5), seed: int = 0
) -> list[Example]:
    """The examples in order, split as in the steerability paper: 40 % train, 10 % validation, 50 % test.

    Example:
        >>> examples = paper_split([Example("?", id=str(i)) for i in range(10)])
        >>> [sum(example.split == part for example in examples) for part in ("train", "validation", "test")]
        [4, 1, 5]

    Args:
        examples: all examples of one set in the order of its file, on which the split depends.
        fractions: the shares of train, validation and test; they sum to 1, and one may be 0.
        seed: of Python's own generator, whose shuffle is frozen; 0 is the paper's.

    Raises:
        DataError: no examples, duplicated ids, fractions that do not sum to 1, or too few examples for a part.

    Source: steerability, arXiv 2407.12404, released code (shuffle, then cut where a part's end is rounded down).
    """
    rows = check_examples(examples)
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-9:
        raise DataError(f"the fractions must be three shares that sum to 1, got {fractions}; rescale them.")
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    # 1e-9: .4 + .1 must not be cut at .4999...
    ends = [*(int(end * len(rows) + 1e-9) for end in accumulate(fractions[:2])), len(rows)]
    part_of: dict[int, str] = {}
    for part, share, begin, end in zip(PARTS, fractions, [0, *ends], ends, strict=False):
        if share and begin == end:
            raise DataError(f"{share} of {len(rows)} rows leaves none for {part!r}; give more rows or another share.")
        part_of.update(dict.fromkeys(order[begin:end], part))
    return [row.replace(split=part_of[i]) for i, row in enumerate(rows)]


def _letter(example: Example) -> str:
    letter = example.meta.get("option", "")
    if letter not in LETTERS:
        raise DataError(f"{example.id!r} has {letter!r} as meta['option']; expected 'A' or 'B', as `mwe` writes it.")
    return letter
