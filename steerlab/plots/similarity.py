"""Square tables of similarities as heat maps, and states of many dimensions as a map in the plane."""

from __future__ import annotations

from math import ceil

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from steerlab._support.checks import show
from steerlab.errors import DataError, require_columns
from steerlab.plots.style import MARKERS, behavior_styles, get_axes

MAX_ANNOTATED = 12  # rows up to which every value is written in its square
MAX_TICKS = 14


def cosine_heatmap(matrix: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Cosines on a fixed scale from -1 (red) to 1 (blue); values are written in up to twelve rows.

    Example:
        >>> ax = cosine_heatmap(cosine_matrix({"refuse": v, "defer": w}))

    Args:
        matrix: from `steerlab.analysis.similarity.cosine_matrix`; any frame of values between -1 and 1.
        ax: where to draw; a new figure otherwise.

    Returns:
        The axes.

    Raises:
        DataError: the frame is empty, or a value is not between -1 and 1.
    """
    return _heatmap(matrix, ax, label="Cosine", cmap="RdBu", low=-1.0)


def layer_heatmap(matrix: pd.DataFrame, ax: Axes | None = None, *, label: str = "CKA") -> Axes:
    """Values from 0 to 1 between layers, lighter for larger; layer 0 is at the lower left.

    Example:
        >>> ax = layer_heatmap(cka_matrix(acts))

    Args:
        matrix: from `steerlab.analysis.cka.cka_matrix`; any frame of values between 0 and 1.
        ax: where to draw; a new figure otherwise.
        label: the label of the color bar.

    Returns:
        The axes.

    Raises:
        DataError: the frame is empty, or a value is not between 0 and 1.
    """
    ax = _heatmap(matrix, ax, label=label, cmap="cividis", low=0.0)
    ax.invert_yaxis()
    ax.set(xlabel="Layer", ylabel="Layer")
    return ax


def map_scatter(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Points in the plane, with a color and a marker per label and equal scales on both axes.

    Example:
        >>> ax = map_scatter(map_2d(states, labels))

    Args:
        frame: from `steerlab.analysis.geometry.map_2d`: columns `x`, `y`, `label`. The shares of variance in
            `frame.attrs["explained"]` go to the axis labels.
        ax: where to draw; a new figure otherwise.

    Returns:
        The axes; the legend covers no point.

    Raises:
        DataError: columns are missing.
    """
    require_columns(frame, ["x", "y", "label"], "map_scatter", ["x", "y"])
    ax = get_axes(ax)
    labels = list(dict.fromkeys(frame["label"].astype(str)))
    palette = {name: look.color for name, look in behavior_styles(labels).items()}
    markers = {name: MARKERS[i % len(MARKERS)] for i, name in enumerate(labels)}
    sns.scatterplot(
        frame.astype({"label": str}), x="x", y="y", hue="label", style="label", palette=palette, markers=markers,
        s=14, alpha=0.75, linewidth=0.3, ax=ax,
    )  # fmt: skip
    columns = min(3, len(labels))
    (left, low), (_, high) = ax.dataLim.get_points()
    ax.update_datalim([(left, high + (high - low) * (0.03 + 0.09 * ceil(len(labels) / columns)))])  # for the legend
    ax.autoscale_view()
    ax.set_aspect("equal", adjustable="datalim")
    ax.legend(loc="upper left", ncols=columns, borderaxespad=0.1, handletextpad=0.1, columnspacing=1.0)
    explained = frame.attrs.get("explained")
    names = [f"Component {i + 1} ({explained[i]:.0%})" if explained else f"Axis {i + 1}" for i in range(2)]
    ax.set(xlabel=names[0], ylabel=names[1])
    return ax


def _heatmap(matrix: pd.DataFrame, ax: Axes | None, *, label: str, cmap: str, low: float) -> Axes:
    try:
        values = matrix.to_numpy(float)
    except (AttributeError, TypeError, ValueError) as error:
        raise DataError(f"a heat map of {label!r} needs a frame of numbers, got {show(matrix)}") from error
    # rounding may leave a cosine slightly above 1
    if not values.size or not ((values >= low - 1e-6) & (values <= 1 + 1e-6)).all():
        span = f"{np.nanmin(values):g} to {np.nanmax(values):g}" if np.isfinite(values).any() else "no finite value"
        raise DataError(
            f"a heat map of {label!r} needs a non-empty frame of values from {low:g} to 1, without NaN; this one is "
            f"{values.shape} and holds {span}"
        )
    ax = get_axes(ax, height=3.0)
    columns = [_label(name) for name in matrix.columns]
    rows = [_label(name) for name in matrix.index]
    small = max(values.shape) <= MAX_ANNOTATED
    sns.heatmap(
        pd.DataFrame(values, rows, columns), vmin=low, vmax=1, cmap=cmap, square=True, ax=ax,
        annot=np.vectorize(_short_number)(values) if small else None, fmt="", annot_kws={"fontsize": 5.5},
        xticklabels=ceil(len(columns) / MAX_TICKS), yticklabels=ceil(len(rows) / MAX_TICKS),
        cbar_kws={"label": label, "shrink": 0.85, "pad": 0.02, "ticks": np.linspace(low, 1, 5)},
    )  # fmt: skip
    ax.tick_params(axis="x", length=0, rotation=90 if max(map(len, columns)) > 3 else 0)
    ax.tick_params(axis="y", length=0, rotation=0)
    return ax


def _label(name: object) -> str:
    """The label of a row; the parts of a tuple are joined by spaces."""
    return " ".join(map(str, name)) if isinstance(name, tuple) else str(name)


def _short_number(value: float) -> str:
    return "0" if abs(value) < 0.005 else f"{value:.2f}".replace("0.", ".").replace("-", "−").replace("1.00", "1")
