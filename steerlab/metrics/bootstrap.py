"""How sure a mean is: percentile bootstrap over samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from steerlab._support.errors import DataError
from steerlab.metrics._checks import as_values

Statistic = Literal["mean", "median"]

_STATISTICS: dict[str, Callable[..., Any]] = {"mean": np.mean, "median": np.median}
_DRAWS_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class Estimate:
    """A number with its interval and the number of samples behind it.

    Example:
        >>> str(Estimate(0.69, 0.61, 0.76, 213))
        '0.690 [0.610, 0.760], n=213'
    """

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}], n={self.n}"


def bootstrap_ci(
    values: Any, *, statistic: Statistic = "mean", n_boot: int = 2000, level: float = 0.95, seed: int = 0
) -> Estimate:
    """A statistic of one number per sample, with its percentile interval.

    Example:
        >>> estimate = bootstrap_ci([0, 1, 1, 0, 1, 1, 1, 0])
        >>> estimate.low <= estimate.value == 0.625 <= estimate.high
        True

    Args:
        values: one number (or truth value) per sample; samples must be independent of one another.
        statistic: "mean" or "median".
        n_boot: resamples.
        level: coverage, in (0, 1).
        seed: of the generator; equal arguments give equal intervals.

    Raises:
        DataError: empty, NaN or infinite values; an unknown statistic; `level` or `n_boot` out of range.

    Source: Efron (1979). The interval always includes the value, so that error bars cannot turn negative.
    """
    array = as_values(values, "bootstrap_ci")
    if statistic not in _STATISTICS:
        raise DataError(f"unknown statistic {statistic!r}; expected one of {sorted(_STATISTICS)}")
    if not 0 < level < 1 or n_boot < 1:
        raise DataError(f"got level={level} and n_boot={n_boot}; expected 0 < level < 1 and at least 1 resample")
    compute = _STATISTICS[statistic]
    rng, rows = np.random.default_rng(seed), max(1, _DRAWS_AT_ONCE // array.size)
    parts = []
    for done in range(0, n_boot, rows):
        drawn = rng.integers(array.size, size=(min(rows, n_boot - done), array.size))
        parts.append(compute(array[drawn], axis=1))
    value = float(compute(array))
    low, high = np.quantile(np.concatenate(parts), [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, min(float(low), value), max(float(high), value), array.size)


def paired_bootstrap(
    a: Any, b: Any, *, statistic: Statistic = "mean", n_boot: int = 2000, level: float = 0.95, seed: int = 0
) -> Estimate:
    """The difference a - b of two methods on the same samples, with its interval.

    Example:
        >>> difference = paired_bootstrap([1, 1, 0, 1], [0, 1, 0, 0])
        >>> difference.value, difference.n
        (0.5, 4)

    Args:
        a, b: one number per sample, in the same order.
        statistic: of the differences, sample by sample.
        n_boot, level, seed: as in `bootstrap_ci`.

    Raises:
        DataError: different lengths, or as `bootstrap_ci`.

    Source: Efron and Tibshirani (1993), resampling pairs.
    """
    left, right = as_values(a, "paired_bootstrap (a)"), as_values(b, "paired_bootstrap (b)")
    if left.size != right.size:
        raise DataError(
            f"paired_bootstrap got {left.size} and {right.size} values; expected the same samples "
            "in the same order. Join the two tables on the sample id first."
        )
    return bootstrap_ci(left - right, statistic=statistic, n_boot=n_boot, level=level, seed=seed)
