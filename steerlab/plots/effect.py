"""What steering does against what it does elsewhere: a curve over the strength for every method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from steerlab._support.errors import DataError, require_columns
from steerlab.plots.style import METHODS, get_axes, method_style
from steerlab.plots.summary import measure

Settings = Mapping[str, Mapping[str, Any]]
OUTLINE = 0.6


def effect_curves(
    grid: pd.DataFrame,
    points: pd.DataFrame,
    x: str = "over_refusal",
    y: str = "refuse_harmful",
    ax: Axes | None = None,
    *,
    settings: Settings,
) -> Axes:
    """A method's strength curve at its chosen place, and what it reached on other inputs at its chosen strength.

    Example:
        >>> ax = effect_curves(grid, points, settings={"mean": {"layer": "15", "positions": "all", "options": ""}})

    Args:
        grid: a row a setting; columns `method`, `alpha`, `x`, `y` and those named in `settings`.
        points: a row a method; columns `method`, `x`, `y`: the large markers, all that methods without settings have.
        x: the side effect, less is better.
        y: the effect, more is better.
        ax: where to draw; a new figure otherwise.
        settings: for each method with a curve, the column values that leave its strengths alone.

    Returns:
        The axes; curves are labeled "METHOD curve", markers by the method.

    Raises:
        DataError: columns are missing, or a method has no setting, or two of one strength.

    Source: own.
    """
    require_columns(grid, ["method", "alpha", x, y], "effect_curves")
    require_columns(points, ["method", x, y], "effect_curves")
    ax = get_axes(ax, height=3.0)
    known = [*METHODS, *points["method"]]
    for method in dict.fromkeys(m for m in known if (points["method"] == m).any()):
        look = method_style(method)
        if method in settings:
            curve = _curve(grid, method, settings[method])
            ax.plot(curve[x], curve[y], color=look.color, lw=1.0, marker="o", ms=2.2, alpha=0.75, zorder=2,
                    label=f"{method} curve")  # fmt: skip
        there = points[points["method"] == method].iloc[0]
        face = "none" if look.oracle else look.color
        ax.plot(
            there[x], there[y], ls="none", marker="*" if method in settings else "D", ms=9 if method in settings else 5,
            color=look.color, mfc=face, mec=look.color if look.oracle else "white",
            mew=1.0 if look.oracle else OUTLINE, zorder=4, label=method,
        )  # fmt: skip
    ax.set(xlabel=measure(x).heading, ylabel=measure(y).heading, xlim=(-0.04, 1.04), ylim=(-0.04, 1.04))
    return ax


def _curve(grid: pd.DataFrame, method: str, setting: Mapping[str, Any]) -> pd.DataFrame:
    require_columns(grid, list(setting), "effect_curves")
    own = grid[grid["method"] == method]
    for column, value in setting.items():
        own = own[own[column].fillna("").astype(str) == str(value)]
    if own.empty or own["alpha"].duplicated().any():
        raise DataError(
            f"{method} has {len(own)} rows with {dict(setting)}, {int(own['alpha'].duplicated().sum())} of them with a "
            "strength that another has: name the columns that tell them apart"
        )
    return own.sort_values("alpha")
