"""The variance of slopes that the position and the first word of the answer explain, as stacked bars."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from steerlab.errors import DataError
from steerlab.plots.frames import one_row_per
from steerlab.plots.style import SeriesStyle

PARTS = {
    "option": SeriesStyle("letter", "#4D4D4D", "#4D4D4D"),
    "word": SeriesStyle("word", "#A6761D", "#7F5A12"),
    "unexplained": SeriesStyle("rest", "#E0E0E0", "#6B6B6B"),
}


def variance_bars(shares: pd.DataFrame, ax: Axes, *, order: Sequence[str]) -> Axes:
    """How much of the variance of the slopes the wanted answer's letter and first word explain, one row per data set.

    Args:
        shares: from `explained_variance`: `behavior`, `option`, `word`, `unexplained`, which add up to 1.
        ax: where to draw.
        order: the data sets from top to bottom.

    Returns:
        The axes, with one bar container per part, named above the bars in its color; a row of NaN stays empty.

    Raises:
        DataError: columns are missing, a data set occurs twice, `order` names an unknown one, or the shares of a row
            do not add up to 1.

    Source: Tan et al., arXiv 2407.12404, section 4 (spurious factors).
    """
    found = one_row_per(shares, ["behavior"], list(PARTS), "variance_bars").set_index("behavior")[list(PARTS)]
    if not set(order) <= set(found.index):
        raise DataError(f"`order` names {[n for n in order if n not in found.index]}; there are {list(found.index)}")
    found = found.loc[list(order)].astype(float)
    total = found.sum(axis=1, skipna=False).dropna()
    wrong = total.index[~np.isclose(total, 1, atol=0.01)]
    if len(wrong):
        raise DataError(f"the shares of {wrong[0]!r} do not add up to 1; give those of one fit of explained_variance")
    left = np.zeros(len(found))
    places = zip(PARTS.items(), (0, 0.5, 1), ("left", "center", "right"), strict=True)
    for (part, look), x, align in places:
        ax.barh(range(len(found)), found[part], left=left, height=0.76, color=look.color, lw=0, label=look.label)
        left = left + found[part].to_numpy()
        ax.annotate(
            look.label, (x, 1), (0, 3), xycoords="axes fraction", textcoords="offset points", ha=align, va="bottom",
            color=look.text_color, fontsize=6.5, annotation_clip=False,
        )  # fmt: skip
    ax.set(xlim=(0, 1), ylim=(len(found) - 0.4, -0.75), xlabel="Share of variance", yticks=[])
    ax.set_xticks([0, 0.5, 1], ["0", "50%", "100%"])
    ax.spines["left"].set_visible(False)
    return ax
