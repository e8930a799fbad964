"""Lines with intervals: propensity over strength, cosines over layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from steerlab.errors import DataError, require_columns
from steerlab.plots.frames import one_row_per
from steerlab.plots.style import (
    CONTEXT,
    DASHES,
    MUTED,
    OTHER_COLORS,
    SeriesStyle,
    behavior_styles,
    get_axes,
    label_ends,
    method_style,
    metric_label,
)

BAND_ALPHA = 0.18
SEABORN_DASHES = ["", (4, 1.5), (1, 1.2), (5, 1, 1, 1)]


def propensity_lines(
    curves: pd.DataFrame,
    ax: Axes | None = None,
    *,
    hue: str = "behavior",
    highlight: Sequence[str] | None = None,
    labels: Mapping[str, str] | None = None,
    **where: str | int | float,
) -> Axes:
    """The mean of a metric over alpha with its interval, one line per behavior or method, named at its end.

    Example:
        >>> ax = propensity_lines(propensity_curves(frame), layer=13)

    Args:
        curves: from `steerlab.analysis.steerability.propensity_curves`: `alpha`, `mean`, `low`, `high` and `hue`.
        ax: where to draw; a new figure otherwise.
        hue: the column whose values are the lines; methods keep their colors.
        highlight: the lines that get a color, an interval and a name, at most six unless they are methods; the
            others are thin and gray. All lines by default.
        labels: other names for lines; they may have several lines of text.
        where: column=value pairs that leave one row per line and alpha.

    Returns:
        The axes.

    Raises:
        DataError: columns are missing, `where` leaves no row or several per alpha, a highlighted line does not
            exist, or more lines are highlighted than there are colors.

    Source: Tan et al., arXiv 2407.12404, figure 2.
    """
    require_columns(curves, ["mean"], "propensity_lines", ["mean"])
    rows = one_row_per(curves, [hue, "alpha"], ["mean", "low", "high"], "propensity_lines", where).sort_values("alpha")
    names = list(dict.fromkeys(rows[hue]))
    shown = names if highlight is None else list(highlight)
    if not set(shown) <= set(names) or (hue != "method" and len(shown) > len(OTHER_COLORS)):
        raise DataError(
            f"`highlight` asks for {len(shown)} lines, of which {[n for n in shown if n not in names]} do not exist; "
            f"name at most {len(OTHER_COLORS)} of {names}"
        )
    looks = {n: method_style(n) for n in shown} if hue == "method" else behavior_styles(shown)
    ax = get_axes(ax)
    ax.axhline(0, color=MUTED, lw=0.6, ls=DASHES[1], zorder=0)
    context = rows[~rows[hue].isin(shown)]
    if len(context):
        sns.lineplot(context, x="alpha", y="mean", units=hue, estimator=None, color=CONTEXT, lw=0.7, zorder=1, ax=ax)
    _banded_lines(ax, rows[rows[hue].isin(shown)], "alpha", "mean", hue, looks, marker="o", ms=3, mew=0)
    alphas = sorted(rows["alpha"].unique())
    ax.set_xticks(alphas, [f"{a:g}".replace("-", "−") for a in alphas])
    ax.set(xlabel="Strength α", ylabel=f"Mean {metric_label(rows, 'logit difference')}")
    ax.margins(x=0.03)
    _name_lines(ax, rows, "alpha", "mean", hue, looks, labels)
    return ax


def geometry_lines(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Mean cosine of contrast vectors over layers, one line per pair of behaviors with its interval.

    Lines within one behavior are solid and have its color; lines between two behaviors are dashed; the dotted line is
    the mean over all pairs with shuffled labels.

    Example:
        >>> ax = geometry_lines(pd.concat([geometry(acts, layer) for layer in acts.layers]))

    Args:
        frame: from `steerlab.analysis.geometry.geometry`, several layers.
        ax: where to draw; a new figure otherwise.

    Returns:
        The axes.

    Raises:
        DataError: columns are missing, or a layer holds a pair several times.
    """
    columns = ["kind", "cosine", "low", "high", "shuffled"]
    require_columns(frame, ["cosine"], "geometry_lines", ["cosine"])
    rows = one_row_per(frame, ["layer", "a", "b"], columns, "geometry_lines").sort_values(["kind", "layer"])
    pairs = zip(rows["a"], rows["b"], strict=True)
    rows = rows.assign(pair=[f"within {a}" if a == b else f"{a} – {b}" for a, b in pairs])
    within = rows[rows["kind"] == "within"].drop_duplicates("a")
    looks = behavior_styles([*within["a"], *rows.loc[rows["kind"] != "within", "pair"]])
    looks |= {pair: looks[a] for pair, a in zip(within["pair"], within["a"], strict=True)}
    ax = get_axes(ax)
    ax.axhline(0, color=MUTED, lw=0.6)
    dashes = {"within": SEABORN_DASHES[0], "between": SEABORN_DASHES[1]}
    _banded_lines(ax, rows, "layer", "cosine", "pair", looks, style="kind", dashes=dashes)
    shuffled = rows.groupby("layer", as_index=False)["shuffled"].mean().assign(pair="labels shuffled")
    sns.lineplot(shuffled, x="layer", y="shuffled", color=MUTED, ls=DASHES[2], lw=1.0, ax=ax)
    ax.set(xlabel="Layer", ylabel="Mean cosine of contrast vectors")
    ax.set_ylim(min(-0.1, float(rows["low"].min()) - 0.03), 1.03)
    long = pd.concat([rows, shuffled.rename(columns={"shuffled": "cosine"})])
    muted = SeriesStyle("labels shuffled", MUTED, MUTED)
    _name_lines(ax, long, "layer", "cosine", "pair", looks | {"labels shuffled": muted}, {p: p for p in rows["pair"]})
    return ax


def _banded_lines(
    ax: Axes, rows: pd.DataFrame, x: str, y: str, hue: str, looks: Mapping[str, SeriesStyle], **line: object
) -> None:
    """Seaborn's lines, with the intervals in `low` and `high` as bands (seaborn only draws intervals it estimates)."""
    for name, part in rows.groupby(hue, sort=False):
        ax.fill_between(part[x], part["low"], part["high"], color=looks[str(name)].color, alpha=BAND_ALPHA, lw=0)
    palette = {name: look.color for name, look in looks.items()}
    sns.lineplot(rows, x=x, y=y, hue=hue, palette=palette, estimator=None, legend=False, ax=ax, **line)


def _name_lines(
    ax: Axes, rows: pd.DataFrame, x: str, y: str, hue: str, looks: Mapping[str, SeriesStyle],
    labels: Mapping[str, str] | None = None,
) -> None:  # fmt: skip
    last = rows.groupby(hue, sort=False).tail(1).set_index(hue)
    ends = [(last.at[n, x], last.at[n, y], (labels or {}).get(n, look.label), look.text_color)
            for n, look in looks.items() if n in last.index]  # fmt: skip
    label_ends(ax, ends)
