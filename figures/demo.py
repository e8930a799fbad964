"""The three goals of the demo's texts: one vector for all prompts, one for each behavior, one for each prompt.

    python figures/demo.py [RESULTS_DIR] [--out DIR]

Reads summary.json of analyses/demo.py; writes demo.png and demo.pdf.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from _dots import estimate_dot
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
    """What each kind of predictor explains of the image questions' own vectors, and what another's vector loses."""
    frame = pd.read_csv(Path(results_dir) / "dependence.csv")
    lost = read_summary(results_dir).get("shuffle.lost_share")
    with style():
        fig = Figure(figsize=(6.0, 2.3), layout="constrained")
        left, right = fig.subplots(1, 2, width_ratios=[3, 1.4])
        dependence_bars(frame, left)
        left.set_title("a  What can be predicted\nof a question's own vector", pad=6)
        right.set_title("b  Effect lost with\nanother's vector*", pad=6)
        right.axvline(0, color="0.6", lw=0.6)
        if lost is None:  # the own vectors have no effect of which a share could be lost
            right.text(0.5, 0.5, "no effect", transform=right.transAxes, ha="center")
        else:
            estimate_dot(right, lost, 0, "l2s")
            right.text(0.98, 0.5, f"{lost['value']:.2f}", transform=right.transAxes, ha="right", va="center")
        right.set(yticks=[], xlim=(-0.1, 1.02), xticks=[0, 0.5, 1], xlabel="Share of the effect on\nthe wanted answer")
        note = "*: of another question with the same answer; with a 95 % interval"
        fig.supxlabel(note, fontsize=7, x=0.99, ha="right")
        fig.suptitle("Do the image questions need a predicted vector?", fontsize=8)
        fig.draw_without_rendering()
    return fig


if __name__ == "__main__":
    figure_script({"demo": draw}, __doc__, RESULTS)
