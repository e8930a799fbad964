"""Mean propensity against steering strength."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes

from steerlab._support.errors import DataError, require_columns
from steerlab.plots.strength import separate_labels
from steerlab.plots.style import METHODS, MUTED, get_axes, method_style

LOOKS = tuple(METHODS[name] for name in ("random", "mean", "always_no", "l2s", "p2s", "prompt"))


def propensity_lines(
    curves: pd.DataFrame,
    ax: Axes | None = None,
    *,
    hue: str = "behavior",
    highlight: Sequence[str] | None = None,
    labels: Mapping[str, str] | None = None,
    **where: str | int | float,
) -> Axes:
    """The mean propensity against alpha with its interval, a line a behavior or method, labeled at the line ends.

    Example:
        >>> ax = propensity_lines(propensity_curves(frame), layer=13)

    Args:
        curves: from `steerlab.analysis.steerability.propensity_curves`: `alpha`, `mean`, `low`, `high` and `hue`.
        ax: where to draw; a new figure otherwise.
        hue: the column that makes lines; methods keep their colors.
        highlight: the lines that get a color and a label, at most six where they are not methods; the others
            are thin and gray. All lines by default.
        labels: other words for a line's name; they may have several lines.
        where: column=value pairs that leave one row a line and alpha.

    Returns:
        The axes, one line a value of `hue`, labeled by it.

    Raises:
        DataError: columns are missing, `where` leaves nothing or several rows for one alpha, a highlighted line
            does not exist, or there are too many colors.

    Source: Tan et al., arXiv 2407.12404, figure 2.
    """
    require_columns(curves, [hue, "alpha", "mean", "low", "high", *where], "propensity_lines")
    cells = curves
    for column, value in where.items():
        cells = cells[cells[column] == value]
    double = cells[cells.duplicated([hue, "alpha"], keep=False)]
    if cells.empty or len(double):
        raise DataError(
            f"{dict(where)} leaves {len(cells)} of {len(curves)} rows, {len(double)} of them with another row of the "
            f"same {hue} and alpha; choose values that exist, and one of each of {columns_to_select(double, hue)}"
        )
    names = list(dict.fromkeys(cells[hue]))
    shown = names if highlight is None else list(highlight)
    if not set(shown) <= set(names) or (hue != "method" and len(shown) > len(LOOKS)):
        raise DataError(
            f"{len(shown)} lines are to be colored, {[n for n in shown if n not in names]} of them unknown; "
            f"name at most {len(LOOKS)} of {names} in `highlight`"
        )
    looks = {n: method_style(n) if hue == "method" else LOOKS[i % len(LOOKS)] for i, n in enumerate(shown)}
    ax = get_axes(ax)
    ax.axhline(0, color=MUTED, lw=0.6, ls=(0, (3, 2)), zorder=0)
    ends: list[tuple[float, str, str]] = []
    for name in sorted(names, key=lambda n: n in looks):
        rows = cells[cells[hue] == name].sort_values("alpha")
        if name not in looks:
            ax.plot(rows["alpha"], rows["mean"], color="#C4C4C4", lw=0.7, label=name, zorder=1)
            continue
        look = looks[name]
        ax.fill_between(rows["alpha"], rows["low"], rows["high"], color=look.color, alpha=0.18, lw=0)
        ax.plot(rows["alpha"], rows["mean"], marker="o", ms=3, lw=1.2, color=look.color, label=name)
        said = look.label if hue == "method" else readable_name(name, 30)
        ends.append((float(rows["mean"].iloc[-1]), (labels or {}).get(name, said), look.text))
    alphas = sorted(cells["alpha"].unique())
    ax.set_xticks(alphas, [f"{a:g}".replace("-", "−") for a in alphas])
    ax.set(xlabel="Strength α", ylabel="Mean propensity (logit difference)")
    ax.margins(x=0.03)
    low, high = ax.get_ylim()
    ax.set_ylim(low, high)
    lines = 1 + max((text.count("\n") for _, text, _ in ends), default=0)
    for height, (_, text, color) in zip(
        separate_labels([e[0] for e in ends], 0.06 * lines * (high - low)), ends, strict=True
    ):
        ax.annotate(
            text, (1.0, height), (4, 0), xycoords=ax.get_yaxis_transform(), textcoords="offset points",
            va="center", color=color, fontsize=6.5, linespacing=1.0, annotation_clip=False,
        )  # fmt: skip
    return ax


def readable_name(name: str, letters: int = 44) -> str:
    """A data set's name in words, cut where it would crowd the figure.

    Example:
        >>> readable_name("believes-AIs-are-not-an-existential-threat-to-humanity")
        'believes AIs are not an existential threat…'
    """
    said = name.replace("-", " ").replace("_", " ")
    return said if len(said) <= letters else said[: letters - 1].rstrip() + "…"


def columns_to_select(rows: pd.DataFrame, hue: str) -> list[str]:
    """The columns that would have to be chosen so that each value of `hue` has one row."""
    known = ("method", "model", "layer", "positions", "behavior", "train_variant", "test_variant")
    return [c for c in known if c != hue and c in rows and rows[c].nunique() > 1]
