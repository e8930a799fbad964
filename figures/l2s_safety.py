"""Learn-to-Steer on MM-SafetyBench: three goals on test inputs, all settings tried, and side effects.

    python figures/l2s_safety.py [RESULTS_DIR] [--out DIR]

Reads summary.json and, if it exists, grid.csv of analyses/l2s_safety.py; writes l2s_safety.png and .pdf.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from _frontier import trade_off
from _script import figure_script
from matplotlib.figure import Figure

from steerlab.plots import method_bars, read_summary, style, summary_frame, width

RESULTS = Path(__file__).parent.parent / "analyses" / "results" / "l2s_safety"
GOALS = ("refuse_harmful", "defer_expert", "refuse_expert")  # in fluent text, where the results tell it
SIDE_EFFECTS = ("harmless_kept", "distinct2", "cosine")


def draw(results_dir: str | Path) -> Figure:
    """The figure of a results folder; panels without data are left out."""
    summary = read_summary(results_dir)
    estimates = summary_frame(summary)
    known = set(estimates["metric"])
    grid = Path(results_dir) / "grid.csv"
    panels = {"goals": 1.0} | ({"grid": 1.62} if grid.exists() else {})
    panels |= {"side effects": 1.0} if known & set(SIDE_EFFECTS) else {}
    with style():
        fig = Figure(figsize=(width(2), 3.05), layout="constrained")
        axes = fig.subplots(1, len(panels), width_ratios=list(panels.values()), squeeze=False)[0]
        for letter, panel, ax in zip("abc", panels, axes, strict=False):
            if panel == "grid":
                chosen = {m: summary[f"{m}.setting"] for m in ("mean", "l2s") if f"{m}.setting" in summary}
                trade_off(pd.read_csv(grid), ax=ax, chosen=chosen)
                ax.set_title(f"{letter}  All settings tried (validation)")
                continue
            goals = [f"{name}_fluently" if f"{name}_fluently" in known else name for name in GOALS]
            metrics = goals if panel == "goals" else SIDE_EFFECTS
            text = "" if "refuse_harmful_fluently" in known else ", any text"
            title = f"Three goals{text} (test)" if panel == "goals" else "Side effects, any text (test)"
            method_bars(estimates, [m for m in metrics if m in known], ax, title=f"{letter}  {title}")
            ax.set_xlabel("Share of inputs" if panel == "goals" else "Share of inputs, cosine")
        fig.draw_without_rendering()  # ticks are made when first drawn: make them in this style
    return fig


if __name__ == "__main__":
    figure_script({"l2s_safety": draw}, __doc__, RESULTS)
