"""Groups of per-sample numbers: which columns tell them apart, and the means of many groups with their intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from steerlab._support.errors import DataError, require_columns

MEASURED = (
    "example_id",
    "slope",
    "intercept",
    "residual",
    "n_alphas",
)  # what a frame of slopes holds besides its groups
_AT_ONCE = 2000  # groups whose resamples are held in memory together
_DRAWS_AT_ONCE = 4_000_000


def check_groups(slopes: pd.DataFrame, by: Sequence[str] | None, what: str) -> list[str]:
    """The columns to group slopes by: those asked for, or all that are no measurement; each sample once a group.

    Raises:
        DataError: a column is missing, there are none to group by, values are not finite, or a group holds a sample
            twice (it would pool layers or methods, whose slopes are not independent).
    """
    keys = [c for c in slopes if c not in MEASURED] if by is None else list(by)
    require_columns(slopes, ["example_id", "slope", *keys], what)
    if not keys:
        raise DataError(f"{what} has no column to group by; give `by`, one of {list(slopes.columns)}")
    bad = int((~np.isfinite(slopes["slope"].to_numpy(float))).sum())
    if bad:
        raise DataError(f"{what} got {bad} NaN or infinite of {len(slopes)} slopes; drop or repair those samples first")
    # ids are unique within one data set only
    named = list(dict.fromkeys([*keys, *(["behavior"] if "behavior" in slopes else []), "example_id"]))
    twice = int(slopes.duplicated(named).sum())
    if twice:
        differ = [c for c in slopes if c not in (*MEASURED, *keys) and slopes[c].nunique(dropna=False) > 1]
        raise DataError(
            f"{what} grouped by {keys} would count {twice} samples more than once; "
            f"add one of {differ} to `by`, or select one value of it first"
        )
    return keys


def group_means(
    frame: pd.DataFrame, by: Sequence[str], column: str, *, n_boot: int = 2000, level: float = 0.95, seed: int = 0
) -> pd.DataFrame:
    """The mean of a column per group with its bootstrap interval over samples, many groups at a time.

    Groups of one size are resampled together, by the same draws: so the points of a curve move together, and a
    thousand groups cost one matrix product instead of a thousand loops.

    Returns:
        One row per group in order of appearance: the columns of `by`, `mean`, `low`, `high`, `n`.

    Raises:
        DataError: `level` or `n_boot` out of range.
    """
    if not 0 < level < 1 or n_boot < 1:
        raise DataError(f"got level={level} and n_boot={n_boot}; expected 0 < level < 1 and at least 1 resample")
    group = frame.groupby(list(by), sort=False, dropna=False, observed=True).ngroup().to_numpy()
    _, first, sizes = np.unique(group, return_index=True, return_counts=True)
    values = frame[column].to_numpy(float)[np.lexsort((pd.factorize(frame["example_id"])[0], group))]
    starts = np.cumsum(sizes) - sizes
    mean, low, high = np.empty((3, len(sizes)))
    for size in np.unique(sizes):
        alike = np.flatnonzero(sizes == size)
        for some in np.split(alike, range(_AT_ONCE, len(alike), _AT_ONCE)):
            table = values[starts[some][:, None] + np.arange(size)]
            mean[some] = table.mean(1)
            drawn = _resampled(table, n_boot, seed)
            low[some], high[some] = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
    found = frame.iloc[first][list(by)].reset_index(drop=True)
    return found.assign(mean=mean, low=np.minimum(low, mean), high=np.maximum(high, mean), n=sizes)


def _resampled(table: NDArray[np.float64], n_boot: int, seed: int) -> NDArray[np.float64]:
    size = table.shape[1]
    rng, rows = np.random.default_rng(seed), max(1, _DRAWS_AT_ONCE // size)
    parts = []
    for done in range(0, n_boot, rows):
        many = min(rows, n_boot - done)
        drawn = rng.integers(size, size=(many, size)) + size * np.arange(many)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=many * size).reshape(many, size) / size
        parts.append(weights @ table.T)
    return np.concatenate(parts)
