"""Metrics per method as horizontal bars with intervals and goals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MultipleLocator

from steerlab.errors import DataError, require_columns
from steerlab.plots.frames import one_row_per
from steerlab.plots.style import DASHES, INK, METHODS, MUTED, get_axes, method_style
from steerlab.plots.summary import metric_style

GROUP_GAP = 1.5  # rows between two metrics, with room for a heading
VALUE_SIZE = 6.0  # points
VALUES_END = 1.17  # right edge of the numbers; 0 and 1 are the left and right edge of the axes


def method_bars(
    estimates: pd.DataFrame,
    metrics: Sequence[str],
    ax: Axes | None = None,
    *,
    headings: bool = True,
    title: str | None = None,
) -> Axes:
    """One group of bars per metric and one bar per method, with intervals, values in numbers and a dashed goal.

    Example:
        >>> frame = summary_frame(read_summary("results/demo"))
        >>> ax = method_bars(frame, ["refuse_harmful", "defer_expert"])

    Args:
        estimates: columns `method`, `metric`, `value`, `low`, `high`; see `summary_frame`.
        metrics: which to draw, from top to bottom. Methods that have no value for a metric are left
            out of its group.
        ax: where to draw; a new figure otherwise.
        headings: write the name of each metric above its group.
        title: the title of the panel; like the headings it begins above the names of the methods.

    Returns:
        The axes, with one bar container per method, labeled by its name.

    Raises:
        DataError: columns are missing, or no method has a value for a metric.
    """
    require_columns(estimates, ["method", "metric", "value", "low", "high"], "method_bars", ["value"])
    known = set(estimates["metric"])
    if isinstance(metrics, str) or not metrics or not known.issuperset(metrics):
        raise DataError(f"method_bars needs metrics from {sorted(known)}, not {metrics!r}")
    frame = one_row_per(estimates[estimates["metric"].isin(metrics)], ["method", "metric"], ["value"], "method_bars")
    methods = [m for m in dict.fromkeys([*METHODS, *frame["method"]]) if (frame["method"] == m).any()]
    ax = get_axes(ax, height=0.16 * (len(frame) + 2 * len(metrics)) + 0.4)

    blended = ax.get_yaxis_transform()
    rows: dict[tuple[str, str], float] = {}
    y = 0.0
    for name in metrics:
        drawn = [m for m in methods if ((frame["method"] == m) & (frame["metric"] == name)).any()]
        rows |= {(method, name): y + i for i, method in enumerate(drawn)}
        _draw_goal(ax, name, y, y + len(drawn) - 1)
        if headings:
            _write_left(ax, metric_style(name).heading, y - 0.6, methods, xycoords=blended, va="bottom", fontsize=7)
        y += len(drawn) + GROUP_GAP
    for method in methods:
        _draw_bars(ax, frame[frame["method"] == method], method, rows)
    if title is not None:
        _write_left(ax, title, 1.0, methods, rise=6.0, xycoords="axes fraction", fontsize=8)
    ax.set_yticks(list(rows.values()), [method_style(m).label for m, _ in rows])
    ax.tick_params(axis="y", length=0)
    for tick, (method, _) in zip(ax.get_yticklabels(), rows, strict=True):
        tick.set_color(method_style(method).text_color)
        tick.set_fontweight("bold" if method == "l2s" else "normal")
    ax.set_ylim(max(rows.values()) + 0.7, -1.6 if headings else -0.7)
    ends = frame[["value", "low", "high"]]  # the ends of an interval may be missing
    ax.set_xlim(min(0.0, float(ends.min(axis=None))), max(1.0, float(ends.max(axis=None))) + 0.03)
    ax.xaxis.set_major_locator(MultipleLocator(0.5))
    ax.spines["left"].set_visible(False)
    return ax


def _write_left(ax: Axes, text: str, y: float, methods: Sequence[str], rise: float = 0.0, **options: Any) -> None:
    """Write bold text whose left edge is that of the longest method name beside the axes."""
    indent = -3.7 * max(len(method_style(m).label) for m in methods)
    ax.annotate(
        text, (0, y), (indent, rise), textcoords="offset points", fontweight="bold", annotation_clip=False, **options
    )


def _draw_bars(ax: Axes, estimates: pd.DataFrame, method: str, rows: dict[tuple[str, str], float]) -> None:
    look = method_style(method)
    ys = [rows[method, name] for name in estimates["metric"]]
    value, low, high = (estimates[c].to_numpy(float) for c in ("value", "low", "high"))
    ax.barh(
        ys, value, height=0.74, label=look.label, linewidth=0.9, edgecolor=look.color,
        color="white" if look.outline else look.color, xerr=np.clip([value - low, high - value], 0, None),
        error_kw={"elinewidth": 0.8, "capsize": 1.3, "capthick": 0.8, "ecolor": INK},
    )  # fmt: skip
    for y, number in zip(ys, value, strict=True):
        ax.text(
            VALUES_END, y, f"{number:.2f}", transform=ax.get_yaxis_transform(), ha="right", va="center_baseline",
            fontsize=VALUE_SIZE, color=look.text_color, fontweight="bold" if method == "l2s" else "normal",
        )  # fmt: skip


def _draw_goal(ax: Axes, name: str, top: float, bottom: float) -> None:
    """A dashed line through the rows from `top` to `bottom`, and the goal in words above them."""
    metric = metric_style(name)
    if metric.goal is None:
        return
    ax.plot([metric.goal] * 2, [top - 0.5, bottom + 0.5], color=MUTED, lw=0.8, ls=DASHES[1], zorder=3)
    blended = ax.get_yaxis_transform()
    text = f"goal {'≤' if metric.lower_is_better else '≥'} {metric.goal:.2f}"
    ax.text(VALUES_END, top - 0.6, text, transform=blended, ha="right", va="bottom", color=MUTED, fontsize=VALUE_SIZE)
