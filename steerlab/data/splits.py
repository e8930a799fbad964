"""Which rows train, which validate and which test."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from steerlab._support.errors import DataError
from steerlab.data.example import Example, check_examples

ED_SLICE_PUBLISHED = 76
"""Rows behind each published ED-score: the reference slices 227..303 of the sorted, scored test rows.

The harmful test rows fill 0..227, so the first of the 76 is a harmful one; the honest count is 75.
Only for comparing with published numbers.
"""


def published_split(
    n: int = 1680, seed: int = 21, fraction: float = 0.8
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The train and test row numbers of the L2S paper's safety study, each in ascending order.

    Example:
        >>> train, test = published_split()
        >>> len(train), len(test), int((test < 1531).sum()), int((test < 1125).sum())
        (1344, 336, 303, 228)

    Args:
        n: rows before anything is removed or filtered.
        seed: of NumPy's legacy generator, whose stream is frozen; the newer one would give another split.
        fraction: share that trains, 0 < fraction < 1; `int(fraction * n)` rows.

    Raises:
        DataError: the fraction leaves one side empty.

    Source: L2S, arXiv 2508.12815, released code; 1531 and 1125 are where its scored and harmful rows end.
    """
    cut = int(fraction * n)
    if not 0 < cut < n:
        raise DataError(
            f"{fraction} of {n} rows leaves {cut} to train and {n - cut} to test; both need at least one. "
            "Choose a fraction between 0 and 1, or give more rows."
        )
    order = np.arange(n, dtype=np.int64)
    np.random.RandomState(seed).shuffle(order)
    return np.sort(order[:cut]), np.sort(order[cut:])


def stratified_split(
    examples: Sequence[Example],
    fractions: Mapping[str, float],
    *,
    seed: int = 0,
    by: Callable[[Example], str] = lambda example: example.behavior,
) -> list[Example]:
    """The examples in their own order, `split` set so that every stratum is divided in the same shares.

    Example:
        >>> rows = [Example(id=str(i), prompt=f"question {i}", behavior="ab"[i % 2]) for i in range(20)]
        >>> divided = stratified_split(rows, {"train": 0.8, "test": 0.2})
        >>> sorted(row.behavior for row in divided if row.split == "test")
        ['a', 'a', 'b', 'b']

    Args:
        examples: rows with unique ids; their order does not matter, only ids and strata do.
        fractions: split name -> share, positive and summing to 1.
        seed: another seed, another division.
        by: the stratum of an example.

    Raises:
        DataError: no rows, duplicated ids, or fractions that are not shares of 1.
    """
    rows = check_examples(examples)
    if any(share <= 0 for share in fractions.values()) or abs(sum(fractions.values()) - 1) > 1e-9:
        raise DataError(f"fractions must be positive and sum to 1, got {dict(fractions)}; rescale them.")
    strata: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        strata[by(row)].append(row.id)
    random = np.random.RandomState(seed)
    ends = list(accumulate(fractions.values()))
    split_of: dict[str, str] = {}
    for stratum in sorted(strata):
        ids = sorted(strata[stratum])
        order = random.permutation(len(ids))
        begin = 0
        for name, end in zip(fractions, ends, strict=True):
            # ends are rounded, not sizes, so that nothing is lost; 1e-9 absorbs .6 + .15 = .7499...
            stop = int(end * len(ids) + 0.5 + 1e-9)
            split_of.update((ids[i], name) for i in order[begin:stop])
            begin = stop
    return [row.replace(split=split_of[row.id]) for row in rows]


def validation_split(
    examples: Sequence[Example], fraction: float = 0.2, seed: int = 0
) -> tuple[list[Example], list[Example]]:
    """Take a validation set out of the training rows, in the same share from every behavior.

    Example:
        >>> rows = [Example(id=str(i), prompt=f"question {i}", split="train") for i in range(10)]
        >>> train, validation = validation_split(rows, fraction=0.2, seed=0)
        >>> len(train), len(validation), validation[0].split
        (8, 2, 'validation')

    Args:
        examples: any rows; those whose split is neither "train" nor "" are left out of both answers, so a
            test row can never be chosen on.
        fraction: share of the training rows, 0 < fraction < 1; a behavior of very few rows may give none.
        seed: another seed, another choice.

    Returns:
        Training rows and validation rows, with `split` set, in the order given.

    Raises:
        DataError: the fraction is out of range, there are no training rows, or one side would be empty.
    """
    if not 0 < fraction < 1:
        raise DataError(f"the validation fraction must lie between 0 and 1, got {fraction}; 0.2 is usual.")
    candidates = [row for row in examples if row.split in ("train", "")]
    if not candidates:
        given = sorted({row.split for row in examples})
        raise DataError(f"no training rows to take a validation set from: the splits given are {given}.")
    divided = stratified_split(candidates, {"train": 1 - fraction, "validation": fraction}, seed=seed)
    train = [row for row in divided if row.split == "train"]
    validation = [row for row in divided if row.split == "validation"]
    if not train or not validation:
        raise DataError(
            f"{fraction} of {len(candidates)} training rows gives {len(train)} to train and "
            f"{len(validation)} to validate; both need at least one. Give more rows or another fraction."
        )
    return train, validation
