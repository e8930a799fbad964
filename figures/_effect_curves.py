"""The effect of steering against its side effect, over the strength."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from steerlab.errors import DataError, require_columns
from steerlab.plots import METHODS, method_style, metric_style


def effect_curves(
    grid: pd.DataFrame,
    points: pd.DataFrame,
    ax: Axes,
    *,
    x: str = "over_refusal",
    y: str = "refuse_harmful",
    settings: Mapping[str, Mapping[str, Any]],
) -> Axes:
    """For each method its curve over the strength on validation inputs and its point on test inputs.

    Curves have a dot per strength and an arrow that points towards larger strengths. The x axis has an arcsine
    square-root scale, which shows shares near 0 and near 1.

    Args:
        grid: one row per setting; columns `method`, `alpha`, `x`, `y` and those named in `settings`.
        points: one row per method; columns `method`, `x`, `y`; drawn as stars, or as diamonds without a curve.
        ax: where to draw.
        x: the side effect, a share; less is better.
        y: the effect; more is better.
        settings: for each method with a curve, the column values that leave one row per strength.

    Returns:
        The axes; curves are labeled "METHOD curve", points by the method.

    Raises:
        DataError: columns are missing, or the setting of a method leaves no row, or several of one strength.
    """
    require_columns(grid, ["method", "alpha", x, y], "effect_curves")
    require_columns(points, ["method", x, y], "effect_curves")
    for method in [m for m in dict.fromkeys([*METHODS, *points["method"]]) if (points["method"] == m).any()]:
        look = method_style(method)
        if method in settings:
            _curve(ax, _select(grid, method, settings[method])[[x, y]], look.color, f"{method} curve")
        point = points[points["method"] == method].iloc[0]
        ax.plot(
            point[x], point[y], ls="none", marker="*" if method in settings else "D", ms=9 if method in settings else 5,
            color=look.color, mfc="none" if look.outline else look.color, mec=look.color if look.outline else "white",
            mew=1.0 if look.outline else 0.6, zorder=4, label=method, clip_on=False,
        )  # fmt: skip
    ax.set_xscale("function", functions=(_angle, _share))
    ax.set_xticks(
        [0, 0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98, 1], ["0", ".02", ".1", ".25", ".5", ".75", ".9", ".98", "1"]
    )
    ax.set(xlabel=metric_style(x).heading, ylabel=metric_style(y).heading, xlim=(0, 1), ylim=(-0.04, 1.04))
    return ax


def _angle(share: np.ndarray) -> np.ndarray:
    return np.arcsin(np.sqrt(np.clip(share, 0, 1)))


def _share(angle: np.ndarray) -> np.ndarray:
    return np.sin(np.clip(angle, 0, np.pi / 2)) ** 2


def _curve(ax: Axes, curve: pd.DataFrame, color: str, label: str) -> None:
    x, y = curve.columns
    sns.lineplot(
        curve, x=x, y=y, sort=False, estimator=None, color=color, lw=1.0, marker="o", ms=2.6, mew=0, alpha=0.8,
        label=label, legend=False, zorder=2, clip_on=False, ax=ax,
    )  # fmt: skip
    if len(curve) > 1:
        ax.annotate(
            "", curve.iloc[-1], curve.iloc[-2], annotation_clip=False, zorder=2,
            arrowprops={"arrowstyle": "-|>", "color": color, "lw": 0, "mutation_scale": 10, "shrinkA": 0, "shrinkB": 0},
        )  # fmt: skip


def _select(grid: pd.DataFrame, method: str, setting: Mapping[str, Any]) -> pd.DataFrame:
    require_columns(grid, list(setting), "effect_curves")
    rows = grid[grid["method"] == method]
    for column, value in setting.items():
        rows = rows[rows[column].fillna("").astype(str) == str(value)]
    repeated = int(rows["alpha"].duplicated().sum())
    if rows.empty or repeated:
        raise DataError(
            f"{method} has {len(rows)} rows with {dict(setting)}, {repeated} of them with a strength that another row "
            "has: name more columns in `settings`"
        )
    return rows.sort_values("alpha")
