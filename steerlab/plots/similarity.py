"""Square tables as pictures, and points of many dimensions on a map."""

from __future__ import annotations

from math import ceil
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from steerlab._support.errors import DataError, require_columns
from steerlab.plots.style import METHODS, get_axes

WRITTEN = 12  # up to so many rows, each cell's value is written in it
MOST_TICKS = 14
# the methods' colors in another order, and their darker shades for words on white
_ORDER = [METHODS[name] for name in ("l2s", "mean", "p2s", "random", "prompt", "always_no", "none")]
COLORS, TEXT_COLORS = tuple(look.color for look in _ORDER), tuple(look.text for look in _ORDER)
MARKERS = ("o", "^", "s", "D", "v", "P", "X", "*")  # one more than the colors: seven times eight differ


def cosine_heatmap(matrix: pd.DataFrame, ax: Axes | None = None, *, title: str | None = None, bar: bool = True) -> Axes:
    """Cosines on a fixed scale from -1 to 1, blue along, red against, white for none.

    Example:
        >>> ax = cosine_heatmap(cosine_matrix({"refuse": v, "defer": w}))

    Args:
        matrix: from `steerlab.analysis.similarity.cosine_matrix`; any frame of values between -1 and 1.
        ax: where to draw; a new figure otherwise.
        title: the panel's title.
        bar: draw a color bar beside the axes.

    Returns:
        The axes; values are written in the cells of up to twelve rows.

    Raises:
        DataError: the frame is empty, or a value is not between -1 and 1.

    Source: own.
    """
    return _heatmap(matrix, ax, title, bar, what="Cosine", colors="RdBu", low=-1.0)


def layer_heatmap(
    matrix: pd.DataFrame, ax: Axes | None = None, *, title: str | None = None, bar: bool = True, what: str = "CKA"
) -> Axes:
    """Values from 0 to 1 between layers, lighter for more; layer 0 is at the lower left.

    Example:
        >>> ax = layer_heatmap(cka_matrix(acts))

    Args:
        matrix: from `steerlab.analysis.cka.cka_matrix`; any frame of values between 0 and 1.
        ax: where to draw; a new figure otherwise.
        title: the panel's title.
        bar: draw a color bar beside the axes.
        what: what the values are, for the color bar.

    Returns:
        The axes.

    Raises:
        DataError: the frame is empty, or a value is not between 0 and 1.

    Source: own.
    """
    ax = _heatmap(matrix, ax, title, bar, what=what, colors="cividis", low=0.0)
    ax.invert_yaxis()
    ax.set_xlabel("Layer")
    ax.set_ylabel("Layer")
    return ax


def map_scatter(frame: pd.DataFrame, ax: Axes | None = None, *, title: str | None = None) -> Axes:
    """Points of a plane, each label with a color and a marker of its own, named above the points.

    Example:
        >>> ax = map_scatter(map_2d(states, labels))

    Args:
        frame: from `steerlab.analysis.maps.map_2d`: columns `x`, `y`, `label`.
        ax: where to draw; a new figure otherwise.
        title: the panel's title.

    Returns:
        The axes, one collection a label; both axes have one scale, as distances are meant to be seen.

    Raises:
        DataError: columns are missing.

    Source: own.
    """
    require_columns(frame, ["x", "y", "label"], "map_scatter")
    ax = get_axes(ax)
    labels = list(dict.fromkeys(frame["label"]))
    for number, label in enumerate(labels):
        rows = frame[frame["label"] == label]
        ax.scatter(
            rows["x"], rows["y"], s=11, marker=MARKERS[number % len(MARKERS)], color=COLORS[number % len(COLORS)],
            alpha=0.75, linewidths=0.3, edgecolors="white", label=str(label),
        )  # fmt: skip
    columns = min(3, len(labels))
    # room for the names above the highest point, so that they cover none
    (left, low), (_, high) = ax.dataLim.get_points()
    ax.update_datalim([(left, high + (high - low) * (0.03 + 0.09 * ceil(len(labels) / columns)))])
    ax.autoscale_view()
    ax.set_aspect("equal", adjustable="datalim")
    ax.legend(
        loc="upper left", ncols=columns, borderaxespad=0.1, handletextpad=0.1, columnspacing=1.0, fontsize=6.5,
        frameon=False,
    )  # fmt: skip
    shares = frame.attrs.get("explained")
    for axis, number in ((ax.xaxis, 0), (ax.yaxis, 1)):
        axis.set_label_text(f"Component {number + 1} ({shares[number]:.0%})" if shares else f"Axis {number + 1}")
    if title:
        ax.set_title(title)
    return ax


def label_text(label: Any) -> str:
    """A row's name as text; the parts of a tuple with spaces between."""
    return " ".join(map(str, label)) if isinstance(label, tuple) else str(label)


def _heatmap(
    matrix: pd.DataFrame, ax: Axes | None, title: str | None, bar: bool, *, what: str, colors: str, low: float
) -> Axes:
    values = matrix.to_numpy(float)
    # rounding may leave a cosine a hair above 1
    if not values.size or not ((values >= low - 1e-6) & (values <= 1 + 1e-6)).all():
        span = f"{np.nanmin(values):g} to {np.nanmax(values):g}" if np.isfinite(values).any() else "nothing finite"
        raise DataError(
            f"a picture of {what!r} needs a non-empty frame of values from {low:g} to 1, without NaN; this one is "
            f"{values.shape} and holds {span}"
        )
    ax = get_axes(ax, height=3.0)
    image = ax.imshow(values, cmap=colors, vmin=low, vmax=1, interpolation="nearest", aspect="equal")
    rows, columns = ([label_text(label) for label in names] for names in (matrix.index, matrix.columns))
    for axis, names in ((ax.yaxis, rows), (ax.xaxis, columns)):
        step = ceil(len(names) / MOST_TICKS)
        axis.set_ticks(range(0, len(names), step), names[::step])
    if max(map(len, columns)) > 3:
        ax.tick_params(axis="x", rotation=90)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    if len(rows) <= WRITTEN and len(columns) <= WRITTEN:
        for (i, j), value in np.ndenumerate(values):
            red, green, blue, _ = image.cmap(image.norm(value))
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
            ink = "white" if dark else "#222222"
            told = f"{value:.2f}".replace("0.", ".").replace("-", "−").replace("1.00", "1")
            text = "0" if abs(value) < 0.005 else told
            ax.text(j, i, text, ha="center", va="center", fontsize=5.5, color=ink)
    if bar:
        made = ax.figure.colorbar(image, ax=ax, shrink=0.85, pad=0.02, ticks=np.linspace(low, 1, 5))
        made.set_label(what, fontsize=7)
        made.ax.tick_params(labelsize=6.5)
        made.outline.set_visible(False)
    if title:
        ax.set_title(title)
    return ax
