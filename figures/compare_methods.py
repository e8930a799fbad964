"""Steering methods compared: refused harmful requests against two side effects, and the detection of injected tasks.

    python figures/compare_methods.py [RESULTS_DIR] [--out DIR]

Reads summary.json, grid.csv and tasktracker.csv of analyses/compare_methods.py, and the first two of methods that were
compared later, in the folder `more`; writes compare_methods.png and .pdf.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import seaborn as sns
from _effect_curves import effect_curves
from _script import figure_script
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from steerlab.plots import method_style, read_summary, style, summary_frame, width
from steerlab.plots.style import MUTED, label_ends

RESULTS = Path(__file__).parent.parent / "analyses" / "results" / "compare_methods"
SHOWN = (
    "none", "prompt", "mean", "l2s", "alphasteer", "adasteer", "confst",
    "gated_mean", "field", "spherical", "w2s", "ssae", "kts", "p2s",
)  # fmt: skip
EFFECT = "refuse_harmful_fluently"  # earlier results count refusals in any text
FEATURES = {
    "full": ("state", "#A6761D"),
    "delta": ("difference of\nstates (paper)", "#222222"),
    "norm": ("norm of the\ndifference", "#7570B3"),
}


def draw(results_dir: str | Path) -> Figure:
    """The figure of a results folder."""
    folder = Path(results_dir)
    parts = [*(path.parent for path in folder.glob("more/summary.json")), folder]
    summary = {name: value for part in parts for name, value in read_summary(part).items()}
    grid = pd.concat([pd.read_csv(part / "grid.csv", keep_default_na=False, na_values=["nan"]) for part in parts])
    grid["changed_harmless"] = 1 - grid["identical_harmless"].astype(float)
    points = summary_frame(summary).pivot(index="method", columns="metric", values="value").reset_index()
    points["changed_harmless"] = 1 - points["identical_harmless"]
    points = points[points["method"].isin(SHOWN)]
    settings: dict[str, Any] = {
        method: {k: summary[f"{method}.setting"][k] for k in ("layer", "positions", "options")}
        for method in SHOWN
        if f"{method}.setting" in summary
    }
    with style():
        fig = Figure(figsize=(width(2), 3.4), layout="constrained")
        axes = fig.subplots(1, 3, width_ratios=[1, 1, 0.8])
        for ax, x, title in zip(
            axes, ("over_refusal", "changed_harmless"), ("a  Safe prompts", "b  Everyday requests"), strict=False
        ):
            effect_curves(grid, points, ax, x=x, y=EFFECT if EFFECT in grid else "refuse_harmful", settings=settings)
            ax.set_title(title)
        axes[1].set_ylabel("")
        draw_detection(axes[2], pd.read_csv(folder / "tasktracker.csv"))
        draw_legend(fig, axes[0])
        fig.draw_without_rendering()
    return fig


def draw_detection(ax: Axes, frame: pd.DataFrame) -> None:
    """AUC by layer on unseen sources: solid for known kinds of injected tasks, dashed for new ones."""
    rows = frame[frame["split"].isin(("test", "test families"))].sort_values("layer")
    sns.lineplot(
        rows, x="layer", y="auc", hue="features", style="split", estimator=None, legend=False, lw=1.3, ax=ax,
        palette={name: color for name, (_, color) in FEATURES.items()}, hue_order=list(FEATURES),
        style_order=["test", "test families"], dashes=["", (3, 1.5)],
    )  # fmt: skip
    ax.axhline(0.5, color=MUTED, lw=0.6, zorder=0)
    ax.text(0, 0.505, "chance", color=MUTED, fontsize=6.5)
    ax.text(0, 0.56, "dashed: new kinds of tasks", color=MUTED, fontsize=6.5)
    ax.set(xlabel="Layer", ylabel="AUC, injected against clean", ylim=(0.45, 1.005))
    ax.set_title("c  Detecting injected tasks")
    last = rows[rows["split"] == "test"].groupby("features").tail(1).set_index("features")
    label_ends(ax, [(*last.loc[name, ["layer", "auc"]], *look) for name, look in FEATURES.items()], gap=0.06)


def draw_legend(fig: Figure, ax: Axes) -> None:
    """The methods, below all panels."""
    handles, labels = ax.get_legend_handles_labels()
    kept = [(h, method_style(m).label) for h, m in zip(handles, labels, strict=True) if not m.endswith("curve")]
    fig.legend(
        *zip(*kept, strict=True), loc="outside lower center", ncols=5, fontsize=6.5,
        title="a, b: large markers are test inputs at the chosen setting; lines are validation inputs, with arrows "
        "towards larger α; x axes on an arcsine scale",
        title_fontsize=6.5,
    )  # fmt: skip


if __name__ == "__main__":
    figure_script({"compare_methods": draw}, __doc__, RESULTS)
