"""What the slopes' variance goes back to, a stacked bar a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from steerlab._support.errors import DataError, require_columns
from steerlab.plots.steerability import readable_name
from steerlab.plots.style import METHODS, MethodStyle, get_axes

# orange, green and gray differ in lightness too, and stand for nothing else beside `slope_distributions`
PARTS = {
    "option": MethodStyle("letter", METHODS["mean"].color, METHODS["mean"].text),
    "word": MethodStyle("word", METHODS["p2s"].color, METHODS["p2s"].text),
    "unexplained": MethodStyle("rest", "#D9D9D9", "#5F5F5F"),
}
_ROW = 0.15  # inches


def variance_bars(
    shares: pd.DataFrame,
    ax: Axes | None = None,
    *,
    order: Sequence[str] | None = None,
    labels: Mapping[str, str] | None = None,
    title: str | None = None,
) -> Axes:
    """How much of the slopes' variance the wanted answer's letter and first word explain, a row a data set.

    Example:
        >>> ax = variance_bars(answer_position_bias(slopes(frame), examples))

    Args:
        shares: from `steerlab.analysis.answer_position_bias.answer_position_bias`: `behavior`, `option`, `word`,
            `unexplained`.
        ax: where to draw; a new figure of two columns otherwise.
        order: the data sets from top to bottom; by default as they come.
        labels: other words for a data set's name.
        title: the panel's title.

    Returns:
        The axes, a bar container each part, named above the bars in its color; a row of NaN stays empty.

    Raises:
        DataError: columns are missing, a data set occurs twice, `order` names an unknown one, or the shares of a row
            do not add up to 1.

    Source: Tan et al., arXiv 2407.12404, section 4 (spurious factors); the layout is own.
    """
    require_columns(shares, ["behavior", *PARTS], "variance_bars")
    if shares["behavior"].duplicated().any():
        raise DataError("variance_bars got a data set more than once; choose one method, layer and place")
    found = shares.set_index("behavior")[list(PARTS)].astype(float)
    names = list(found.index) if order is None else list(order)
    if not names or not set(names) <= set(found.index):
        raise DataError(f"`order` names {[n for n in names if n not in found.index]}; there are {list(found.index)}")
    found = found.loc[names]
    whole = found.sum(axis=1, skipna=False).dropna()
    if not np.allclose(whole, 1, atol=0.01):
        raise DataError(
            f"the shares of {whole.index[~np.isclose(whole, 1, atol=0.01)][0]!r} do not add up to 1; give those of one "
            "fit, as `explained_variance` does"
        )
    ax = get_axes(ax, 2, _ROW * len(names) + 0.75)
    begin = np.zeros(len(names))
    for part, look in PARTS.items():
        wide = found[part].to_numpy()
        ax.barh(range(len(names)), wide, left=begin, height=0.76, color=look.color, lw=0, label=look.label)
        begin = begin + wide
    for at, align, look in zip((0, 0.5, 1), ("left", "center", "right"), PARTS.values(), strict=True):
        ax.annotate(
            look.label, (at, 1), (0, 3), xycoords="axes fraction", textcoords="offset points", ha=align, va="bottom",
            color=look.text, fontsize=6.5, annotation_clip=False,
        )  # fmt: skip
    ax.set(xlim=(0, 1), ylim=(len(names) - 0.4, -0.75), xlabel="Share of variance")
    ax.set_xticks([0, 0.5, 1], ["0", "50%", "100%"])
    ax.set_yticks(range(len(names)), [(labels or {}).get(n, readable_name(n)) for n in names])
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    if title:
        ax.set_title(title)
    return ax
