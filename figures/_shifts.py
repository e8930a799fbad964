"""Whether steerability under one kind of prompt lasts under another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes

from steerlab._support.errors import DataError, require_columns
from steerlab.plots.similarity import COLORS, MARKERS
from steerlab.plots.style import MUTED, get_axes

# trained and tested on: the shifts whose agreement with the base prompts the paper draws
PAIRS = (("base", "user_neg"), ("base", "user_pos"), ("sys_pos", "user_neg"), ("sys_neg", "user_pos"))
WORDS = {"sys_pos": "system +", "sys_neg": "system −", "user_pos": "user +", "user_neg": "user −"}


def shift_scatter(
    shifts: pd.DataFrame,
    ax: Axes | None = None,
    *,
    pairs: Sequence[tuple[str, str]] = PAIRS,
    labels: Mapping[tuple[str, str], str] | None = None,
    title: str | None = None,
) -> Axes:
    """Steerability trained and tested on the base prompts against that of shifted pairs, a point a data set and pair.

    Example:
        >>> ax = shift_scatter(steerability(slopes(frame, by=("trained", "tested"))))

    Args:
        shifts: one row a data set and pair: `behavior`, `trained`, `tested`, `steerability`.
        ax: where to draw; a new figure otherwise.
        pairs: which pairs of `trained` and `tested` to draw, each with a color and marker.
        labels: other words for a pair, in the key.
        title: the panel's title.

    Returns:
        The axes, one collection a pair; the line is where nothing would change. The key covers no point.

    Raises:
        DataError: columns are missing, a pair of a data set occurs twice, or a pair is not there.

    Source: Tan et al., arXiv 2407.12404, section 5 (its figure of steerability under shifted prompts).
    """
    keys = ["behavior", "train_variant", "test_variant"]
    require_columns(shifts, [*keys, "steerability"], "shift_scatter")
    twice = int(shifts.duplicated(keys).sum())
    if twice:
        raise DataError(
            f"shift_scatter got {twice} rows of a data set and pair that were there before; choose one each"
        )
    wide = shifts.pivot(index="behavior", columns=["train_variant", "test_variant"], values="steerability")
    lost = [pair for pair in [("base", "base"), *pairs] if pair not in wide.columns]
    if lost or not pairs:
        raise DataError(f"shift_scatter lacks the pairs {lost}; there are {list(wide.columns)}")
    ax = get_axes(ax)
    base, others = wide[("base", "base")], wide[list(pairs)]
    low, high = (min(base.min(), others.min().min()), max(base.max(), others.max().max()))
    reach = (high - low) or 1.0
    low, high = low - 0.06 * reach, high + 0.06 * reach
    for x, y in (([low, high], [0, 0]), ([0, 0], [low, high])) if low < 0 < high else ():  # not up into the key
        ax.plot(x, y, color=MUTED, lw=0.5, ls=(0, (3, 2)), zorder=0)
    ax.plot([low, high], [low, high], color=MUTED, lw=0.7, zorder=1, label="unchanged")
    for number, pair in enumerate(pairs):
        ax.scatter(
            base, wide[pair], s=12, marker=MARKERS[number % len(MARKERS)], color=COLORS[number % len(COLORS)],
            alpha=0.85, linewidths=0.3, edgecolors="white", zorder=3, label=(labels or {}).get(pair, pair_label(pair)),
        )  # fmt: skip
    # room for the key above the highest point, so that it covers none
    ax.set(xlim=(low, high), ylim=(low, high + 0.1 * len(pairs) * (high - low)))
    ax.legend(
        handles=ax.collections, loc="upper left", borderaxespad=0.1, handletextpad=0.1, labelspacing=0.25,
        fontsize=6.5, frameon=False,
    )  # fmt: skip
    ax.set(xlabel="Slope on base prompts (logits)", ylabel="Slope on shifted prompts (logits)")
    if title:
        ax.set_title(title)
    return ax


def pair_label(pair: tuple[str, str]) -> str:
    """What a vector was trained and tested on, in words.

    Example:
        >>> pair_label(("base", "user_neg"))
        'base → user −'
    """
    return " → ".join(WORDS.get(kind, kind) for kind in pair)
