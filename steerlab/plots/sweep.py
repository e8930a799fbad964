"""A sweep as a picture: layers by strengths, with the band that was chosen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from steerlab._support.errors import DataError, require_columns
from steerlab.plots.style import MUTED, get_axes

INK = "#222222"


def sweep_heatmap(
    frame: pd.DataFrame,
    ax: Axes | None = None,
    *,
    metric: str = "propensity",
    split: str | None = None,
    layer_range: Sequence[Any] = (),
    alpha: float | None = None,
    best: Any = None,
    title: str | None = None,
    what: str | None = None,
    limit: float | None = None,
    bar: bool = True,
) -> Axes:
    """Mean change of a metric against no steering, at every layer and strength: blue for more, red for less.

    Example:
        >>> layer_range = select_layers(frame)
        >>> ax = sweep_heatmap(frame, split="validation", layer_range=found.layers, alpha=found.alpha, best=found.best)

    Args:
        frame: from `steerlab.sweep`, of one method and positions. With alpha 0 in it, means are differences to it.
        ax: where to draw; a new figure otherwise.
        metric: which of the metrics in the frame.
        split: only rows of this split.
        band, alpha, best: layers and strength to frame, and the best layer to mark; of a `LayerRange`.
        title: the panel's title.
        what: the words at the color bar.
        limit: the change at either end of the colors, for several pictures on one scale; None: the largest there is.
        bar: draw a color bar beside the axes.

    Returns:
        The axes: strengths from left to right without 0, layers from below to above. White is no change.

    Raises:
        DataError: columns are missing, nothing is left of the frame, or it holds several methods or positions.

    Source: own.
    """
    require_columns(frame, ["layer", "alpha", "metric", "value"], "sweep_heatmap")
    rows = frame[frame["metric"] == metric]
    rows = rows if split is None else rows[rows["split"] == split]
    many = [c for c in ("method", "positions", "model") if c in rows and rows[c].nunique() > 1]
    if rows.empty or many:
        raise DataError(
            f"sweep_heatmap({metric!r}, split={split!r}) has {len(rows)} of {len(frame)} rows to draw"
            + (f" and they mix several of {many}: select one first" if many else "")
        )
    means = rows.pivot_table(index="layer", columns="alpha", values="value", sort=False).sort_index(axis=1)
    if 0 in means:
        means = means.sub(means[0], axis=0).drop(columns=0)
    values = means.to_numpy(float)
    ax = get_axes(ax, height=3.4)
    most = limit or float(np.abs(values).max()) or 1.0
    image = ax.imshow(
        values, cmap="RdBu", vmin=-most, vmax=most, aspect="auto", origin="lower", interpolation="nearest"
    )
    step = -(-len(means) // 16)
    ax.set_yticks(range(0, len(means), step), [str(layer) for layer in means.index[::step]])
    ax.set_xticks(range(values.shape[1]), [f"{a:g}".replace("-", "−") for a in means.columns])
    ax.set(xlabel="Strength α", ylabel="Layer")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    if len(layer_range) and alpha is not None:
        _frame_band(ax, means, list(layer_range), alpha, best)
    if bar:
        made = ax.figure.colorbar(image, ax=ax, pad=0.02)
        made.set_label(what or f"Change of mean {metric.replace('_', ' ')}", fontsize=7)
        made.ax.tick_params(labelsize=6.5)
        made.outline.set_visible(False)
    if title:
        ax.set_title(title)
    return ax


def layer_range_lines(
    table: pd.DataFrame, ax: Axes | None = None, *, title: str | None = None, what: str = "Mean"
) -> Axes:
    """The validation mean of every layer at the chosen strength, with the band that is as good as the best.

    Example:
        >>> ax = layer_range_lines(select_layers(frame).table)

    Args:
        table: `LayerRange.table`: `layer`, `validation`, `gap`, `gap_low`, `gap_high`, `in_range`.
        ax: where to draw; a new figure otherwise.
        title: the panel's title.
        what: the words at the y axis.

    Returns:
        The axes: a point per layer, bars for the interval of its gap to the best, the band shaded.

    Raises:
        DataError: columns are missing.

    Source: own.
    """
    require_columns(table, ["layer", "validation", "gap_low", "gap_high", "in_range"], "layer_range_lines")
    ax = get_axes(ax)
    best = float(table["validation"].max())
    x = np.arange(len(table))
    inside = np.flatnonzero(table["in_range"].to_numpy(bool))
    ax.axvspan(inside.min() - 0.5, inside.max() + 0.5, color="#0072B2", alpha=0.12, lw=0)
    mean = table["validation"].to_numpy(float)
    bars = np.clip([mean - (best - table["gap_high"]), (best - table["gap_low"]) - mean], 0, None)
    ax.errorbar(x, mean, yerr=bars, fmt="o", ms=3, lw=0.7, color="#0072B2", ecolor=MUTED)
    ax.axhline(best, color=MUTED, lw=0.6, ls=(0, (3, 2)))
    step = -(-len(table) // 16)
    ax.set_xticks(x[::step], [str(layer) for layer in table["layer"][::step]])
    ax.set(xlabel="Layer", ylabel=what)
    if title:
        ax.set_title(title)
    return ax


def _frame_band(ax: Axes, means: pd.DataFrame, layer_range: list[Any], alpha: float, best: Any) -> None:
    layers, alphas = list(means.index), list(means.columns)
    missing = [layer for layer in layer_range if layer not in layers]
    if missing or alpha not in alphas:
        raise DataError(f"the band (layers {layer_range}, alpha {alpha:g}) is not among the cells drawn")
    low, high, column = layers.index(layer_range[0]), layers.index(layer_range[-1]), alphas.index(alpha)
    ax.add_patch(Rectangle((column - 0.5, low - 0.5), 1, high - low + 1, fill=False, ec=INK, lw=1.2, clip_on=False))
    if best is not None:
        ax.plot(column, layers.index(best), marker="*", ms=6, color=INK, mec="white", mew=0.5)
