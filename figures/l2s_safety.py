"""Learn-to-Steer on MM-SafetyBench: what every method reaches, why one vector cannot, and what it costs.

    python figures/l2s_safety.py [RESULTS_DIR] [--out DIR]

Reads summary.json and, where there is one, grid.csv of analyses/l2s_safety.py; writes l2s_safety.png and .pdf.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from _script import figure_script
from matplotlib.figure import Figure

from steerlab.plots import method_bars, read_summary, style, summary_frame, trade_off, width

RESULTS = Path(__file__).parent.parent / "analyses" / "results" / "l2s_safety"
HEADLINE = ("refuse_harmful", "defer_expert", "refuse_expert")
COST = ("harmless_kept", "distinct2", "cosine")


def draw(results_dir: str | Path) -> Figure:
    """The figure of one results folder; panels without data are left out."""
    summary = read_summary(results_dir)
    frame = summary_frame(summary)
    path = Path(results_dir) / "grid.csv"
    there = set(frame["measure"])
    panels = ["bars", *(["grid"] if path.exists() else []), *(["cost"] if there & set(COST) else [])]
    with style():
        fig = Figure(figsize=(width(2), 3.05), layout="constrained")
        shares = {"bars": 1.0, "grid": 1.62, "cost": 1.0}
        axes = fig.subplots(1, len(panels), width_ratios=[shares[p] for p in panels], squeeze=False)[0]
        for letter, name, ax in zip("abc", panels, axes, strict=False):
            if name == "grid":
                chosen = {m: summary[f"{m}.setting"] for m in ("mean", "l2s") if f"{m}.setting" in summary}
                trade_off(pd.read_csv(path), ax=ax, chosen=chosen)
                ax.set_title(f"{letter}  Every setting tried (validation)")
                continue
            wanted, title = (
                (HEADLINE, "Three goals at once (test)") if name == "bars" else (COST, "Costs, and the cause (test)")
            )
            method_bars(frame, [m for m in wanted if m in there], ax, title=f"{letter}  {title}")
            ax.set_xlabel("Share of inputs" if name == "bars" else "Share, cosine")
        fig.draw_without_rendering()  # ticks are made when first drawn: make them in our style
    return fig


if __name__ == "__main__":
    figure_script(draw, __doc__, RESULTS, "l2s_safety")
