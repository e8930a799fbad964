"""The three goals of the demo's texts: one vector for all prompts, one for each behavior, one for each prompt.

    python figures/demo.py [RESULTS_DIR] [--out DIR]

Reads summary.json of analyses/demo.py; writes demo.png and demo.pdf.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from _script import figure_script
from matplotlib.figure import Figure

from steerlab.plots import dependence_bars, method_bars, metric_style, read_summary, style, summary_frame

RESULTS = Path(__file__).parent.parent / "results" / "demo"
TITLES = {
    "refuse_harmful_fluently": "Refuses dangerous\nrequests*",
    "defer_expert_fluently": "Sends advice to\nan expert*",
    "refuse_expert": "Refuses advice\nby mistake",
}


def draw(results_dir: str | Path) -> Figure:
    """The figure of a results folder: one column per metric, one row per method."""
    estimates = summary_frame(read_summary(results_dir))
    shown = [name for name in TITLES if name in set(estimates["metric"])]
    with style():
        fig = Figure(figsize=(6.2, 2.0), layout="constrained")
        axes = fig.subplots(1, len(shown), squeeze=False)[0]
        for ax, name in zip(axes, shown, strict=True):
            method_bars(estimates, [name], ax, headings=False)
            ax.set_title(f"{TITLES[name]} {'↓' if metric_style(name).lower_is_better else '↑'}", fontsize=7, pad=9)
            if ax is not axes[0]:
                ax.set_yticklabels([])
        title = "One vector for all prompts (mean), for each behavior, or for each prompt (L2S)"
        fig.suptitle(title, fontsize=8, x=0.01, ha="left")
        n = estimates.loc[estimates["metric"].isin(shown), "n"].max()
        fig.supxlabel(f"Share of {n} unseen prompts, with 95 % intervals; dashed: goal; *: in fluent text", fontsize=7)
        fig.draw_without_rendering()  # ticks are made when first drawn: make them in this style
    return fig


def draw_dependence(results_dir: str | Path) -> Figure:
    """What each kind of predictor explains of the image questions' own vectors."""
    frame = pd.read_csv(Path(results_dir) / "dependence.csv")
    with style():
        fig = Figure(figsize=(4.2, 2.3), layout="constrained")
        dependence_bars(frame, fig.subplots())
        fig.suptitle("Do the image questions need a predicted vector?", fontsize=8)
        fig.draw_without_rendering()
    return fig


if __name__ == "__main__":
    figure_script({"demo": draw}, __doc__, RESULTS)
