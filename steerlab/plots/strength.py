"""Measures against steering strength, one color a method, one line style a measure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from steerlab._support.errors import DataError, require_columns
from steerlab.plots.style import METHODS, get_axes, method_style
from steerlab.plots.summary import measure

DASHES = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D")


def strength_curves(
    grid: pd.DataFrame,
    measures: Sequence[str] = ("refuse_harmful", "defer_expert"),
    ax: Axes | None = None,
    **where: str | int | float,
) -> Axes:
    """Measures against alpha for every method of a grid, at one place, labeled at the line ends.

    Example:
        >>> ax = strength_curves(grid, layer=16, positions="all", sentences="domain")

    Args:
        grid: columns `method`, `alpha`, the measures and those named in `where`.
        measures: at most four.
        ax: where to draw; a new figure otherwise.
        where: column=value pairs that leave one row a method and alpha.

    Returns:
        The axes, one line a method and measure, labeled "METHOD MEASURE".

    Raises:
        DataError: columns are missing, `where` leaves nothing or several rows for one alpha, or too many measures.

    Source: own; the scan over alpha follows L2S, arXiv 2508.12815, appendix.
    """
    require_columns(grid, ["method", "alpha", *measures, *where], "strength_curves")
    if len(measures) > len(DASHES):
        raise DataError(f"{len(measures)} measures given, at most {len(DASHES)} can be told apart: draw two figures")
    cells = grid
    for column, value in where.items():
        cells = cells[cells[column] == value]
    double = cells[cells.duplicated(["method", "alpha"], keep=False)]
    if cells.empty or len(double):
        differ = [
            c
            for c in ("layer", "positions", "sentences", "targets", "round")
            if c in double and double[c].nunique() > 1
        ]
        raise DataError(
            f"{dict(where)} leaves {len(cells)} of {len(grid)} rows, {len(double)} of them with another row of "
            f"the same method and alpha; choose values that exist, and one of each of {differ}"
        )
    ax = get_axes(ax)
    ends: list[tuple[float, str, str]] = []
    for method in dict.fromkeys(m for m in [*METHODS, *cells["method"]] if (cells["method"] == m).any()):
        look, rows = method_style(method), cells[cells["method"] == method].sort_values("alpha")
        for name, dash, marker in zip(measures, DASHES, MARKERS, strict=False):
            ax.plot(
                rows["alpha"], rows[name], ls=dash, marker=marker, ms=3, color=look.color, label=f"{method} {name}",
            )  # fmt: skip
            ends.append((float(rows[name].iloc[-1]), f"{look.label}: {measure(name).label.lower()}", look.text))
    top = max(1.0, float(cells[list(measures)].max().max()))
    low = min(0.0, float(cells[list(measures)].min().min()))
    ax.set(xlabel="Strength α", ylabel="Share of inputs", ylim=(low - 0.03, top + 0.03))
    alphas = sorted(cells["alpha"].unique())
    ax.set_xticks(alphas, [f"{a:g}" for a in alphas])
    for height, (_, text, color) in zip(separate_labels([e[0] for e in ends], 0.065 * (top - low)), ends, strict=True):
        ax.annotate(
            text, (1.0, height), (4, 0), xycoords=ax.get_yaxis_transform(), textcoords="offset points",
            va="center", color=color, fontsize=6.5, annotation_clip=False,
        )  # fmt: skip
    return ax


def separate_labels(heights: Sequence[float], gap: float) -> list[float]:
    """Heights moved as little as needed so that neighbors are at least `gap` apart; the order is kept.

    Example:
        >>> separate_labels([0.5, 0.5], 0.1)
        [0.45, 0.55]
    """
    order = np.argsort(heights, kind="stable")
    # with the wanted gaps taken out, neighbors may touch: the nearest non-decreasing sequence is their pooled means
    pools: list[list[float]] = []
    for place, i in enumerate(order):
        pools.append([heights[i] - gap * place])
        while len(pools) > 1 and np.mean(pools[-2]) > np.mean(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    flat = [float(np.mean(pool)) for pool in pools for _ in pool]
    found = np.empty(len(heights))
    found[order] = [value + gap * place for place, value in enumerate(flat)]
    return [round(float(v), 12) for v in found]
