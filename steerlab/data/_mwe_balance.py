"""Where the wanted answer stands, as letter and as word, and which items train."""

from __future__ import annotations

import random
import warnings
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate

import pandas as pd

from steerlab._support.errors import DataError
from steerlab.data.example import Example, check_examples

PARTS = ("train", "validation", "test")
LETTERS = ("A", "B")


def answer_position_counts(examples: Sequence[Example]) -> pd.DataFrame:
    """How often the wanted answer stands under each letter and begins with each word.

    Example:
        >>> rows = [Example(str(i), "?", meta={"option": "AABB"[i], "word": "Yes"}) for i in range(4)]
        >>> answer_position_counts(rows).to_dict("records")
        [{'option': 'A', 'word': 'Yes', 'n': 2}, {'option': 'B', 'word': 'Yes', 'n': 2}]

    Args:
        examples: rows of `mwe` or `truthfulqa_mc`.

    Returns:
        The columns option, word ("" where the options do not begin with Yes and No) and n, one row for every
        letter with every word that occurs, also where n is 0.

    Raises:
        DataError: no rows, or a row that does not say where its wanted answer stands.
    """
    counts = Counter((_letter(row), row.meta.get("word", "")) for row in examples)
    if not counts:
        raise DataError("there are no rows whose answers could be counted; check the set and the split.")
    words = sorted({word for _, word in counts})
    cells = [(letter, word) for letter in LETTERS for word in words]
    return pd.DataFrame([{"option": a, "word": w, "n": counts[a, w]} for a, w in cells])


def check_balance(examples: Sequence[Example], tolerance: float = 0.05) -> pd.DataFrame:
    """Count the placements, and warn where one letter holds the wanted answer too often.

    A mean difference over such rows holds, besides the behavior, the difference between the two letters.

    Example:
        >>> rows = [Example(str(i), "?", meta={"option": "AB"[i % 2], "word": ""}) for i in range(4)]
        >>> check_balance(rows)["n"].to_list()
        [2, 2]

    Args:
        examples: the rows that a vector is to be trained on.
        tolerance: by how much the share of A may differ from a half; 0 allows equal counts only.

    Returns:
        As `answer_position_counts`.

    Warns:
        UserWarning: the share differs by more; the message holds the counts.

    Raises:
        DataError: as `answer_position_counts`, or a tolerance outside 0..0.5.

    Source: steerability, arXiv 2407.12404 (letter and word as spurious factors).
    """
    if not 0 <= tolerance <= 0.5:
        raise DataError(f"the tolerance must lie between 0 and 0.5, got {tolerance}; 0.05 is usual.")
    frame = answer_position_counts(examples)
    n = {letter: int(frame.loc[frame["option"] == letter, "n"].sum()) for letter in LETTERS}
    total = sum(n.values())
    if abs(n["A"] / total - 0.5) > tolerance + 1e-9:
        names = ", ".join(sorted({row.behavior for row in examples})) or "the set"
        cells = ", ".join(f"{a}-{w or 'other'} {k}" for a, w, k in frame.itertuples(index=False))
        warnings.warn(
            f"{names}: the wanted answer is (A) in {n['A']} and (B) in {n['B']} of {total} items ({cells}). A vector "
            "trained on them also holds the letter; train on `balanced(examples)`.",
            UserWarning,
            stacklevel=2,
        )
    return frame


def balance_options(examples: Sequence[Example], seed: int = 0) -> list[Example]:
    """The examples without a few, drawn by chance, so that A and B hold the wanted answer equally often.

    Example:
        >>> rows = [Example(str(i), "?", meta={"option": "AAAB"[i]}) for i in range(4)]
        >>> [row.meta["option"] for row in balance_options(rows)]
        ['A', 'B']

    Args:
        examples: rows of one set and one split, of which order and ids are kept.
        seed: another seed, another choice of what is dropped.

    Raises:
        DataError: no rows, duplicated ids, or one of the letters never holds the wanted answer.
    """
    rows = check_examples(examples)
    ids = {letter: [row.id for row in rows if _letter(row) == letter] for letter in LETTERS}
    fewest = min(map(len, ids.values()))
    if not fewest:
        counts = {letter: len(found) for letter, found in ids.items()}
        raise DataError(f"these rows cannot be balanced: the wanted answers stand at {counts}. Give rows of both.")
    draw = random.Random(seed)
    kept = {id_ for letter in LETTERS for id_ in draw.sample(ids[letter], fewest)}
    return [row for row in rows if row.id in kept]


def paper_split(
    examples: Sequence[Example], fractions: Sequence[float] = (0.4, 0.1, 0.5), seed: int = 0
) -> list[Example]:
    """The examples in their own order, `split` set as in the steerability paper: 40 % train, 10 % validate, 50 % test.

    Example:
        >>> rows = paper_split([Example(str(i), "?") for i in range(10)])
        >>> [sum(row.split == part for row in rows) for part in ("train", "validation", "test")]
        [4, 1, 5]

    Args:
        examples: all rows of one set in the order of its file, which decides, with the seed, who goes where.
        fractions: the shares that train, validate and test; they sum to 1, and one may be 0.
        seed: of Python's own generator, whose shuffle is frozen; 0 is the paper's.

    Raises:
        DataError: no rows, duplicated ids, fractions that are no shares of 1, or too few rows for one of them.

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


def _letter(row: Example) -> str:
    letter = row.meta.get("option", "")
    if letter not in LETTERS:
        raise DataError(f"{row.id!r} has {letter!r} as meta['option']; expected 'A' or 'B', as `mwe` writes it.")
    return letter
