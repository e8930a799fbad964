"""Cosines of contrast vectors within and between behaviors: at one site as dots, over layers as lines."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from steerlab._support.errors import DataError, require_columns
from steerlab.plots.similarity import COLORS, MARKERS, TEXT_COLORS
from steerlab.plots.strength import separate_labels
from steerlab.plots.style import MUTED, get_axes

_KIND = {"within": "#0072B2", "between": "#D55E00"}
_NEEDED = ["a", "b", "kind", "cosine", "low", "high", "shuffled"]


def geometry_dots(frame: pd.DataFrame, ax: Axes | None = None, *, title: str | None = None) -> Axes:
    """One row a pair of behaviors at one site: mean cosine with interval, and a hollow dot for shuffled labels.

    Example:
        >>> ax = geometry_dots(geometry(acts, 15))

    Args:
        frame: from `steerlab.analysis.geometry.geometry`, one site.
        ax: where to draw; a new figure otherwise.
        title: the panel's title.

    Returns:
        The axes, a row a pair, those within a behavior on top.

    Raises:
        DataError: columns are missing, or several sites are in the frame.

    Source: own.
    """
    require_columns(frame, _NEEDED, "geometry_dots")
    if frame.duplicated(["a", "b"]).any():
        raise DataError(f"{len(frame)} rows hold a pair several times; choose one site, or use geometry_lines")
    ax = get_axes(ax, height=0.2 * len(frame) + 0.8)
    rows = frame.sort_values("kind", ascending=False, kind="stable").reset_index(drop=True)
    ax.axvline(0, color=MUTED, lw=0.6)
    ax.scatter(
        rows["shuffled"], rows.index, s=16, facecolors="white", edgecolors=MUTED, linewidths=0.8, zorder=3,
        label="labels shuffled",
    )  # fmt: skip
    # above the first row, where nothing else is drawn
    ax.text(rows["shuffled"].iloc[0], -0.7, "labels shuffled", color=MUTED, fontsize=6, ha="center", va="center")
    for kind, marker in (("within", "o"), ("between", "s")):
        here = rows[rows["kind"] == kind]
        if len(here):
            ax.errorbar(
                here["cosine"], here.index, xerr=[here["cosine"] - here["low"], here["high"] - here["cosine"]],
                ls="", marker=marker, ms=4, capsize=1.5, elinewidth=0.9, color=_KIND[kind], zorder=4,
                label=f"{kind} behaviors",
            )  # fmt: skip
    ax.set_yticks(rows.index, [_pair(a, b) for a, b in zip(rows["a"], rows["b"], strict=True)])
    ax.set_ylim(len(rows) - 0.5, -1.0)
    ax.set_xlim(min(-0.25, float(rows["low"].min()) - 0.05), 1.02)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.set_xlabel("Mean cosine of contrast vectors")
    if title:
        ax.set_title(title)
    return ax


def geometry_lines(frame: pd.DataFrame, ax: Axes | None = None, *, title: str | None = None) -> Axes:
    """Mean cosine over layers, a line a pair of behaviors with its interval; dashed where the pair is between two.

    Example:
        >>> ax = geometry_lines(pd.concat([geometry(acts, layer) for layer in acts.layers]))

    Args:
        frame: from `steerlab.analysis.geometry.geometry`, several layers.
        ax: where to draw; a new figure otherwise.
        title: the panel's title.

    Returns:
        The axes, one line a pair, labeled at its end, and one dotted for shuffled labels (mean over the pairs).

    Raises:
        DataError: columns are missing, or a layer holds a pair several times.

    Source: own.
    """
    require_columns(frame, ["layer", *_NEEDED], "geometry_lines")
    if frame.duplicated(["layer", "a", "b"]).any():
        raise DataError(f"{len(frame)} rows hold a pair of one layer several times; give one row a layer and pair")
    ax = get_axes(ax)
    ax.axhline(0, color=MUTED, lw=0.6)
    ends: list[tuple[float, str, str]] = []
    ordered = frame.sort_values("kind", ascending=False, kind="stable")
    for number, ((a, b), rows) in enumerate(ordered.groupby(["a", "b"], sort=False)):
        rows = rows.sort_values("layer")
        color = COLORS[number % len(COLORS)]
        ax.plot(
            rows["layer"], rows["cosine"], color=color, ls="-" if a == b else (0, (4, 1.5)), ms=2.5,
            marker=MARKERS[number % len(MARKERS)], markevery=max(1, len(rows) // 6), label=_pair(a, b),
        )  # fmt: skip
        ax.fill_between(rows["layer"], rows["low"], rows["high"], color=color, alpha=0.2, lw=0)
        ends.append((float(rows["cosine"].iloc[-1]), _pair(a, b), TEXT_COLORS[number % len(TEXT_COLORS)]))
    mixed = frame.groupby("layer")["shuffled"].mean()
    ax.plot(mixed.index, mixed, color=MUTED, ls=(0, (1, 1.2)), lw=1.0, label="labels shuffled")
    ends.append((float(mixed.iloc[-1]), "labels shuffled", MUTED))
    low = min(-0.1, float(frame["low"].min()) - 0.03)
    for height, (_, text, color) in zip(separate_labels([e[0] for e in ends], 0.07 * (1.03 - low)), ends, strict=True):
        ax.annotate(
            text, (1.0, height), (4, 0), xycoords=ax.get_yaxis_transform(), textcoords="offset points",
            va="center", color=color, fontsize=6.5, annotation_clip=False,
        )  # fmt: skip
    ax.set(xlabel="Layer", ylabel="Mean cosine of contrast vectors", ylim=(low, 1.03))
    if title:
        ax.set_title(title)
    return ax


def _pair(a: str, b: str) -> str:
    return f"within {a}" if a == b else f"{a} – {b}"
