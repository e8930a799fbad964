"""Steerability: slopes of each example's answers over the steering strength, and their means and shares."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from steerlab.analysis.groups import check_groups, check_measurements, group_means
from steerlab.errors import require_columns
from steerlab.metrics.bootstrap import Estimate, share_interval


def slopes(frame: pd.DataFrame, metric: str = "propensity", *, by: Sequence[str] = ()) -> pd.DataFrame:
    """Slope of each example's metric over alpha, from a least-squares line.

    Example:
        >>> frame = steerlab.sweep(model, examples, vector, alphas=MULTIPLIERS)
        >>> slopes(frame).groupby("behavior")["slope"].mean()

    Args:
        frame: one row per measurement: `behavior`, `example_id`, `alpha`, `metric`, `value`, and those of `method`,
            `model`, `layer`, `positions` that tell settings apart.
        metric: one of the metrics in the frame.
        by: further columns that tell settings apart, for example ("train_variant", "test_variant").

    Returns:
        One row per setting and example: `slope`, `intercept`, `residual` (root mean square), `n_alphas`, `metric`.

    Raises:
        DataError: columns or the metric are missing, values are not finite, an example was measured twice at one alpha
            or not at every alpha of its setting, or a setting has fewer than two alphas.

    Source: Tan et al., arXiv 2407.12404, section 3 (steerability).
    """
    rows, keys = check_measurements(frame, metric, by, "slopes")
    curve = rows.groupby([*keys, "example_id"], sort=False, dropna=False, observed=True).ngroup().to_numpy()
    alpha, value = rows["alpha"].to_numpy(float), rows["value"].to_numpy(float)
    n = np.bincount(curve)

    def mean(x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Per curve."""
        return np.bincount(curve, x) / n

    first = np.unique(curve, return_index=True)[1]
    start = value[first]
    value = value - start[curve]  # so that the slope of a constant curve is 0 to the last bit
    mean_alpha, mean_value = mean(alpha), mean(value)
    x, y = alpha - mean_alpha[curve], value - mean_value[curve]
    slope = mean(x * y) / mean(x**2)
    residual = np.sqrt(mean((y - slope[curve] * x) ** 2))
    found = rows.iloc[first][[*keys, "example_id", "metric"]].reset_index(drop=True)
    return found.assign(slope=slope, intercept=start + mean_value - slope * mean_alpha, residual=residual, n_alphas=n)


def anti_steerable(slopes: pd.DataFrame) -> Estimate:
    """Share of examples whose slope is not above 0, with its Wilson 95 % interval.

    Example:
        >>> anti_steerable(slopes(frame))
        Estimate(value=0.24, low=0.2, high=0.28, n=500)

    Args:
        slopes: from `slopes`, of one setting; a slope of exactly 0 counts as anti-steerable.

    Raises:
        DataError: no slopes, or NaN among them.

    Source: Tan et al., arXiv 2407.12404, section 4; interval of Wilson (1927).
    """
    require_columns(slopes, ["slope"], "anti_steerable", ["slope"])
    found = slopes["slope"].to_numpy(float)
    return share_interval(int((found <= 0).sum()), len(found))


def steerability(
    slopes: pd.DataFrame, by: Sequence[str] | None = None, *, n_boot: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """Mean, spread and anti-steerable share of the slopes of every group.

    Example:
        >>> steerability(slopes(frame), by=("behavior",))[["behavior", "steerability", "low", "high"]]

    Args:
        slopes: from `slopes`.
        by: columns that make groups; by default all that tell settings apart.
        n_boot, seed: of the bootstrap over examples.

    Returns:
        One row per group: `steerability` (the mean slope, equal to the slope of the mean curve) with `low`, `high`,
        `median`, `std` (of the population), `anti_steerable` with `anti_steerable_low`, `anti_steerable_high`, and `n`.

    Raises:
        DataError: columns are missing, slopes are not finite, or a group would hold an example twice.

    Source: Tan et al., arXiv 2407.12404, sections 3 and 4.
    """
    keys = check_groups(slopes, by, "steerability")
    found = group_means(slopes, keys, "slope", n_boot=n_boot, seed=seed).rename(columns={"mean": "steerability"})
    groups = slopes.groupby(keys, sort=False, dropna=False, observed=True)
    shares = [anti_steerable(group) for _, group in groups]
    return found.drop(columns="n").assign(
        median=groups["slope"].median().to_numpy(), std=groups["slope"].std(ddof=0).to_numpy(),
        anti_steerable=[share.value for share in shares], anti_steerable_low=[share.low for share in shares],
        anti_steerable_high=[share.high for share in shares], n=found["n"],
    )  # fmt: skip


def propensity_curves(
    frame: pd.DataFrame, metric: str = "propensity", *, by: Sequence[str] = (), n_boot: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """Mean of a metric at every alpha, ready to plot.

    Example:
        >>> curves = propensity_curves(frame)
        >>> ax = steerlab.plots.propensity_lines(curves)

    Args:
        frame, metric, by: as in `slopes`.
        n_boot, seed: of the bootstrap over examples; the points of a curve share their resamples.

    Returns:
        One row per setting and alpha, ascending in alpha: `mean`, `low`, `high`, `n`, `metric`.

    Raises:
        DataError: as `slopes`: every point of a curve must be a mean over the same examples.

    Source: Tan et al., arXiv 2407.12404, figure 2.
    """
    rows, keys = check_measurements(frame, metric, by, "propensity_curves")
    rows = rows.sort_values("alpha", kind="stable")
    found = group_means(rows, [*keys, "alpha"], "value", n_boot=n_boot, seed=seed)
    order = found.groupby(keys, sort=False, dropna=False, observed=True).ngroup()
    return found.iloc[np.lexsort((found["alpha"], order))].reset_index(drop=True).assign(metric=metric)
