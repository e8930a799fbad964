"""Checks of measurement and slope tables, and bootstrap means of many groups at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from steerlab.errors import DataError, require_columns
from steerlab.metrics.bootstrap import check_resampling

SETTING = ("method", "model", "layer", "positions", "behavior")
# every other column names a group
SLOPE_COLUMNS = ("example_id", "slope", "intercept", "residual", "n_alphas", "metric")
_GROUPS_AT_ONCE = 2000
_DRAWS_AT_ONCE = 4_000_000


def check_groups(slopes: pd.DataFrame, by: Sequence[str] | None, what: str) -> list[str]:
    """The columns to group slopes by: `by`, or all that are no measurement.

    Raises:
        DataError: a column is missing, there is none to group by, a slope is not finite, or a group holds an example
            twice: it would pool layers or methods, whose slopes are not independent.
    """
    keys = [c for c in slopes if c not in SLOPE_COLUMNS] if by is None else list(by)
    require_columns(slopes, ["example_id", "slope", *keys], what, ["slope"])
    if not keys:
        raise DataError(f"{what} has no column to group by; give `by`, one of {list(slopes.columns)}")
    # ids are unique within one data set only
    identity = list(dict.fromkeys([*keys, *(["behavior"] if "behavior" in slopes else []), "example_id"]))
    if repeats := int(slopes.duplicated(identity).sum()):
        differ = [c for c in slopes if c not in (*SLOPE_COLUMNS, *keys) and slopes[c].nunique(dropna=False) > 1]
        raise DataError(
            f"{what} grouped by {keys} would count {repeats} examples more than once; "
            f"add one of {differ} to `by`, or select one value of it first"
        )
    return keys


def check_measurements(
    frame: pd.DataFrame, metric: str, by: Sequence[str], what: str
) -> tuple[pd.DataFrame, list[str]]:  # fmt: skip
    """The rows of one metric, and the columns that tell its settings apart.

    Raises:
        DataError: columns or the metric are missing, a value is not finite, an example was measured twice at one alpha
            or not at every alpha of its setting, or a setting has fewer than two alphas.
    """
    require_columns(frame, ["behavior", "example_id", "alpha", "metric", "value", *by], what)
    rows = frame[frame["metric"] == metric]
    if rows.empty:
        raise DataError(f"{what} found no rows of {metric!r}; the frame has {sorted(set(frame['metric']))}")
    if bad := int((~np.isfinite(rows[["alpha", "value"]].to_numpy(float))).any(axis=1).sum()):
        raise DataError(
            f"{what} got {bad} of {len(rows)} rows with a NaN or infinite alpha or value; repair them first"
        )
    keys = [c for c in SETTING if c in frame] + [c for c in by if c not in SETTING]
    _check_complete(rows, keys, what)
    return rows, keys


def _check_complete(rows: pd.DataFrame, keys: list[str], what: str) -> None:
    """Refuse curves with repeated or missing points, and settings of one alpha."""
    if repeats := int(rows.duplicated([*keys, "example_id", "alpha"]).sum()):
        raise DataError(
            f"{what} got {repeats} values too many: an example was measured more than once at one alpha of a setting. "
            f"Settings are told apart by {keys}; name the column that differs in `by`, or drop the repeats"
        )
    options = {"sort": False, "dropna": False, "observed": True}
    setting = rows.groupby(keys, **options)
    n_alphas = setting["alpha"].transform("nunique")
    if n_alphas.min() < 2:
        first = rows.loc[n_alphas < 2, [*keys, "alpha"]].iloc[0].to_dict()
        few = int((setting["alpha"].nunique() < 2).sum())
        raise DataError(
            f"{what} needs at least two alphas a setting; {few} of {setting.ngroups} settings have one, "
            f"first {first}. Sweep more alphas, or leave that setting out"
        )
    curve = rows.groupby([*keys, "example_id"], **options)
    short = rows[curve["alpha"].transform("size") < n_alphas].drop_duplicates([*keys, "example_id"])
    if len(short):
        raise DataError(
            f"{what} needs every example at every alpha of its setting; {len(short)} of {curve.ngroups} curves lack "
            f"some, first {short['example_id'].tolist()[:3]}. Measure them again, or drop those examples"
        )


def group_means(
    frame: pd.DataFrame, by: Sequence[str], column: str, *, n_boot: int = 2000, level: float = 0.95, seed: int = 0
) -> pd.DataFrame:
    """The mean of a column per group with its bootstrap interval over examples.

    Groups of one size share their resamples: the points of a curve move together, and a thousand groups cost one matrix
    product.

    Returns:
        One row per group in order of appearance: the columns of `by`, `mean`, `low`, `high`, `n`.

    Raises:
        DataError: `level` or `n_boot` out of range.
    """
    check_resampling(level, n_boot, seed)
    group = frame.groupby(list(by), sort=False, dropna=False, observed=True).ngroup().to_numpy()
    _, first, sizes = np.unique(group, return_index=True, return_counts=True)
    values = frame[column].to_numpy(float)[np.lexsort((pd.factorize(frame["example_id"])[0], group))]
    starts = np.cumsum(sizes) - sizes
    mean, low, high = np.empty((3, len(sizes)))
    for size in np.unique(sizes):
        same_size = np.flatnonzero(sizes == size)
        for some in np.split(same_size, range(_GROUPS_AT_ONCE, len(same_size), _GROUPS_AT_ONCE)):
            table = values[starts[some][:, None] + np.arange(size)]
            mean[some] = table.mean(1)
            drawn = _resampled(table, n_boot, seed)
            low[some], high[some] = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
    found = frame.iloc[first][list(by)].reset_index(drop=True)
    return found.assign(mean=mean, low=np.minimum(low, mean), high=np.maximum(high, mean), n=sizes)


def _resampled(table: NDArray[np.float64], n_boot: int, seed: int) -> NDArray[np.float64]:
    """`(resample, group)` means, with the draws of `bootstrap_ci`."""
    size = table.shape[1]
    rng, rows = np.random.default_rng(seed), max(1, _DRAWS_AT_ONCE // size)
    parts = []
    for done in range(0, n_boot, rows):
        many = min(rows, n_boot - done)
        drawn = rng.integers(size, size=(many, size)) + size * np.arange(many)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=many * size).reshape(many, size) / size
        parts.append(weights @ table.T)
    return np.concatenate(parts)
