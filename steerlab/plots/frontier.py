"""Two wanted behaviors against each other, every cell of a grid a point."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from steerlab._support.errors import DataError, require_columns
from steerlab.plots.style import GOAL, METHODS, MUTED, get_axes, method_style
from steerlab.plots.summary import measure

Chosen = Mapping[str, Mapping[str, object]]


def trade_off(
    grid: pd.DataFrame,
    x: str = "refuse_harmful",
    y: str = "defer_expert",
    ax: Axes | None = None,
    goal: tuple[float, float] = (0.8, 0.8),
    *,
    limit: tuple[str, float] | None = ("refuse_expert", 0.03),
    chosen: Chosen | None = None,
) -> Axes:
    """Every cell of a grid as a point, each method's Pareto front, and the goal as a shaded corner.

    Example:
        >>> grid = pd.read_csv("results/l2s_safety/grid.csv")
        >>> ax = trade_off(grid, chosen={"l2s": {"layer": 16, "alpha": 1.2}})

    Args:
        grid: one row a cell; columns `method`, `x`, `y`, that of `limit`, and those named in `chosen`.
        x, y: two measures, more is better.
        ax: where to draw; a new figure otherwise.
        goal: the wanted smallest values of `x` and `y`.
        limit: a third measure and its largest allowed value. Cells beyond it are drawn faint and hollow, and no
            front passes through them.
        chosen: for each method to mark, the setting (column to value) of its chosen cell.

    Returns:
        The axes; artists carry the labels "METHOD cells", "METHOD cells over limit", "METHOD front", "METHOD chosen".

    Raises:
        DataError: columns are missing, or no cell has a chosen setting.

    Source: own.
    """
    require_columns(grid, ["method", x, y, *([limit[0]] if limit else [])], "trade_off")
    ax = get_axes(ax, height=3.2)
    corner = (_limits(grid[x])[1], _limits(grid[y])[1])
    size = (corner[0] - goal[0], corner[1] - goal[1])
    ax.add_patch(Rectangle(goal, *size, color=GOAL, lw=0, zorder=0, label="goal"))
    ax.text(goal[0] + size[0] / 2, corner[1] - 0.02, "goal", color=MUTED, fontsize=7, ha="center", va="top")
    known = dict.fromkeys(m for m in [*METHODS, *grid["method"]] if (grid["method"] == m).any())
    for method in known:
        cells = grid[grid["method"] == method]
        within = cells[limit[0]] <= limit[1] + 1e-9 if limit else pd.Series(True, index=cells.index)
        color = method_style(method).color
        over, good = cells[~within], cells[within]
        ax.scatter(
            over[x], over[y], s=7, facecolors="none", edgecolors=color, linewidths=0.5, alpha=0.35, zorder=1.5,
            label=f"{method} cells over limit",
        )  # fmt: skip
        ax.scatter(
            good[x], good[y], s=9, color=color, alpha=0.55, linewidths=0, zorder=2, label=f"{method} cells",
        )  # fmt: skip
        _draw_front(ax, pareto_front(good, x, y)[[x, y]].to_numpy(float), method)
        if chosen and method in chosen:
            cell = find_setting(cells, chosen[method])
            ax.scatter(
                cell[x], cell[y], marker="*", s=95, color=color, edgecolors="white", linewidths=0.7, zorder=5,
                label=f"{method} chosen",
            )  # fmt: skip
    ax.set(xlabel=measure(x).heading, ylabel=measure(y).heading)
    ax.set(xlim=_limits(grid[x]), ylim=_limits(grid[y], room=0.12 if limit or chosen else 0.03))
    _key(ax, limit, bool(chosen))
    return ax


def _draw_front(ax: Axes, front: Float[np.ndarray, "cell xy"], method: str) -> None:
    """The staircase below which everything is reached, with the method's name at its top."""
    if not len(front):
        return
    look, near_left = method_style(method), front[0, 0] < 0.4
    xs = np.concatenate([[-1], np.repeat(front[:, 0], 2)])
    ys = np.concatenate([np.repeat(front[:, 1], 2), [-1]])
    ax.plot(xs, ys, color=look.color, lw=1.3, zorder=3, label=f"{method} front", solid_joinstyle="miter")
    ax.annotate(
        look.label, tuple(front[0]), (5 if near_left else -5, 3), textcoords="offset points", va="bottom",
        ha="left" if near_left else "right",
        color=look.text, fontsize=7, fontweight="bold", zorder=6,
        path_effects=[withStroke(linewidth=2, foreground="white")],
    )  # fmt: skip


def _key(ax: Axes, limit: tuple[str, float] | None, stars: bool) -> None:
    """What hollow points and stars are, inside the top edge."""
    readable_name = [f"○ {measure(limit[0]).label.lower()} > {limit[1]:.0%}"] if limit else []
    readable_name += ["★ chosen"] if stars else []
    ax.annotate(
        "    ".join(readable_name), (0, 1), (3, -2), xycoords="axes fraction", textcoords="offset points", va="top",
        color=MUTED, fontsize=6,
    )  # fmt: skip


def pareto_front(cells: pd.DataFrame, x: str, y: str) -> pd.DataFrame:
    """The cells that no other cell beats in both measures, by rising `x`.

    Example:
        >>> pareto_front(pd.DataFrame({"a": [0, 1, 0], "b": [1, 0, 0]}), "a", "b").index.tolist()
        [0, 1]
    """
    ranked = cells.sort_values([x, y], ascending=False, kind="stable")
    best_before = ranked[y].cummax().shift(fill_value=-np.inf)
    return ranked[ranked[y] > best_before][::-1]


def find_setting(cells: pd.DataFrame, setting: Mapping[str, object]) -> pd.Series:
    """The first cell with that setting; numbers are compared up to rounding.

    Raises:
        DataError: no cell has it.
    """
    require_columns(cells, list(setting), "the chosen cell")
    same = pd.Series(True, index=cells.index)
    for column, value in setting.items():
        if isinstance(value, int | float):
            same &= np.isclose(cells[column].astype(float), float(value))
        else:
            same &= cells[column] == value
    if not same.any():
        raise DataError(f"none of the {len(cells)} cells has the chosen setting {dict(setting)}")
    return cells[same].iloc[0]


def _limits(values: pd.Series, room: float = 0.03) -> tuple[float, float]:
    return min(-0.03, float(values.min()) - 0.03), max(1.0, float(values.max())) + room
