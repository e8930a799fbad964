"""Pictures with a question, and the answers before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import fill

from matplotlib.figure import Figure
from PIL.Image import Image

from steerlab._support.errors import DataError
from steerlab.plots.style import method_style, style, width

_RIGHT, _WRONG = "✓", "✗"


@dataclass(frozen=True)
class GalleryItem:
    """One picture of a gallery: the question, the true answer, and what was said before and after steering."""

    image: Image
    question: str
    true: str
    before: str
    after: str


def gallery(shown: Sequence[GalleryItem], *, columns: int = 3, title: str | None = None) -> Figure:
    """Pictures in a grid; below each the question, and the two answers marked as right or wrong.

    Example:
        >>> gallery([GalleryItem(image, "Is there a boat in the image?", "no", "Yes", "No")]).savefig("gallery.png")

    Args:
        shown: what to show, in reading order.
        columns: pictures side by side.
        title: above everything.

    Returns:
        A figure two journal columns wide.

    Raises:
        DataError: nothing to show.

    Source: own.
    """
    if not shown:
        raise DataError("gallery has nothing to show: give at least one picture")
    rows = -(-len(shown) // columns)
    with style():
        fig = Figure(figsize=(width(2), rows * (width(2) / columns * 0.62 + 0.62) + 0.3), layout="constrained")
        axes = fig.subplots(rows, columns, squeeze=False).flatten()
        for ax in axes:
            ax.set_axis_off()
        for ax, one in zip(axes, shown, strict=False):
            ax.imshow(one.image, interpolation="nearest")
            ax.set_title(fill(one.question, 38), fontsize=7, fontweight="normal", loc="center")
            for line, (word, said, method) in enumerate(
                (("before", one.before, "none"), ("after", one.after, "l2s")), start=1
            ):
                mark = _RIGHT if said.strip().lower().startswith(one.true.lower()) else _WRONG
                ax.annotate(
                    f"{word}: {fill(said, 34)} {mark}", (0.5, 0), (0, -9 * line), xycoords="axes fraction",
                    textcoords="offset points", ha="center", va="center", fontsize=7,
                    color=method_style(method).text, fontweight="bold" if method == "l2s" else "normal",
                )  # fmt: skip
        if title:
            fig.suptitle(title, fontsize=9)
        fig.draw_without_rendering()
    return fig
