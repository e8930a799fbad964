"""The look of all figures: a style file, one color per method and behavior, column widths, labels at line ends."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, SupportsFloat

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.optimize import isotonic_regression

from steerlab._support.checks import check_option

STYLE_FILE = Path(__file__).with_name("steerlab.mplstyle")
COLUMN_INCHES = {1: 3.46, 2: 7.2}  # 88 and 183 mm
INK = "#222222"
MUTED = "#6B6B6B"  # secondary text, reference lines
CONTEXT = "#C4C4C4"  # lines drawn for context only
MORE, LESS = "#2166AC", "#B2182B"  # the ends of the color map "RdBu": moved towards the behavior, and away from it
MARKERS = ("o", "^", "s", "D", "v", "P", "X", "*")
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1, 1, 1)))


@dataclass(frozen=True)
class SeriesStyle:
    """How one method, behavior or data set looks in every figure."""

    label: str
    color: str
    text_color: str  # a darker shade of `color`, for text on white
    outline: bool = False  # bars and markers are hollow: the method uses the true answer


# colors of Okabe & Ito and of Paul Tol: distinct under the common color blindnesses, of different lightness
METHODS: dict[str, SeriesStyle] = {
    "none": SeriesStyle("no steering", "#8C8C8C", "#5F5F5F"),
    "prompt": SeriesStyle("instruction", "#56B4E9", "#2476A8"),
    "random": SeriesStyle("random vector", "#CC79A7", "#A04B7B"),
    "mean": SeriesStyle("mean vector", "#E69F00", "#A86500"),
    "always_no": SeriesStyle("one vector: no", "#D55E00", "#A04700"),
    "l2s": SeriesStyle("L2S", "#0072B2", "#005A8E"),
    "alphasteer": SeriesStyle("AlphaSteer", "#882255", "#882255"),
    "adasteer": SeriesStyle("AdaSteer", "#CC6677", "#A5404F"),
    "confst": SeriesStyle("CONFST", "#999933", "#6E6E25"),
    "gated_mean": SeriesStyle("mean vector behind a probe", "#332288", "#332288"),
    "routed_mean": SeriesStyle("routed mean", "#117733", "#117733"),
    "nearest_neighbors": SeriesStyle("mean of nearest neighbors", "#B07AA1", "#80527A"),
    "linear": SeriesStyle("linear map (ridge)", "#661100", "#661100"),
    "field": SeriesStyle("gradient field", "#44AA99", "#2B7A6D"),
    "spherical": SeriesStyle("spherical", "#DDCC77", "#8A7A1F"),
    "w2s": SeriesStyle("W2S", "#AA4499", "#8A3179"),
    "ssae": SeriesStyle("SSAE", "#A6C96A", "#5A7A22"),
    "kts": SeriesStyle("KL-then-steer", "#7F5539", "#7F5539"),
    "p2s": SeriesStyle("P2S (oracle)", "#009E73", "#00734F", outline=True),
}
BEHAVIORS: dict[str, SeriesStyle] = {
    "refuse": SeriesStyle("refuse", "#A50F3C", "#A50F3C"),
    "defer": SeriesStyle("defer", "#35978F", "#01665E"),
    "answer": SeriesStyle("answer", "#9E9AC8", "#6A51A3"),
}
# for everything else, in the order in which it is drawn
OTHER_COLORS = ("#7570B3", "#E7298A", "#66A61E", "#A6761D", "#1793A5", "#4D4D4D")


def method_style(method: str) -> SeriesStyle:
    """The label and colors of a method; unknown methods are near-black under their name.

    Example:
        >>> method_style("l2s").color
        '#0072B2'
    """
    return METHODS.get(method, SeriesStyle(method, "#3D3D3D", "#3D3D3D"))


def behavior_styles(names: Iterable[str]) -> dict[str, SeriesStyle]:
    """The style of each behavior or data set: fixed for those in `BEHAVIORS`, else the next of `OTHER_COLORS`.

    Example:
        >>> behavior_styles(["refuse", "openness"])["openness"].color
        '#7570B3'
    """
    unknown = [name for name in dict.fromkeys(names) if name not in BEHAVIORS]
    colors = {name: OTHER_COLORS[i % len(OTHER_COLORS)] for i, name in enumerate(unknown)}
    return {n: BEHAVIORS.get(n) or SeriesStyle(readable_name(n), colors[n], colors[n]) for n in dict.fromkeys(names)}


def readable_name(name: str, max_length: int = 44) -> str:
    """The name of a data set with spaces, shortened to `max_length` characters.

    Example:
        >>> readable_name("believes-AIs-are-not-an-existential-threat-to-humanity")
        'believes AIs are not an existential threat…'
    """
    text = name.replace("-", " ").replace("_", " ")
    return text if len(text) <= max_length else text[: max_length - 1].rstrip() + "…"


def metric_label(rows: pd.DataFrame, unit: str) -> str:
    """What the rows measure, by their column "metric"; without one, and with a unit, the propensity."""
    name = str(rows["metric"].iloc[0]) if "metric" in rows and len(rows) else "propensity"
    return f"propensity ({unit})" if name == "propensity" else readable_name(name)


def width(columns: Literal[1, 2] = 1) -> float:
    """The width of one or two journal columns, in inches.

    Example:
        >>> width(2)
        7.2
    """
    check_option("columns", columns, COLUMN_INCHES)
    return COLUMN_INCHES[columns]


@contextmanager
def style() -> Iterator[None]:
    """Use the style file for everything drawn inside the block, and restore the settings afterwards.

    Example:
        >>> with style():
        ...     ax = method_bars(frame)
    """
    with mpl.rc_context(fname=STYLE_FILE):
        yield
        # the first figure of a notebook turns this on; restoring the old value would hide all later figures
        interactive = mpl.is_interactive()
    mpl.interactive(interactive)


def get_axes(ax: Axes | None, columns: Literal[1, 2] = 1, height: float = 2.8) -> Axes:
    """`ax`, or the axes of a new pyplot figure in the style above (pyplot, so that a notebook shows it)."""
    if ax is not None:
        return ax
    with style():
        return plt.subplots(figsize=(width(columns), height))[1]


def label_ends(ax: Axes, ends: Sequence[tuple[SupportsFloat, SupportsFloat, str, str]], gap: float = 0.07) -> None:
    """Write the name of each line beside its last point.

    Names closer than `gap` are moved apart, and a thin line connects a name with its point. Call it when the limits
    of the y axis are final.

    Args:
        ends: for each line the x and y of its last point, its name and the color of the name.
        gap: the smallest distance of two names, in heights of the axes and for names of one line.
    """
    ax.set_ylim(ax.get_ylim())
    to_axes = ax.transData + ax.transAxes.inverted()
    heights = [float(to_axes.transform((float(x), float(y)))[1]) for x, y, *_ in ends]
    lines = 1 + max((text.count("\n") for *_, text, _ in ends), default=0)
    for height, (x, y, text, color) in zip(separate_labels(heights, gap * lines), ends, strict=True):
        ax.annotate(
            text, (x, y), (1.03, height), textcoords="axes fraction", color=color, fontsize=6.5, va="center",
            linespacing=1.0, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "lw": 0.5, "color": color, "shrinkA": 1, "shrinkB": 2, "relpos": (0, 0.5)},
        )  # fmt: skip


def separate_labels(heights: Sequence[float], gap: float) -> list[float]:
    """Heights moved as little as possible (least squares) so that neighbors are `gap` apart; the order is kept.

    Example:
        >>> separate_labels([0.5, 0.5], 0.1)
        [0.45, 0.55]
    """
    order = np.argsort(heights, kind="stable")
    steps = gap * np.arange(len(order))
    moved = np.empty(len(order))
    if len(order):
        moved[order] = isotonic_regression(np.asarray(heights, float)[order] - steps).x + steps
    return [round(float(height), 12) for height in moved]


def save(fig: Figure, path: str | Path) -> tuple[Path, Path]:
    """Write a figure as PNG (200 dpi) and PDF; the same figure gives the same bytes.

    Example:
        >>> save(fig, "figures/l2s_safety")        # writes l2s_safety.png and l2s_safety.pdf

    Args:
        fig: any figure.
        path: with or without one of the two suffixes; missing folders are created.

    Returns:
        The two paths.
    """
    path = Path(path)
    stem = path.name.removesuffix(".png").removesuffix(".pdf")
    path.parent.mkdir(parents=True, exist_ok=True)
    png, pdf = path.parent / f"{stem}.png", path.parent / f"{stem}.pdf"
    with style():
        fig.savefig(png, dpi=200)
        fig.savefig(pdf, metadata={"CreationDate": None})
    return png, pdf
