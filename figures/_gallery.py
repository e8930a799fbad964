"""Images with a question, and the answers before and after steering."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import fill

from matplotlib.figure import Figure
from PIL.Image import Image

from steerlab.errors import DataError
from steerlab.plots import method_style, style, width


@dataclass(frozen=True)
class GalleryItem:
    """An image, a question about it, the true answer, and the answers before and after steering."""

    image: Image
    question: str
    true: str
    before: str
    after: str


def gallery(items: Sequence[GalleryItem], *, columns: int = 3) -> Figure:
    """Images in a grid; below each the two answers, marked as correct or wrong.

    Args:
        items: in reading order.
        columns: images side by side.

    Returns:
        A figure two journal columns wide.

    Raises:
        DataError: there is no item.
    """
    if not items:
        raise DataError("gallery has nothing to draw: give at least one item")
    rows = -(-len(items) // columns)
    with style():
        fig = Figure(figsize=(width(2), rows * (width(2) / columns * 0.62 + 0.62)), layout="constrained")
        axes = fig.subplots(rows, columns, squeeze=False).flatten()
        for ax in axes:
            ax.set_axis_off()
        for ax, item in zip(axes, items, strict=False):
            ax.imshow(item.image, interpolation="nearest")
            ax.set_title(fill(item.question, 38), fontsize=7, fontweight="normal", loc="center")
            answers = (("no steering", item.before, "none"), ("L2S", item.after, "l2s"))
            for line, (label, answer, method) in enumerate(answers, start=1):
                mark = "✓" if answer.strip().lower().startswith(item.true.lower()) else "✗"
                ax.annotate(
                    f"{label}: {fill(answer, 34)} {mark}", (0.5, 0), (0, -9 * line), xycoords="axes fraction",
                    textcoords="offset points", ha="center", va="center", fontsize=7,
                    color=method_style(method).text_color, fontweight="bold" if method == "l2s" else "normal",
                )  # fmt: skip
        fig.draw_without_rendering()
    return fig
