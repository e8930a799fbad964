"""Estimates with intervals: the percentile bootstrap of a mean, median or ratio, and the Wilson interval of a share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy.stats import binomtest, bootstrap

from steerlab._support.checks import as_number, as_seed, as_whole
from steerlab.errors import DataError
from steerlab.metrics._checks import as_values

Statistic = Literal["mean", "median"]

_DRAWS_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class Estimate:
    """A number, its interval and the number of values it was computed from.

    Example:
        >>> str(Estimate(0.69, 0.61, 0.76, 213))
        '0.690 [0.610, 0.760], n=213'

    Attributes:
        value: the estimate, in the unit of the values.
        low, high: the ends of its interval, in the same unit.
        n: how many values it was computed from; of groups, where groups were resampled.
    """

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}], n={self.n}"


def share_interval(k: int, n: int, *, level: float = 0.95) -> Estimate:
    """The share k / n with its Wilson score interval.

    Unlike a bootstrap interval, it does not collapse to a point when all or none of the n examples count.

    Example:
        >>> str(share_interval(24, 24))
        '1.000 [0.862, 1.000], n=24'

    Args:
        k: how many of the examples count.
        n: how many examples there are.
        level: coverage, in (0, 1).

    Raises:
        DataError: `k` is not in [0, n], `n` is below 1, or `level` is out of range.

    Source: Wilson (1927), through SciPy.
    """
    k, n = as_whole("share_interval got k", k, 0, as_whole("share_interval got n", n)), int(n)
    if not 0 < as_number("share_interval got level", level) < 1:
        raise DataError(f"share_interval got level={level}; expected 0 < level < 1")
    low, high = binomtest(k, n).proportion_ci(level, method="wilson")
    return Estimate(k / n, float(low), float(high), n)


def bootstrap_ci(
    values: Any, *, statistic: Statistic = "mean", n_boot: int = 2000, level: float = 0.95, seed: int = 0
) -> Estimate:
    """The mean or median of one number per example, with its percentile bootstrap interval.

    Example:
        >>> estimate = bootstrap_ci([0, 1, 1, 0, 1, 1, 1, 0])
        >>> estimate.low <= estimate.value == 0.625 <= estimate.high
        True

    Args:
        values: one number (or truth value) per example; the examples must be independent of one another.
        statistic: "mean" or "median".
        n_boot: number of resamples.
        level: coverage, in (0, 1).
        seed: of the generator; equal arguments give equal intervals.

    Returns:
        An interval that always contains the value, so that error bars cannot be negative.

    Raises:
        DataError: empty, NaN or infinite values; an unknown statistic; `level` or `n_boot` out of range.

    Source: Efron (1979), through SciPy.
    """
    array = as_values(values, "bootstrap_ci")
    if statistic not in ("mean", "median"):
        raise DataError(f"unknown statistic {statistic!r}; expected 'mean' or 'median'")
    check_resampling(level, n_boot, seed)
    compute = getattr(np, statistic)
    value = float(compute(array))
    if array.size == 1:
        return Estimate(value, value, value, 1)
    low, high = bootstrap(
        (array,), compute, n_resamples=n_boot, batch=max(1, _DRAWS_AT_ONCE // array.size), vectorized=True,
        confidence_level=level, method="percentile", rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return Estimate(value, min(float(low), value), max(float(high), value), array.size)


def paired_bootstrap(
    a: Any, b: Any, *, statistic: Statistic = "mean", n_boot: int = 2000, level: float = 0.95, seed: int = 0
) -> Estimate:
    """The difference a - b of two methods on the same examples, with its interval.

    Example:
        >>> difference = paired_bootstrap([1, 1, 0, 1], [0, 1, 0, 0])
        >>> difference.value, difference.n
        (0.5, 4)

    Args:
        a, b: one number per example, in the same order. Two Series with the same unique labels in another order are
            joined on them; row numbers are no labels.
        statistic: of the differences, example by example.
        n_boot, level, seed: as in `bootstrap_ci`.

    Raises:
        DataError: different lengths, row numbers in another order, labels of which only some are shared, or as
            `bootstrap_ci`.

    Source: Efron and Tibshirani (1993), resampling pairs.
    """
    differ = isinstance(a, pd.Series) and isinstance(b, pd.Series) and not a.index.equals(b.index)
    numbered = [differ and one.index.inferred_type == "integer" and one.index.name is None for one in (a, b)]
    if differ and set(a.index) == set(b.index) and a.index.is_unique and b.index.is_unique:
        if all(numbered):
            raise DataError(  # two sorted tables keep the numbers that their rows had before
                "paired_bootstrap got two Series with the same row numbers in another order, which may not be the same "
                "examples: give both an index of example ids (set_index), or lists in the same order"
            )
        b = b.reindex(a.index)
    elif differ and not (any(numbered) and set(a.index).isdisjoint(b.index)):
        raise DataError(
            "paired_bootstrap got two Series that share some labels only or none, or repeat some: join them on the "
            "example id"
        )
    left, right = as_values(a, "paired_bootstrap (a)"), as_values(b, "paired_bootstrap (b)")
    if left.size != right.size:
        raise DataError(
            f"paired_bootstrap got {left.size} and {right.size} values; expected the same examples "
            "in the same order. Join the two tables on the example id first."
        )
    return bootstrap_ci(left - right, statistic=statistic, n_boot=n_boot, level=level, seed=seed)


def bootstrap_ratio(parts: Any, wholes: Any, *, n_boot: int = 2000, level: float = 0.95, seed: int = 0) -> Estimate:
    """The sum of the parts over the sum of the wholes, with its percentile bootstrap interval.

    Sums are divided, so that no example with a small whole decides. Too few examples: the ends are NaN where the wholes
    of a resample sum to 0.

    Example:
        >>> bootstrap_ratio([1, 3], [2, 6]).value
        0.5

    Args:
        parts, wholes: one number per example, or summed over each group of examples that belong together.
        n_boot, level, seed: as in `bootstrap_ci`.

    Raises:
        DataError: different lengths, or as `bootstrap_ci`.

    Source: Efron and Tibshirani (1993), resampling pairs.
    """
    part, whole = as_values(parts, "bootstrap_ratio (parts)"), as_values(wholes, "bootstrap_ratio (wholes)")
    if part.size != whole.size:
        raise DataError(f"bootstrap_ratio got {part.size} parts and {whole.size} wholes: give one of each per example")
    check_resampling(level, n_boot, seed)
    draws = np.random.default_rng(seed).integers(0, part.size, (n_boot, part.size))
    sums = np.append(whole[draws].sum(1), whole.sum())
    sums[sums == 0] = np.nan
    low, high = np.quantile(part[draws].sum(1) / sums[:-1], [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(part.sum() / sums[-1]), float(low), float(high), part.size)


def check_resampling(level: float, n_boot: int, seed: int = 0) -> None:
    """Refuse a coverage, a number of resamples or a seed that is out of range."""
    as_seed(seed)
    if not 0 < as_number("level", level) < 1 or as_whole("n_boot", n_boot, 0) < 1:
        raise DataError(f"got level={level} and n_boot={n_boot}; expected 0 < level < 1 and at least 1 resample")
