"""The cost of remote models: predicted against measured seconds, and four workloads on 70 B parameters.

    python figures/scaling.py [RESULTS_DIR] [--out DIR]

Reads predictions.csv and llama_70b.csv of analyses/scaling.py; writes scaling.png and .pdf.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from _script import figure_script
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from steerlab.errors import DataError
from steerlab.plots import style, width
from steerlab.plots.style import MUTED, OTHER_COLORS

RESULTS = Path(__file__).parent.parent / "analyses" / "results" / "scaling"
ENGINES = {
    "local": ("one process", OTHER_COLORS[5], "s"),
    "ndif": ("NDIF", OTHER_COLORS[0], "o"),
    "vllm": ("vLLM", OTHER_COLORS[1], "^"),
    "serve": ("nnsight-serve", OTHER_COLORS[2], "v"),
}
PARTS = {"min_computing": "computing", "min_transfer": "transfer", "min_requests": "requests"}


def draw(results_dir: str | Path) -> Figure:
    """The figure of a results folder."""
    folder = Path(results_dir)
    missing = [name for name in ("predictions.csv", "llama_70b.csv") if not (folder / name).exists()]
    if missing:
        raise DataError(f"{folder} lacks {missing}: give the results folder of analyses/scaling.py")
    with style():
        fig = Figure(figsize=(width(2), 3.5), layout="constrained")
        left, right = fig.subplots(1, 2, width_ratios=[1.0, 1.35])
        draw_predictions(left, pd.read_csv(folder / "predictions.csv"))
        draw_workloads(right, pd.read_csv(folder / "llama_70b.csv"))
        fig.draw_without_rendering()
    return fig


def draw_predictions(ax: Axes, table: pd.DataFrame) -> None:
    """Predicted over measured seconds; hollow for the runs that the cost model was fitted to."""
    for engine, (label, color, marker) in ENGINES.items():
        for fitted, rows in table[table["engine"] == engine].groupby("used_for_fit"):
            ax.plot(
                rows["measured_s"], rows["predicted_s"], ls="", marker=marker, ms=5, color=color, mew=0.9,
                mfc="white" if fitted else color, label=None if fitted else label,
            )  # fmt: skip
    low, high = 0.7 * table["measured_s"].min(), 1.5 * table["measured_s"].max()
    ax.plot([low, high], [low, high], color=MUTED, lw=0.7, zorder=0)
    ax.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), aspect="equal")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    ax.set(xlabel="Measured seconds", ylabel="Predicted seconds", title="a  SmolLM2 on two cores")
    handles, labels = ax.get_legend_handles_labels()
    handles.append(Line2D([], [], ls="", marker="o", ms=5, mfc="white", mec=MUTED))
    ax.legend(handles, [*labels, "used to fit the cost model"], loc="upper left", handletextpad=0.2)


def draw_workloads(ax: Axes, table: pd.DataFrame) -> None:
    """Predicted minutes of each workload on each engine, with the part that takes the most of them."""
    workloads = list(table["workload"].unique())
    for i, workload in enumerate(workloads):
        for j, (engine, (_, color, marker)) in enumerate(ENGINES.items()):
            row = table[(table["workload"] == workload) & (table["engine"] == engine)].iloc[0]
            y = i - 0.3 + 0.2 * j
            ax.plot(row["minutes"], y, ls="", marker=marker, ms=5, color=color)
            largest = max(PARTS, key=lambda part: float(row[part]))
            ax.annotate(
                f"{duration(row['minutes'])}, {row[largest] / row['minutes']:.0%} {PARTS[largest]}",
                (row["minutes"], y), (6, 0), textcoords="offset points", va="center", fontsize=6, color=MUTED,
                annotation_clip=False,
            )  # fmt: skip
        if i:
            ax.axhline(i - 0.5, color="#DDDDDD", lw=0.6)
    ax.set(xscale="log", ylim=(len(workloads) - 0.5, -0.5))
    ax.set_xlim(0.5 * table["minutes"].min(), 40 * table["minutes"].max())
    ax.set_yticks(range(len(workloads)), [name.replace(", ", ",\n") for name in workloads])
    ax.tick_params(axis="y", length=0)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    ax.set(xlabel="Predicted minutes", title="b  70 B parameters on eight GPUs (assumed)")
    handles = [Line2D([], [], ls="", marker=marker, ms=5, color=color) for _, color, marker in ENGINES.values()]
    ax.legend(handles, [label for label, *_ in ENGINES.values()], loc="upper right", handletextpad=0.2)


def duration(minutes: float) -> str:
    """A duration in seconds below one minute, in hours from 100 minutes on, else in minutes."""
    if minutes < 1:
        return f"{60 * minutes:.0f} s"
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.0f} h"


if __name__ == "__main__":
    figure_script({"scaling": draw}, __doc__, RESULTS)
