"""Three tasks: what can be predicted of the inputs' own vectors, and what the answers show of it.

    python figures/dependence.py [RESULTS_DIR] [--out DIR]

Reads dependence.csv and summary.json of analyses/dependence.py; writes dependence.png and dependence.pdf.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from _dots import estimate_dot
from _script import figure_script
from matplotlib.figure import Figure

from steerlab.plots import dependence_bars, read_summary, style, width

RESULTS = Path(__file__).parents[1] / "analyses/results/dependence"
TASKS = {
    "language": "a  Answer in a city's\nlanguage", "images": "b  Say what the\nimage shows",
    "safety": "c  Refuse, or send to\na professional",
}  # fmt: skip
SHORT = {"language": "a", "images": "b", "safety": "c"}


def draw(results_dir: str | Path) -> Figure:
    """The figure of a results folder: a panel for each task, and one for the answers."""
    folder = Path(results_dir)
    summary = read_summary(folder)
    frame = pd.read_csv(folder / "dependence.csv")
    with style():
        fig = Figure(figsize=(width(2), 2.5), layout="constrained")
        *panels, last = fig.subplots(1, len(TASKS) + 1)
        for ax, (task, title) in zip(panels, TASKS.items(), strict=True):
            dependence_bars(frame[frame["task"] == task], ax)
            ax.set_title(title, pad=6)
            ax.set(xlabel="", xticks=[0, 0.5, 1])
            if ax is not panels[0]:
                ax.set_yticklabels([])
        panels[1].set_xlabel(
            "Share of the inputs' vectors explained\nwithin behaviors (bars, numbers; below 0 no bar), between (dots)"
        )
        for row, task in enumerate(TASKS):
            estimate_dot(last, summary[f"{task}.lost_share"], row, "l2s")
        last.axvline(0, color="0.6", lw=0.6)
        last.set_yticks(range(len(TASKS)), list(SHORT.values()))
        last.set(ylim=(len(TASKS) - 0.5, -0.5), xlim=(-0.06, 1.02), xticks=[0, 0.5, 1])
        last.set_title("d  Effect lost with\nanother's vector", pad=6)
        last.set_xlabel("Share of the effect on\nthe wanted answer")
        fig.draw_without_rendering()
    return fig


if __name__ == "__main__":
    figure_script({"dependence": draw}, __doc__, RESULTS)
