"""The distribution of the slopes of each data set, colored by the direction in which inputs are moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from steerlab.errors import DataError, require_columns
from steerlab.plots.style import LESS, get_axes, metric_label, readable_name

TOWARDS, AWAY = "#4393C3", "#D6604D"
SIDES = {"moved towards the behavior": TOWARDS, "moved away": AWAY}


def slope_distributions(
    slopes: pd.DataFrame,
    ax: Axes | None = None,
    *,
    order: Sequence[str] | None = None,
    labels: Mapping[str, str] | None = None,
) -> Axes:
    """A violin of slopes per data set, blue above zero and red below, with the median and the share of slopes <= 0.

    Example:
        >>> ax = slope_distributions(slopes(frame))

    Args:
        slopes: from `steerlab.analysis.steerability.slopes`, of one method, layer and positions: `behavior`,
            `example_id`, `slope`.
        ax: where to draw; a new figure otherwise.
        order: the data sets from top to bottom; by default by falling median.
        labels: other names for data sets.

    Returns:
        The axes. Each violin is a kernel density over the middle 98 % of its slopes; all have one height.

    Raises:
        DataError: columns are missing, slopes are not finite, an example of a data set occurs twice, or `order` names
            an unknown data set.

    Source: Tan et al., arXiv 2407.12404, figure of per-sample steerability.
    """
    require_columns(slopes, ["behavior", "example_id", "slope"], "slope_distributions", ["slope"])
    repeated = int(slopes.duplicated(["behavior", "example_id"]).sum())
    groups = slopes.groupby("behavior")["slope"]
    order = list(groups.median().sort_values(ascending=False).index) if order is None else list(order)
    missing = [name for name in order if name not in groups.groups]
    if nameless := int(slopes["behavior"].isna().sum()):
        raise DataError(f"{nameless} slopes without a data set: read results.csv with keep_default_na=False")
    if repeated or missing:
        raise DataError(
            f"slope_distributions got {repeated} examples that occur twice in a data set, and no slopes of {missing}"
        )
    ax = get_axes(ax, 2, 0.15 * len(order) + 0.75)
    low, high = (slopes["behavior"].map(groups.quantile(q)) for q in (0.01, 0.99))
    inner = slopes[slopes["slope"].between(low, high)]
    left, right = min(0.0, inner["slope"].min()), max(0.0, inner["slope"].max())
    room = 0.02 * (right - left or 1.0)
    for color, start, end in ((TOWARDS, 0, right), (AWAY, left, 0)):
        n_before = len(ax.collections)
        sns.violinplot(
            inner, x="slope", y="behavior", order=order, color=color, saturation=1, density_norm="width", width=0.84,
            bw_adjust=0.5, cut=0, inner=None, linewidth=0, ax=ax,
        )  # fmt: skip
        for violin in ax.collections[n_before:]:
            violin.set_clip_path(Rectangle((start, -1), end - start, len(order) + 1, transform=ax.transData))
    ax.set(xlim=(left - room, right + room), ylim=(len(order) - 0.4, -0.75), ylabel="")
    ax.axvline(0, color="black", lw=0.7, zorder=3)
    ax.plot(groups.median()[order], range(len(order)), ls="", marker="|", ms=7, mew=1.3, color="black", zorder=4)
    ax.set_yticks(range(len(order)), [(labels or {}).get(n, readable_name(n)) for n in order])
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.set_xlabel(f"Slope of an example's {metric_label(slopes, 'logits')} per unit of α")
    write_shares(ax, (slopes["slope"] <= 0).groupby(slopes["behavior"]).mean()[order])
    patches = [Patch(color=color, label=label) for label, color in SIDES.items()]
    median = Line2D([], [], ls="", marker="|", ms=6, mew=1.3, color="black", label="median")
    legend = ax.legend(
        handles=[*patches, median], ncols=3, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2,
        columnspacing=1.4, handlelength=1.2, handletextpad=0.6,
    )  # fmt: skip
    legend.set_in_layout(False)  # otherwise a long legend narrows the rows; it extends to the left, above the names
    return ax


def write_shares(ax: Axes, shares: pd.Series) -> None:
    """The share of inputs moved away from the behavior at the right of each row; "–" for NaN."""
    for row, share in enumerate(shares):
        ax.annotate(
            "–" if np.isnan(share) else f"{share:.0%}", (1, row), (3, 0), xycoords=ax.get_yaxis_transform(),
            textcoords="offset points", va="center", color=LESS, fontsize=6.5, annotation_clip=False,
        )  # fmt: skip
    ax.annotate(
        "away", (1, 1), (3, 3), xycoords="axes fraction", textcoords="offset points", color=LESS,
        fontsize=6.5, va="bottom", annotation_clip=False,
    )  # fmt: skip
