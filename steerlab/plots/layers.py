"""Mean slopes over layers, all data sets at once."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from steerlab._support.errors import DataError, require_columns
from steerlab.plots.style import METHODS, MUTED, get_axes

_MEAN = METHODS["l2s"]


def layer_lines(
    frame: pd.DataFrame,
    ax: Axes | None = None,
    *,
    value: str = "steerability",
    chosen: int | None = None,
    title: str | None = None,
) -> Axes:
    """The mean slope over layers: a thin gray line a data set, their mean in color, the chosen layer marked.

    Example:
        >>> ax = layer_lines(steerability(slopes(frame), ("behavior", "layer")), chosen=13)

    Args:
        frame: from `steerlab.analysis.steerability.steerability`, one row a data set and layer.
        ax: where to draw; a new figure otherwise.
        value: the column to draw.
        chosen: the layer that is marked.
        title: the panel's title.

    Returns:
        The axes, one line a data set, labeled by it, and one labeled "mean".

    Raises:
        DataError: columns are missing, a layer holds a data set several times, or the chosen layer is not there.

    Source: Tan et al., arXiv 2407.12404, section 4 (one layer for all data sets); the picture is own.
    """
    require_columns(frame, ["behavior", "layer", value], "layer_lines")
    twice = int(frame.duplicated(["behavior", "layer"]).sum())
    if twice:
        raise DataError(f"layer_lines got {twice} rows of a data set and layer that were there before; choose one each")
    wide = frame.pivot(index="layer", columns="behavior", values=value).sort_index()
    if chosen is not None and chosen not in wide.index:
        raise DataError(f"layer {chosen} is not among those drawn: {list(wide.index)}")
    ax = get_axes(ax)
    ax.axhline(0, color=MUTED, lw=0.6, ls=(0, (3, 2)), zorder=0)
    for name in wide:
        ax.plot(wide.index, wide[name], color="#C4C4C4", lw=0.5, zorder=1, label=str(name))
    mean = wide.mean(axis=1)
    ax.plot(mean.index, mean, color=_MEAN.color, lw=1.6, zorder=3, label="mean")
    if chosen is not None:
        ax.axvline(chosen, color=MUTED, lw=0.7, ls=(0, (1, 1.2)), zorder=2)
        ax.plot([chosen], [mean[chosen]], marker="o", ms=4.5, mfc="white", mec=_MEAN.color, mew=1.3, zorder=4)
        late = chosen > wide.index.to_numpy().mean()  # its words stand on the side with more room
        ax.annotate(
            f"layer {chosen}", (chosen, 1), (-3 if late else 3, 0), xycoords=ax.get_xaxis_transform(),
            textcoords="offset points", ha="right" if late else "left", va="top", color=MUTED, fontsize=6.5,
        )  # fmt: skip
    ax.annotate(
        "mean", (mean.index[-1], mean.iloc[-1]), (4, 0), textcoords="offset points", va="center", color=_MEAN.text,
        fontsize=6.5, annotation_clip=False,
    )  # fmt: skip
    ax.margins(x=0.03)
    ax.locator_params(axis="y", nbins=6)
    ax.set(xlabel="Layer", ylabel="Mean slope (logits per unit of α)")
    if title:
        ax.set_title(title)
    return ax
