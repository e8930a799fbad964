"""Two wanted behaviors against each other, one point per setting of a grid."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from steerlab.errors import DataError, require_columns
from steerlab.plots.style import METHODS, MUTED, get_axes, method_style
from steerlab.plots.summary import metric_style

GOAL_COLOR = "#D9D9D9"


def trade_off(
    grid: pd.DataFrame,
    x: str = "refuse_harmful",
    y: str = "defer_expert",
    ax: Axes | None = None,
    goal: tuple[float, float] = (0.8, 0.8),
    *,
    limit: tuple[str, float] | None = ("refuse_expert", 0.03),
    chosen: Mapping[str, Mapping[str, object]] | None = None,
) -> Axes:
    """Every setting of a grid as a point, the Pareto front of each method, and the goal as a shaded corner.

    Example:
        >>> grid = pd.read_csv("results/l2s_safety/grid.csv")
        >>> ax = trade_off(grid, chosen={"l2s": {"layer": 16, "alpha": 1.2}})

    Args:
        grid: one row per setting; columns `method`, `x`, `y`, that of `limit`, and those named in `chosen`.
        x, y: two metrics; more is better.
        ax: where to draw; a new figure otherwise.
        goal: the smallest wanted values of `x` and `y`.
        limit: a third metric and its largest allowed value. Settings beyond it are drawn faint and hollow, and no
            front passes through them.
        chosen: for each method to mark, the column values of its chosen setting.

    Returns:
        The axes; artists are labeled "goal", "METHOD", "METHOD over limit", "METHOD front" and "METHOD chosen".

    Raises:
        DataError: columns are missing, or no row has a chosen setting.
    """
    require_columns(grid, ["method", x, y, *([limit[0]] if limit else [])], "trade_off")
    ax = get_axes(ax, height=3.2)
    top = [max(1.0, float(grid[name].max())) for name in (x, y)]
    ax.add_patch(Rectangle(goal, top[0] - goal[0], top[1] - goal[1], color=GOAL_COLOR, lw=0, zorder=0, label="goal"))
    ax.text((goal[0] + top[0]) / 2, top[1] - 0.02, "goal", color=MUTED, fontsize=7, ha="center", va="top")
    for method in [m for m in dict.fromkeys([*METHODS, *grid["method"]]) if (grid["method"] == m).any()]:
        settings, color = grid[grid["method"] == method], method_style(method).color
        allowed = settings[limit[0]] <= limit[1] + 1e-9 if limit else pd.Series(True, index=settings.index)
        over, within = settings[~allowed], settings[allowed]
        ax.scatter(
            over[x], over[y], s=7, facecolors="none", edgecolors=color, linewidths=0.5, alpha=0.35, zorder=1.5,
            label=f"{method} over limit",
        )  # fmt: skip
        sns.scatterplot(
            within, x=x, y=y, s=9, color=color, alpha=0.55, linewidth=0, zorder=2, label=method, legend=False, ax=ax
        )
        _draw_front(ax, pareto_front(within, x, y)[[x, y]].to_numpy(float), method)
        if chosen and method in chosen:
            setting = _find_setting(settings, chosen[method])
            ax.scatter(
                setting[x], setting[y], marker="*", s=95, color=color, edgecolors="white", linewidths=0.7, zorder=5,
                label=f"{method} chosen",
            )  # fmt: skip
    ax.set(xlabel=metric_style(x).heading, ylabel=metric_style(y).heading)
    room = 0.12 if limit or chosen else 0.03  # for the key
    ax.set(xlim=(min(0.0, grid[x].min()) - 0.03, top[0] + 0.03), ylim=(min(0.0, grid[y].min()) - 0.03, top[1] + room))
    key = [f"○ {metric_style(limit[0]).label.lower()} > {limit[1]:.0%}\n— front of ●"] if limit else []
    key += ["★ chosen"] if chosen else []
    ax.annotate(
        "    ".join(key), (0, 1), (3, -2), xycoords="axes fraction", textcoords="offset points", va="top",
        color=MUTED, fontsize=6,
    )  # fmt: skip
    return ax


def _draw_front(ax: Axes, front: np.ndarray, method: str) -> None:
    """The staircase that bounds the reached values, with the name of the method where it meets the x axis."""
    if not len(front):
        return
    look = method_style(method)
    xs = np.concatenate([[-1], np.repeat(front[:, 0], 2)])
    ys = np.concatenate([np.repeat(front[:, 1], 2), [-1]])
    ax.plot(xs, ys, color=look.color, lw=1.3, zorder=3, label=f"{method} front", solid_joinstyle="miter")
    ax.annotate(
        look.label, (front[-1, 0], 0), (-3, 3), textcoords="offset points", va="bottom", ha="right", rotation=90,
        color=look.text_color, fontsize=7, fontweight="bold", zorder=6,
        path_effects=[withStroke(linewidth=2, foreground="white")],
    )  # fmt: skip


def pareto_front(grid: pd.DataFrame, x: str, y: str) -> pd.DataFrame:
    """The rows that no other row exceeds in both metrics, by rising `x`.

    Example:
        >>> pareto_front(pd.DataFrame({"a": [0, 1, 0], "b": [1, 0, 0]}), "a", "b").index.tolist()
        [0, 1]
    """
    ranked = grid.sort_values([x, y], ascending=False, kind="stable")
    best_before = ranked[y].cummax().shift(fill_value=-np.inf)
    return ranked[ranked[y] > best_before][::-1]


def _find_setting(grid: pd.DataFrame, setting: Mapping[str, object]) -> pd.Series:
    """The first row with these column values; numbers are compared up to rounding.

    Raises:
        DataError: no row has them.
    """
    require_columns(grid, list(setting), "the chosen setting")
    same = pd.Series(True, index=grid.index)
    for column, value in setting.items():
        if isinstance(value, int | float):
            same &= np.isclose(grid[column].astype(float), float(value))
        else:
            same &= grid[column] == value
    if not same.any():
        raise DataError(f"none of the {len(grid)} settings is the chosen one: {dict(setting)}")
    return grid[same].iloc[0]
