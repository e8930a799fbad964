"""Splits into training, validation and test examples."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from steerlab._support.checks import as_number, as_seed, as_whole, check_type
from steerlab.data.example import Example, check_examples
from steerlab.errors import DataError

ED_SLICE_PUBLISHED = 76
"""Number of rows behind each published ED-score: the reference code slices 227..303 of the sorted, scored test rows.

The harmful test rows fill 0..227, so the first of the 76 is a harmful one; the correct count is 75.
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
        fraction: share of training rows, 0 < fraction < 1; `int(fraction * n)` rows.

    Raises:
        DataError: the fraction leaves train or test empty.

    Source: L2S, arXiv 2508.12815, released code; 1531 and 1125 are where its scored and harmful rows end.
    """
    cut = int(as_number("fraction", fraction) * as_whole("n", n, 0))
    if not 0 < cut < n:
        raise DataError(
            f"{fraction} of {n} rows leaves {cut} to train and {n - cut} to test; both need at least one. "
            "Choose a fraction between 0 and 1, or give more rows."
        )
    order = np.arange(n, dtype=np.int64)
    np.random.RandomState(as_seed(seed)).shuffle(order)
    return np.sort(order[:cut]), np.sort(order[cut:])


def stratified_split(
    examples: Sequence[Example],
    fractions: Mapping[str, float],
    *,
    seed: int = 0,
    by: Callable[[Example], str] = lambda example: example.behavior,
) -> list[Example]:
    """The examples in order, with `split` set so that every stratum has the same shares.

    Example:
        >>> examples = [Example(id=str(i), prompt=f"question {i}", behavior="ab"[i % 2]) for i in range(20)]
        >>> divided = stratified_split(examples, {"train": 0.8, "test": 0.2})
        >>> sorted(example.behavior for example in divided if example.split == "test")
        ['a', 'a', 'b', 'b']

    Args:
        examples: with unique ids; the split depends on ids and strata, not on the order.
        fractions: split name -> share, positive and summing to 1.
        seed: of the random order within a stratum.
        by: the stratum of an example.

    Raises:
        DataError: no examples, duplicated ids, fractions that do not sum to 1, or a split without any example.
    """
    rows = check_examples(examples)
    for name, share in check_type("fractions", fractions, Mapping, "shares by name, {'train': 0.8, ...}").items():
        as_number(f"fractions[{name!r}]", share)
    if any(share <= 0 for share in fractions.values()) or abs(sum(fractions.values()) - 1) > 1e-9:
        raise DataError(f"fractions must be positive and sum to 1, got {dict(fractions)}; rescale them.")
    strata: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        strata[by(row)].append(row.id)
    random = np.random.RandomState(as_seed(seed))
    split_of: dict[str, str] = {}
    for _, ids in sorted(strata.items()):
        ids.sort()
        order = random.permutation(len(ids))
        # ends are rounded, not sizes, so that nothing is lost; 1e-9 absorbs .6 + .15 = .7499...
        ends = [int(end * len(ids) + 0.5 + 1e-9) for end in accumulate(fractions.values())]
        for name, begin, end in zip(fractions, [0, *ends], ends, strict=False):
            split_of.update((ids[i], name) for i in order[begin:end])
    if empty := sorted(set(fractions) - set(split_of.values())):
        raise DataError(f"{empty} would get none of {len(rows)} examples: give more, or a larger share")
    return [row.replace(split=split_of[row.id]) for row in rows]


def validation_split(
    examples: Sequence[Example], fraction: float = 0.2, seed: int = 0
) -> tuple[list[Example], list[Example]]:
    """Split the training examples into training and validation examples, with equal shares of every behavior.

    Example:
        >>> examples = [Example(id=str(i), prompt=f"question {i}", split="train") for i in range(10)]
        >>> train, validation = validation_split(examples, fraction=0.2, seed=0)
        >>> len(train), len(validation), validation[0].split
        (8, 2, 'validation')

    Args:
        examples: those whose split is neither "train" nor "" are left out of both lists, so that no test example can
            be used for validation.
        fraction: share of validation, 0 < fraction < 1; a behavior with very few examples may give none.
        seed: of the random choice.

    Returns:
        Training examples and validation examples, with `split` set, in the order given.

    Raises:
        DataError: the fraction is out of range, there are no training examples, or one list would be empty.
    """
    if not 0 < as_number("fraction", fraction) < 1:
        raise DataError(f"the validation fraction must lie between 0 and 1, got {fraction}; 0.2 is usual.")
    rows = check_examples(examples)
    candidates = [row for row in rows if row.split in ("train", "")]
    if not candidates:
        given = sorted({row.split for row in rows})
        raise DataError(f"no training rows to take a validation set from: the splits given are {given}.")
    divided = stratified_split(candidates, {"train": 1 - fraction, "validation": fraction}, seed=seed)
    train, validation = ([row for row in divided if row.split == name] for name in ("train", "validation"))
    return train, validation
