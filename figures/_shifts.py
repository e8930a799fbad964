"""Steerability under shifted prompts against steerability under the base prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from steerlab.errors import DataError
from steerlab.plots.frames import one_row_per
from steerlab.plots.style import DASHES, MARKERS, MUTED, OTHER_COLORS

# trained and tested on: the shifts whose agreement with the base prompts the paper draws
PAIRS = (("base", "user_neg"), ("base", "user_pos"), ("sys_pos", "user_neg"), ("sys_neg", "user_pos"))
VARIANT_LABELS = {"sys_pos": "system +", "sys_neg": "system −", "user_pos": "user +", "user_neg": "user −"}


def shift_scatter(
    shifts: pd.DataFrame,
    ax: Axes,
    *,
    pairs: Sequence[tuple[str, str]] = PAIRS,
    labels: Mapping[tuple[str, str], str] | None = None,
) -> Axes:
    """Steerability on base prompts against that of shifted pairs, one point per data set and pair.

    Args:
        shifts: one row per data set and pair: `behavior`, `train_variant`, `test_variant`, `steerability`.
        ax: where to draw.
        pairs: which pairs of training and test prompts to draw, each with a color and a marker.
        labels: other names for pairs in the legend.

    Returns:
        The axes; on the solid line nothing changes. The legend covers no point.

    Raises:
        DataError: columns are missing, a pair of a data set occurs twice, or a pair is missing.

    Source: Tan et al., arXiv 2407.12404, section 5 (its figure of steerability under shifted prompts).
    """
    rows = one_row_per(shifts, ["behavior", "train_variant", "test_variant"], ["steerability"], "shift_scatter")
    wide = rows.pivot(index="behavior", columns=["train_variant", "test_variant"], values="steerability")
    missing = [pair for pair in [("base", "base"), *pairs] if pair not in wide.columns]
    if missing or not pairs:
        raise DataError(f"shift_scatter lacks the pairs {missing}; there are {list(wide.columns)}")
    names = {pair: (labels or {}).get(pair, pair_label(pair)) for pair in pairs}
    long = pd.concat(
        [wide[pair].rename("y").to_frame().assign(base=wide["base", "base"], pair=names[pair]) for pair in pairs]
    )
    low, high = long[["y", "base"]].min(axis=None), long[["y", "base"]].max(axis=None)
    room = 0.06 * (high - low or 1.0)
    low, high = low - room, high + room
    for line in (ax.axhline, ax.axvline):
        line(0, color=MUTED, lw=0.5, ls=DASHES[1], zorder=0)
    ax.plot([low, high], [low, high], color=MUTED, lw=0.7, zorder=1)
    sns.scatterplot(
        long, x="base", y="y", hue="pair", style="pair", palette=list(OTHER_COLORS[: len(pairs)]),
        markers=list(MARKERS[: len(pairs)]), s=18, alpha=0.85, linewidth=0.3, zorder=3, ax=ax,
    )  # fmt: skip
    # room for the legend above the highest point
    ax.set(xlim=(low, high), ylim=(low, high + 0.1 * len(pairs) * (high - low)))
    ax.legend(
        loc="upper left",
        borderaxespad=0.1,
        handletextpad=0.1,
        labelspacing=0.25,
        framealpha=1,
        frameon=True,
        edgecolor="none",
    )
    ax.set(xlabel="Slope on base prompts (logits)", ylabel="Slope on shifted prompts (logits)")
    return ax


def pair_label(pair: tuple[str, str]) -> str:
    """The prompts that a vector was trained and tested on.

    Example:
        >>> pair_label(("base", "user_neg"))
        'base → user −'
    """
    return " → ".join(VARIANT_LABELS.get(variant, variant) for variant in pair)
