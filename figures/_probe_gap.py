"""The accuracy of a probe of the hidden states beside that of the model's own answers, layer by layer."""

from __future__ import annotations

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from steerlab.plots.frames import one_row_per
from steerlab.plots.lines import SEABORN_DASHES
from steerlab.plots.style import INK, get_axes, label_ends

COLORS = {"probe": INK, "answers": "#8C8C8C"}


def probe_gap_lines(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """The accuracy of the probe at each layer in black and that of the model's answers in gray, one dash per group.

    Args:
        frame: from `steerlab.analysis.probe_gap`: columns `layer`, `group`, `probe_accuracy`, `model_accuracy`.
        ax: where to draw; a new figure otherwise.

    Returns:
        The axes, with "probe, GROUP" and "answers, GROUP" at the line ends.

    Raises:
        DataError: columns are missing, or a layer holds a group several times.
    """
    sources = {"probe_accuracy": "probe", "model_accuracy": "answers"}
    rows = one_row_per(frame, ["layer", "group"], list(sources), "probe_gap_lines").sort_values("layer")
    groups = list(dict.fromkeys(rows["group"]))
    long = rows.rename(columns=sources).melt(["layer", "group"], list(COLORS), "source", "accuracy")
    ax = get_axes(ax)
    sns.lineplot(
        long, x="layer", y="accuracy", hue="source", style="group", estimator=None, legend=False, ax=ax,
        palette=COLORS, dashes=(SEABORN_DASHES * len(groups))[: len(groups)],
    )  # fmt: skip
    ax.set_xticks(sorted(set(rows["layer"])))
    ax.margins(y=0.1)
    ax.set(xlabel="Layer", ylabel="Accuracy")
    ends = long.groupby(["source", "group"], sort=False).tail(1)
    label_ends(ax, [(e.layer, e.accuracy, f"{e.source}, {e.group}", COLORS[e.source]) for e in ends.itertuples()])
    return ax
