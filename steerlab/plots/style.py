"""The one look of all figures: style file, a fixed color per method, sizes in journal columns, saving."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

STYLE_FILE = Path(__file__).with_name("steerlab.mplstyle")
COLUMN_INCHES = {1: 3.46, 2: 7.2}  # 88 and 183 mm
MUTED = "#6B6B6B"  # secondary text: goal lines, counts
GOAL = "#D9D9D9"  # goal regions


@dataclass(frozen=True)
class MethodStyle:
    """How one method looks, in every figure."""

    label: str
    color: str
    text: str  # a darker shade of `color`, for words on white
    oracle: bool = False  # drawn as an outline: it knows what no other method knows


# Okabe & Ito's colors, then Tol's muted ones, told apart under the common color blindnesses; their lightness differs
METHODS: dict[str, MethodStyle] = {
    "none": MethodStyle("no steering", "#8C8C8C", "#5F5F5F"),
    "prompt": MethodStyle("prompt", "#56B4E9", "#2476A8"),
    "random": MethodStyle("random vector", "#CC79A7", "#A04B7B"),
    "mean": MethodStyle("mean vector", "#E69F00", "#A86500"),
    "always_no": MethodStyle("one vector: no", "#D55E00", "#A04700"),
    "l2s": MethodStyle("L2S", "#0072B2", "#005A8E"),
    "alphasteer": MethodStyle("AlphaSteer", "#882255", "#882255"),
    "adasteer": MethodStyle("AdaSteer", "#CC6677", "#A5404F"),
    "confst": MethodStyle("CONFST", "#999933", "#6E6E25"),
    "gated_mean": MethodStyle("mean vector behind a probe", "#332288", "#332288"),
    "p2s": MethodStyle("P2S (oracle)", "#009E73", "#00734F", oracle=True),
}


def method_style(method: str) -> MethodStyle:
    """The method's fixed label and colors; unknown methods are drawn in near-black under their own name.

    Example:
        >>> method_style("l2s").color
        '#0072B2'
    """
    return METHODS.get(method, MethodStyle(method, "#3D3D3D", "#3D3D3D"))


def width(columns: Literal[1, 2] = 1) -> float:
    """The width of one or two journal columns, in inches.

    Example:
        >>> width(2)
        7.2
    """
    return COLUMN_INCHES[columns]


@contextmanager
def style() -> Iterator[None]:
    """The style file, for what is drawn inside the block; the caller's settings come back afterwards.

    Example:
        >>> with style():
        ...     ax = trade_off(grid)
    """
    shown = mpl.is_interactive()
    with mpl.rc_context(fname=STYLE_FILE):
        yield
        # a notebook's first figure turns this on; taken back, no later figure would be shown
        shown = mpl.is_interactive()
    mpl.interactive(shown)


def get_axes(ax: Axes | None, columns: Literal[1, 2] = 1, height: float = 2.8) -> Axes:
    """The given axes, or those of a new pyplot figure in the house style (so that a notebook shows it)."""
    if ax is not None:
        return ax
    with style():
        return plt.subplots(figsize=(width(columns), height))[1]


def save(fig: Figure, path: str | Path) -> tuple[Path, Path]:
    """Write a figure as PNG (200 dpi) and PDF, byte for byte the same for the same figure.

    Example:
        >>> save(fig, "figures/l2s_safety")        # writes l2s_safety.png and l2s_safety.pdf

    Args:
        fig: any figure.
        path: with or without one of the two suffixes; missing folders are made.

    Returns:
        The two paths.
    """
    given = Path(path)
    stem = given.name.removesuffix(".png").removesuffix(".pdf")
    given.parent.mkdir(parents=True, exist_ok=True)
    png, pdf = given.parent / f"{stem}.png", given.parent / f"{stem}.pdf"
    with style():
        fig.savefig(png, dpi=200)
        fig.savefig(pdf, metadata={"CreationDate": None})
    return png, pdf
