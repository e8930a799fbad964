"""A sweep as a heat map of layers by strengths, and the layers that were selected."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from steerlab.errors import DataError, require_columns
from steerlab.models.sites import in_layer_order
from steerlab.plots.frames import one_row_per
from steerlab.plots.style import DASHES, INK, MORE, MUTED, get_axes

MAX_TICKS = 16


def sweep_heatmap(
    frame: pd.DataFrame,
    ax: Axes | None = None,
    *,
    metric: str = "propensity",
    split: str | None = None,
    layers: Sequence[Any] = (),
    alpha: float | None = None,
    best: Any = None,
    label: str | None = None,
    max_change: float | None = None,
    colorbar: bool = True,
) -> Axes:
    """The mean change of a metric against no steering, at every layer and strength: blue for more, red for less.

    Example:
        >>> selected = select_layers(frame)
        >>> ax = sweep_heatmap(frame, split="validation", layers=selected.layers, alpha=selected.alpha)

    Args:
        frame: from `steerlab.sweep`, of one method and positions. If alpha 0 is among its strengths, means are
            differences to it.
        ax: where to draw; a new figure otherwise.
        metric: one of the metrics in the frame.
        split: only rows of this split.
        layers, alpha, best: the selected layers and strength, which are framed, and the best layer, which gets a star;
            the attributes of a `LayerRange`.
        label: the label of the color bar.
        max_change: the change at either end of the color scale, for several panels on one scale; None: the largest.
        colorbar: draw a color bar beside the axes.

    Returns:
        The axes: strengths without 0 from left to right, layers from bottom to top. White is no change,
        or without alpha 0 a mean of 0; the color bar says which.

    Raises:
        DataError: columns are missing, no row is left, the frame holds several methods or positions, a setting lacks
            inputs, or the selected layers or strength are not in it.
    """
    require_columns(frame, ["layer", "alpha", "metric", "value"], "sweep_heatmap", ["value"])
    rows = frame[frame["metric"] == metric]
    rows = rows if split is None else rows[rows["split"] == split]
    several = [c for c in ("method", "positions", "model") if c in rows and rows[c].nunique() > 1]
    if rows.empty or several:
        raise DataError(
            f"sweep_heatmap({metric!r}, split={split!r}) has {len(rows)} of {len(frame)} rows to draw"
            + (f" and they mix several of {several}: select one first" if several else "")
        )
    keys = [c for c in ("behavior", "example_id") if c in rows]
    inputs, at_setting = (rows[[*keys, *more]].drop_duplicates() for more in ((), ("layer", "alpha")))
    if "example_id" in keys:
        one_row_per(rows, [*keys, "layer", "alpha"], ["value"], "sweep_heatmap")
    if keys and at_setting.groupby(["layer", "alpha"]).size().min() < len(inputs):
        raise DataError("sweep_heatmap needs every input at every setting: give the rows of one split or of one sweep")
    means = rows.pivot_table(index="layer", columns="alpha", values="value", sort=False).sort_index(axis=1)
    means = means.loc[in_layer_order(means.index)]
    what = "Change of mean" if 0 in means else "Mean"
    if 0 in means:
        means = means.sub(means[0], axis=0).drop(columns=0)
    ax = get_axes(ax, height=3.4)
    largest = float(means.abs().max(axis=None))
    most = max_change or largest or 1.0
    sns.heatmap(
        means, cmap="RdBu", vmin=-most, vmax=most, yticklabels=ceil(len(means) / MAX_TICKS), ax=ax, cbar=colorbar,
        xticklabels=[f"{a:g}".replace("-", "−") for a in means.columns],
        cbar_kws={
            "label": label or f"{what} {metric.replace('_', ' ')}", "pad": 0.02,
            "extend": "both" if largest > most else "neither",
        } if colorbar else None,
    )  # fmt: skip
    ax.invert_yaxis()
    ax.tick_params(length=0)
    ax.tick_params(axis="y", rotation=0)
    ax.set(xlabel="Strength α", ylabel="Layer")
    if len(layers) and alpha is not None:
        _frame_selected(ax, means, list(layers), alpha, best)
    return ax


def _frame_selected(ax: Axes, means: pd.DataFrame, selected: list[Any], alpha: float, best: Any) -> None:
    layers, alphas = list(means.index), list(means.columns)
    if not set(selected) <= set(layers) or alpha not in alphas:
        raise DataError(f"the selected layers {selected} at alpha {alpha:g} are not among the settings drawn")
    low, high, column = layers.index(selected[0]), layers.index(selected[-1]), alphas.index(alpha)
    ax.add_patch(Rectangle((column, low), 1, high - low + 1, fill=False, ec=INK, lw=1.2, clip_on=False))
    if best is not None:
        ax.plot(column + 0.5, layers.index(best) + 0.5, marker="*", ms=6, color=INK, mec="white", mew=0.5)


def layer_range_lines(table: pd.DataFrame, ax: Axes | None = None, *, label: str = "Mean", color: str = MORE) -> Axes:
    """The validation mean at every layer for the selected strength, with the selected layers shaded.

    Example:
        >>> ax = layer_range_lines(select_layers(frame).table)

    Args:
        table: `LayerRange.table`: `layer`, `validation`, `gap`, `gap_low`, `gap_high`, `in_range`.
        ax: where to draw; a new figure otherwise.
        label: the label of the y axis.
        color: of the points and the shade.

    Returns:
        The axes: a point per layer, with the interval of its gap to the best layer.

    Raises:
        DataError: columns are missing.
    """
    columns = ["layer", "validation", "gap_low", "gap_high", "in_range"]
    require_columns(table, columns, "layer_range_lines", ["validation"])
    ax = get_axes(ax)
    mean, best, x = table["validation"].to_numpy(float), float(table["validation"].max()), np.arange(len(table))
    selected = np.flatnonzero(table["in_range"].to_numpy(bool))
    ax.axvspan(selected[0] - 0.5, selected[-1] + 0.5, color=color, alpha=0.12, lw=0)
    bars = np.clip([mean - (best - table["gap_high"]), (best - table["gap_low"]) - mean], 0, None)
    ax.errorbar(x, mean, yerr=bars, fmt="o", ms=3, lw=0.7, color=color, ecolor=MUTED)
    ax.axhline(best, color=MUTED, lw=0.6, ls=DASHES[1])
    step = ceil(len(table) / MAX_TICKS)
    ax.set_xticks(x[::step], [str(layer) for layer in table["layer"][::step]])
    ax.set(xlabel="Layer", ylabel=label)
    return ax
