"""What far models cost: predicted against measured seconds, and four jobs on 70 B parameters in four places.

    python figures/scaling.py [RESULTS_DIR] [--out DIR]

Reads predictions.csv and seventy.csv of analyses/scaling.py; writes scaling.png and .pdf.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from _script import figure_script
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from steerlab import DataError
from steerlab.plots import style, width
from steerlab.plots.style import MUTED

RESULTS = Path(__file__).parent.parent / "analyses" / "results" / "scaling"
WAYS = {
    "here": ("one process", "#009E73", "s"),
    "ndif": ("NDIF", "#0072B2", "o"),
    "vllm": ("vLLM", "#D55E00", "^"),
    "serve": ("nnsight-serve", "#E69F00", "v"),
}
PARTS = {"min_computing": "computing", "min_transfer": "bytes", "min_requests": "requests"}


def draw(results_dir: str | Path) -> Figure:
    """The figure of one results folder."""
    folder = Path(results_dir)
    missing = [name for name in ("predictions.csv", "llama_70b.csv") if not (folder / name).exists()]
    if missing:
        raise DataError(f"{folder} lacks {missing}: give the results folder of analyses/scaling.py")
    with style():
        fig = Figure(figsize=(width(2), 3.5), layout="constrained")
        left, right = fig.subplots(1, 2, width_ratios=[1.0, 1.35])
        against(left, pd.read_csv(folder / "predictions.csv"))
        jobs(right, pd.read_csv(folder / "llama_70b.csv"))
        fig.draw_without_rendering()
    return fig


def against(ax: Axes, table: pd.DataFrame) -> None:
    """Seconds that the model says, over those measured."""
    for engine, rows in table.groupby("engine", sort=False):
        label, color, marker = WAYS[str(engine)]
        for fitted, part in rows.groupby("used_for_fit"):
            ax.plot(
                part["measured_s"], part["predicted_s"], ls="", marker=marker, ms=5, color=color, mew=0.9,
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
    ax.legend(handles, [*labels, "the model was fitted to it"], loc="upper left", fontsize=6.5, handletextpad=0.2)


def jobs(ax: Axes, table: pd.DataFrame) -> None:
    """Minutes of every job in every place, with what they go on."""
    names = list(table["workload"].unique())
    for place, name in enumerate(names):
        for number, (way, (_, color, marker)) in enumerate(WAYS.items()):
            row = table[(table["workload"] == name) & (table["engine"] == way)].iloc[0]
            y = place - 0.3 + 0.2 * number
            ax.plot(row["minutes"], y, ls="", marker=marker, ms=5, color=color)
            most = max(PARTS, key=lambda part: float(row[part]))
            ax.annotate(
                f"{told(row['minutes'])}, {row[most] / row['minutes']:.0%} {PARTS[most]}", (row["minutes"], y), (6, 0),
                textcoords="offset points", va="center", fontsize=6, color=MUTED, annotation_clip=False,
            )  # fmt: skip
        if place:
            ax.axhline(place - 0.5, color="#DDDDDD", lw=0.6)
    ax.set(
        xscale="log", ylim=(-0.5, len(names) - 0.5), xlim=(0.5 * table["minutes"].min(), 40 * table["minutes"].max())
    )
    ax.set_yticks(range(len(names)), [name.replace(", ", ",\n") for name in names])
    ax.invert_yaxis()
    ax.tick_params(axis="y", length=0)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    ax.set(xlabel="Minutes, predicted", title="b  70 B parameters on eight GPUs (assumed)")
    handles = [Line2D([], [], ls="", marker=m, ms=5, color=c) for _, c, m in WAYS.values()]
    ax.legend(handles, [label for label, *_ in WAYS.values()], loc="upper right", fontsize=6.5, handletextpad=0.2)


def told(minutes: float) -> str:
    """A length of time in the unit that reads best."""
    if minutes < 1:
        return f"{60 * minutes:.0f} s"
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.0f} h"


if __name__ == "__main__":
    figure_script(draw, __doc__, RESULTS, "scaling")
