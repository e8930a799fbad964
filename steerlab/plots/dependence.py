"""What a predicted vector could add: shares of the inputs' own vectors that each kind of predictor explains."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from steerlab.errors import DataError, require_columns
from steerlab.plots.style import CONTEXT, INK, METHODS, MUTED, get_axes

LABELS = {
    "one vector": "one vector", "class means": "mean of the true behavior",
    "routed mean": "routed mean", "nearest neighbors": "nearest neighbors",
    "linear": "linear map", "net": "net (L2S)",
}  # fmt: skip


def dependence_bars(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Do you need a predicted vector here? One row per predictor: what it explains within behaviors, and between them.

    Example:
        >>> ax = dependence_bars(input_dependence(acts, L2S(13, net="mlp")))

    Args:
        frame: from `steerlab.analysis.input_dependence.input_dependence`.
        ax: where to draw; a new figure otherwise.

    Returns:
        The axes. Bars with 95 % intervals are the share within behaviors, gray dots that between them; a bar at 0 says
        that the predictor knows no more of an input than its behavior. Shares below 0 have their number, and no bar.

    Raises:
        DataError: columns are missing, or an unknown predictor.
    """
    require_columns(frame, ["predictor", "between", "within", "within_low", "within_high"], "dependence_bars")
    if unknown := sorted(set(frame["predictor"]) - set(LABELS)):
        raise DataError(f"dependence_bars got the predictors {unknown}; expected some of {list(LABELS)}")
    ax = get_axes(ax, height=0.2 * len(frame) + 0.75)
    rows = frame.set_index("predictor").loc[[name for name in LABELS if name in set(frame["predictor"])]]
    within, low, high = (rows[c].clip(lower=0) for c in ("within", "within_low", "within_high"))
    for y, name in enumerate(rows.index):
        ax.barh(y, within[name], height=0.6, color=METHODS["l2s"].color if name in ("linear", "net") else CONTEXT)
        ax.plot([low[name], high[name]], [y, y], color=INK, lw=0.8)
        ax.text(1.07, y, f"{rows['within'][name]:z.2f}", va="center", fontsize=6.5, color=INK)
    ax.plot(rows["between"], range(len(rows)), "o", ms=4, color=MUTED, clip_on=False, label="between behaviors")
    ax.set_yticks(range(len(rows)), [LABELS[name] for name in rows.index])
    ax.set(
        xlim=(0, 1), xlabel="Share of the inputs' vectors explained\nwithin behaviors (bars, numbers), between (dots)"
    )
    ax.invert_yaxis()
    return ax
