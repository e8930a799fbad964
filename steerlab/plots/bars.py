"""Measures per method as horizontal bars with intervals and goals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MultipleLocator
from matplotlib.transforms import blended_transform_factory

from steerlab._support.errors import DataError, require_columns
from steerlab.plots.style import METHODS, MUTED, get_axes, method_style
from steerlab.plots.summary import measure

GAP = 1.5  # rows between two measures, with room for a heading
WORDS = 6.0  # points
RIGHT = 1.14  # where the values end, in widths of the axes


def method_bars(
    summary_frame: pd.DataFrame,
    measures: Sequence[str],
    ax: Axes | None = None,
    *,
    values: bool = True,
    headings: bool = True,
    title: str | None = None,
) -> Axes:
    """One group of bars a measure, one bar a method, 95 % intervals, the goal as a dashed line, the value in numbers.

    Example:
        >>> frame = summary_frame(read_summary("results/demo"))
        >>> ax = method_bars(frame, ["refuse_harmful", "defer_expert"])

    Args:
        summary_frame: columns `method`, `measure`, `value`, `low`, `high` (and `n`); see `summary_frame`.
        measures: which to draw, from top to bottom. A method without a measure gets no row in its group.
        ax: where to draw; a new figure otherwise.
        values: write each value at the right edge.
        headings: write each measure's name above its group.
        title: the panel's title; it begins, as the headings do, above the methods' names.

    Returns:
        The axes, with one bar container a method, labeled by the method's name.

    Raises:
        DataError: columns are missing, or a measure has no row.

    Source: own.
    """
    require_columns(summary_frame, ["method", "measure", "value", "low", "high"], "method_bars")
    known = set(summary_frame["measure"])
    if not measures or not known.issuperset(measures):
        raise DataError(f"method_bars needs measures from {sorted(known)}, not {list(measures)}")
    frame = summary_frame[summary_frame["measure"].isin(measures)]
    rank = {m: i for i, m in enumerate(dict.fromkeys([*METHODS, *frame["method"]]))}
    order = sorted(frame["method"].unique(), key=rank.__getitem__)
    ax = get_axes(ax, height=0.16 * (len(frame) + 2 * len(measures)) + 0.4)

    at: dict[tuple[str, str], float] = {}
    spans: dict[str, tuple[float, float]] = {}
    y = 0.0
    for name in measures:
        here = [m for m in order if ((frame["method"] == m) & (frame["measure"] == name)).any()]
        at |= {(m, name): y + i for i, m in enumerate(here)}
        spans[name] = (y, y + len(here) - 1)
        y += len(here) + GAP
    _goals_and_headings(ax, frame, spans, headings)
    for method in order:
        _bars_of(ax, frame[frame["method"] == method], method, at, values)
    if title is not None:
        ax.annotate(
            title, (0, 1), (_indent(order), 6), xycoords="axes fraction", textcoords="offset points",
            fontsize=8, fontweight="bold", annotation_clip=False,
        )  # fmt: skip
    ax.set_yticks(list(at.values()), [method_style(m).label for m, _ in at])
    ax.tick_params(axis="y", length=0)
    for tick, (method, _) in zip(ax.get_yticklabels(), at, strict=True):
        tick.set_color(method_style(method).text)
        tick.set_fontweight("bold" if method == "l2s" else "normal")
    ax.set_ylim(max(at.values()) + 0.7, -1.6 if headings else -0.7)
    ax.set_xlim(min(0.0, float(frame["low"].min())), max(1.0, float(frame["high"].max())) + 0.03)
    ax.xaxis.set_major_locator(MultipleLocator(0.5))
    ax.spines["left"].set_visible(False)
    return ax


def _indent(methods: Iterable[str]) -> float:
    """Where the longest of the methods' names begins, in points from the axes."""
    return -3.7 * max(len(method_style(m).label) for m in methods)


def _bars_of(ax: Axes, rows: pd.DataFrame, method: str, at: dict[tuple[str, str], float], values: bool) -> None:
    look = method_style(method)
    ys = [at[method, name] for name in rows["measure"]]
    middle, low, high = (rows[c].to_numpy(float) for c in ("value", "low", "high"))
    ax.barh(
        ys, middle, height=0.74, label=look.label, linewidth=0.9, edgecolor=look.color,
        color="white" if look.oracle else look.color,
        xerr=np.clip([middle - low, high - middle], 0, None),
        error_kw={"elinewidth": 0.8, "capsize": 1.3, "capthick": 0.8, "ecolor": "#222222"},
    )  # fmt: skip
    edge = blended_transform_factory(ax.transAxes, ax.transData)
    for y, value in zip(ys, middle if values else [], strict=False):
        ax.text(
            RIGHT, y, f"{value:.2f}", transform=edge, ha="right", va="center_baseline", fontsize=WORDS, color=look.text,
            fontweight="bold" if method == "l2s" else "normal",
        )  # fmt: skip


def _goals_and_headings(ax: Axes, frame: pd.DataFrame, spans: dict[str, tuple[float, float]], headings: bool) -> None:
    edge = blended_transform_factory(ax.transAxes, ax.transData)
    for name, (top, bottom) in spans.items():
        told = measure(name)
        if headings:
            ax.annotate(
                told.heading, (0, top - 0.6), (_indent(frame["method"].unique()), 0),
                xycoords=edge, textcoords="offset points", annotation_clip=False,
                ha="left", va="bottom", fontsize=7, fontweight="bold",
            )  # fmt: skip
        if told.goal is None:
            continue
        ax.plot([told.goal] * 2, [top - 0.5, bottom + 0.5], color=MUTED, lw=0.8, ls=(0, (3, 2)), zorder=3)
        word = f"goal {'≤' if told.lower else '≥'} {told.goal:.2f}"
        ax.text(RIGHT, top - 0.6, word, transform=edge, ha="right", va="bottom", color=MUTED, fontsize=WORDS)
