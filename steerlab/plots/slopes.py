"""How the slopes of each data set are spread, and which samples are moved the wrong way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from steerlab._support.errors import DataError, require_columns
from steerlab.plots.steerability import columns_to_select, readable_name
from steerlab.plots.style import MethodStyle, get_axes

FORTH = MethodStyle("moved as meant", "#56B4E9", "#2476A8")
BACK = MethodStyle("moved the wrong way", "#D55E00", "#A04700")
_ROW = 0.15  # inches


def slope_distributions(
    slopes: pd.DataFrame,
    ax: Axes | None = None,
    *,
    order: Sequence[str] | None = None,
    reference: pd.DataFrame | None = None,
    reference_label: str = "paper's median, Llama-2-7B",
    labels: Mapping[str, str] | None = None,
) -> Axes:
    """A row a data set: how its slopes are spread, which part lies on the wrong side of zero, and how large it is.

    Example:
        >>> ax = slope_distributions(slopes(frame), reference=paper_llama2())

    Args:
        slopes: from `steerlab.analysis.steerability.slopes`, of one method, layer and place: `behavior`, `slope`.
        ax: where to draw; a new figure of two columns otherwise.
        order: the data sets from top to bottom; by default by falling median.
        reference: columns `behavior` and `median`, drawn as diamonds in the rows they name.
        reference_label: the words for them in the key.
        labels: other words for a data set's name.

    Returns:
        The axes. Each shape is a smoothed density over the middle 98 % of its slopes, all of one height; the tick is
        the median; the number at the right is the share of slopes not above zero.

    Raises:
        DataError: columns are missing, slopes are not finite, `order` names an unknown set, or a sample occurs twice.

    Source: Tan et al., arXiv 2407.12404, figure of per-sample steerability; the layout is own.
    """
    require_columns(slopes, ["behavior", "slope"], "slope_distributions")
    bad = int((~np.isfinite(slopes["slope"].to_numpy(float))).sum())
    twice = int(slopes.duplicated(["behavior", "example_id"]).sum()) if "example_id" in slopes else 0
    if bad or twice:
        raise DataError(
            f"slope_distributions got {bad} NaN or infinite slopes, and {twice} samples more than once a data set; "
            f"drop broken slopes, and choose one of each of {columns_to_select(slopes, 'behavior')}"
        )
    groups = {str(name): s.to_numpy(float) for name, s in slopes.groupby("behavior", observed=True)["slope"]}
    names = list(order) if order is not None else sorted(groups, key=lambda n: -float(np.median(groups[n])))
    if not names or not set(names) <= set(groups):
        raise DataError(f"`order` names {[n for n in names if n not in groups]}; the data sets are {sorted(groups)}")
    ax = get_axes(ax, 2, _ROW * len(names) + 0.75)
    inner = [np.quantile(groups[n], [0.01, 0.99]) for n in names]
    marks = _reference(ax, names, reference, reference_label)
    left, right = (
        min(0.0, marks.min(initial=0), *(q[0] for q in inner)),
        max(0.0, marks.max(initial=0), *(q[1] for q in inner)),
    )
    reach = (right - left) or 1.0
    for row, (name, (low, high)) in enumerate(zip(names, inner, strict=True)):
        _shape(ax, groups[name], row, float(low), float(high), 0.012 * reach)
    ax.axvline(0, color="black", lw=0.7, zorder=3)
    ax.set(xlim=(left - 0.02 * reach, right + 0.02 * reach), ylim=(len(names) - 0.4, -0.75))
    ax.set_yticks(range(len(names)), [(labels or {}).get(n, readable_name(n)) for n in names])
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.set_xlabel("Slope of a sample's propensity (logits per unit of α)")
    ax.annotate(
        "wrong\nway", (1, 1), (3, 1), xycoords="axes fraction", textcoords="offset points", color=BACK.text,
        fontsize=6.5, va="bottom", linespacing=0.95, annotation_clip=False,
    )  # fmt: skip
    patches = [Patch(color=look.color, label=look.label) for look in (FORTH, BACK)]
    median = Line2D([], [], ls="", marker="|", ms=6, mew=1.3, color="black", label="median")
    key = ax.legend(
        handles=[*patches, median, *(line for line in ax.lines if line.get_label() == reference_label)], ncols=4,
        loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2, columnspacing=1.4, handlelength=1.2,
        handletextpad=0.6, fontsize=6.5, frameon=False,
    )  # fmt: skip
    key.set_in_layout(False)  # else a long key would squeeze the rows; it grows to the left, above the names
    return ax


def _reference(ax: Axes, names: list[str], reference: pd.DataFrame | None, label: str) -> NDArray[np.float64]:
    if reference is None:
        return np.empty(0)
    require_columns(reference, ["behavior", "median"], "slope_distributions (reference)")
    known = reference[reference["behavior"].isin(names)]
    rows = [names.index(n) for n in known["behavior"]]
    ax.plot(known["median"], rows, ls="", marker="D", ms=2.6, mfc="white", mec="black", mew=0.6, zorder=5, label=label)
    return known["median"].to_numpy(float)


def _shape(ax: Axes, found: NDArray[np.float64], row: int, low: float, high: float, least: float) -> None:
    """One density about the row's line, colored by the side of zero, with its median and the share beyond."""
    # Silverman's width, also from the shortest third (of a normal, 0.86 sd): two humps would smear all other measures
    third, ordered = min(len(found), max(8, len(found) // 3)), np.sort(found)
    shortest = float((ordered[third - 1 :] - ordered[: len(found) - third + 1]).min())
    middle = float(np.subtract(*np.quantile(found, [0.75, 0.25])))
    # never so small that equal slopes would vanish
    width = max(0.9 * min(float(found.std()), middle / 1.34, shortest / 0.86) * len(found) ** -0.2, least)
    median = float(np.median(found))
    low, high = min(low, median - least), max(high, median + least)
    at = np.union1d(np.linspace(low, high, 160), [0.0] if low < 0 < high else [])
    height = np.exp(-0.5 * ((at[:, None] - found) / width) ** 2).sum(1)
    height *= 0.42 / height.max()
    for look, side in ((FORTH, at >= 0), (BACK, at <= 0)):
        ax.fill_between(at[side], row - height[side], row + height[side], color=look.color, lw=0, zorder=2)
    ax.plot([median, median], [row - 0.4, row + 0.4], color="black", lw=1.3, solid_capstyle="butt", zorder=4)
    ax.annotate(
        f"{(found <= 0).mean():.0%}", (1, row), (3, 0), xycoords=ax.get_yaxis_transform(), textcoords="offset points",
        va="center", color=BACK.text, fontsize=6.5, annotation_clip=False,
    )  # fmt: skip
