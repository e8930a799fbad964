"""Does a vector move each sample the way it should? Slopes of answers over steering strength."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import binomtest

from steerlab._support.errors import DataError, require_columns
from steerlab.analysis._measurements import check_measurements
from steerlab.analysis.groups import check_groups, group_means
from steerlab.metrics.bootstrap import Estimate


def slopes(frame: pd.DataFrame, metric: str = "propensity", *, by: Sequence[str] = ()) -> pd.DataFrame:
    """How much each sample's metric grows per unit of alpha: a least-squares line per sample.

    Example:
        >>> frame = steerlab.sweep(model, vector, examples, alphas=MULTIPLIERS)
        >>> slopes(frame).groupby("behavior")["slope"].mean()

    Args:
        frame: one row per measurement: `behavior`, `sample`, `alpha`, `metric`, `value`, and those of `method`,
            `model`, `layer`, `positions` that tell cells apart.
        metric: which of the metrics in the frame.
        by: further columns that tell cells apart, for example ("trained", "tested").

    Returns:
        One row per cell and sample: `slope`, `intercept`, `residual` (root mean square), `n_alphas`.

    Raises:
        DataError: columns or the metric are missing, values are not finite, a sample was measured twice at one alpha
            or not at every alpha of its cell, or a cell has fewer than two alphas.

    Source: Tan et al., arXiv 2407.12404, section 3 (steerability).
    """
    rows, keys = check_measurements(frame, metric, by, "slopes")
    unit = rows.groupby([*keys, "example_id"], sort=False, dropna=False, observed=True).ngroup().to_numpy()
    alpha, value = rows["alpha"].to_numpy(float), rows["value"].to_numpy(float)
    n = np.bincount(unit)

    def mean(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.bincount(unit, x) / n

    center, level = mean(alpha), mean(value)
    away = alpha - center[unit]
    slope = mean(away * (value - level[unit])) / mean(away**2)
    off = value - level[unit] - slope[unit] * away
    _, first = np.unique(unit, return_index=True)
    found = rows.iloc[first][[*keys, "example_id"]].reset_index(drop=True)
    return found.assign(
        slope=slope, intercept=level - slope * center, residual=np.sqrt(mean(off**2)), n_alphas=n
    )  # fmt: skip


def anti_steerable(slopes: pd.DataFrame) -> Estimate:
    """The share of samples that a vector moves the wrong way, with its Wilson 95 % interval.

    Example:
        >>> anti_steerable(slopes(frame))
        Estimate(value=0.24, low=0.2, high=0.28, n=500)

    Args:
        slopes: from `slopes`, of one cell; a slope of zero counts as the wrong way.

    Raises:
        DataError: no slopes, or NaN among them.

    Source: Tan et al., arXiv 2407.12404, section 4; interval of Wilson (1927).
    """
    require_columns(slopes, ["slope"], "anti_steerable")
    found = slopes["slope"].to_numpy(float)
    if not np.isfinite(found).all():
        raise DataError(
            f"anti_steerable got {int((~np.isfinite(found)).sum())} NaN or infinite slopes; drop them first"
        )
    return _wilson(int((found <= 0).sum()), len(found))


def steerability(
    slopes: pd.DataFrame, by: Sequence[str] | None = None, *, n_boot: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """Mean, spread and wrong-way share of the slopes of every group.

    Example:
        >>> steerability(slopes(frame), by=("behavior",))[["behavior", "steerability", "low", "high", "anti"]]

    Args:
        slopes: from `slopes`.
        by: columns that make groups; by default all that tell cells apart.
        n_boot, seed: of the bootstrap over samples.

    Returns:
        One row per group: `steerability` (the mean slope, which is the slope of the mean curve) with `low`, `high`,
        `median`, `std` (of the population), `anti` with `anti_low`, `anti_high`, and `n`.

    Raises:
        DataError: columns are missing, slopes are not finite, or a group would hold a sample twice.

    Source: Tan et al., arXiv 2407.12404, sections 3 and 4.
    """
    keys = check_groups(slopes, by, "steerability")
    found = group_means(slopes, keys, "slope", n_boot=n_boot, seed=seed).rename(columns={"mean": "steerability"})
    groups = slopes.assign(wrong=slopes["slope"] <= 0).groupby(keys, sort=False, dropna=False, observed=True)
    wrong = [_wilson(int(k), int(n)) for k, n in zip(groups["wrong"].sum(), found["n"], strict=True)]
    found = found.assign(
        median=groups["slope"].median().to_numpy(), std=groups["slope"].std(ddof=0).to_numpy(),
        anti=[w.value for w in wrong], anti_low=[w.low for w in wrong], anti_high=[w.high for w in wrong],
    )  # fmt: skip
    return found[[*(c for c in found if c != "n"), "n"]]


def propensity_curves(
    frame: pd.DataFrame,
    metric: str = "propensity",
    *,
    by: Sequence[str] = (),
    n_boot: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """The mean of a metric at every alpha, ready to draw.

    Example:
        >>> curves = propensity_curves(frame)
        >>> ax = steerlab.plots.propensity_lines(curves)

    Args:
        frame, metric, by: as in `slopes`.
        n_boot, seed: of the bootstrap over samples; the points of a curve are resampled together.

    Returns:
        One row per cell and alpha, ascending in alpha: `mean`, `low`, `high`, `n`.

    Raises:
        DataError: as `slopes`; a curve over other samples at every alpha would compare unlike things.

    Source: Tan et al., arXiv 2407.12404, figure 2.
    """
    rows, keys = check_measurements(frame, metric, by, "propensity_curves")
    rows = rows.sort_values("alpha", kind="stable")
    found = group_means(rows, [*keys, "alpha"], "value", n_boot=n_boot, seed=seed)
    order = found.groupby(keys, sort=False, dropna=False, observed=True).ngroup()
    return found.iloc[np.lexsort((found["alpha"], order))].reset_index(drop=True)


def _wilson(hits: int, n: int) -> Estimate:
    interval = binomtest(hits, n).proportion_ci(method="wilson")
    share = hits / n
    return Estimate(share, min(float(interval.low), share), max(float(interval.high), share), n)
