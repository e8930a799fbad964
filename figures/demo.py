"""The demo in one picture: one vector has to choose between two behaviors, a predicted vector need not.

    python figures/demo.py [RESULTS_DIR] [--out DIR]

Reads summary.json of analyses/demo.py; writes demo.png and demo.pdf.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from _script import figure_script
from matplotlib.figure import Figure

from steerlab.plots import measure, method_bars, read_summary, style, summary_frame, width

RESULTS = Path(__file__).parent.parent / "results" / "demo"
SHOWN = {
    "refuse_harmful": "Refuses dangerous requests",
    "defer_expert": "Sends advice to an expert",
    "refuse_expert": "Refuses advice by mistake",
}
CLAIM = "One vector for every prompt has to choose; a vector predicted from the prompt does not"
NEUTRAL = "One vector for every prompt, and a vector predicted from the prompt"


def draw(results_dir: str | Path) -> Figure:
    """The figure of one results folder: a column a measure, a row a method."""
    frame = summary_frame(read_summary(results_dir))
    shown = [name for name in SHOWN if name in set(frame["measure"])]
    with style():
        fig = Figure(figsize=(width(2), 1.75), layout="constrained")
        axes = fig.subplots(1, len(shown), squeeze=False)[0]
        for number, (name, ax) in enumerate(zip(shown, axes, strict=True)):
            method_bars(frame, [name], ax, headings=False)
            ax.set_title(f"{SHOWN[name]} {'↓' if measure(name).lower else '↑'}", fontsize=7)
            if number:
                ax.set_yticklabels([])
        fig.suptitle(CLAIM if claim_holds(frame) else NEUTRAL, fontsize=9, fontweight="bold", x=0.01, ha="left")
        fig.supxlabel("Share of unseen prompts, with 95 % intervals; dashed: goal", fontsize=7)
        fig.draw_without_rendering()  # ticks are made when first drawn: make them in our style
    return fig


def claim_holds(frame: pd.DataFrame) -> bool:
    """Whether the numbers say what the title says: L2S reaches the goals of both behaviors and does better than the
    mean vector in everything shown, which misses a goal."""
    table = frame.pivot_table(index="method", columns="measure", values="value")
    wanted = list(SHOWN)
    if not {"mean", "l2s"} <= set(table.index) or not set(wanted) <= set(table.columns):
        return False
    sign = pd.Series({w: -1.0 if measure(w).lower else 1.0 for w in wanted})
    goal = pd.Series({w: measure(w).goal or 0.0 for w in wanted}) * sign
    mean, l2s = table.loc["mean", wanted] * sign, table.loc["l2s", wanted] * sign
    return bool((l2s >= goal)[:2].all() and (l2s >= mean).all() and (l2s > mean)[:2].all() and (mean < goal).any())


if __name__ == "__main__":
    figure_script(draw, __doc__, RESULTS, "demo")
