"""Steering methods compared: refusals of harmful requests against what everyone else pays, and task drift.

    python figures/compare_methods.py [RESULTS_DIR] [--out DIR]

Reads summary.json, grid.csv and tasktracker.csv of analyses/compare_methods.py; writes compare_methods.png and .pdf.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from _script import figure_script
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from steerlab.plots import effect_curves, method_style, read_summary, style, summary_frame, width

RESULTS = Path(__file__).parent.parent / "analyses" / "results" / "compare_methods"
SHOWN = ("none", "prompt", "mean", "l2s", "alphasteer", "adasteer", "confst", "gated_mean", "p2s")
FEATURES = {
    "delta": ("what the text adds", "#0072B2"),
    "full": ("state with the text", "#8C8C8C"),
    "norm": ("length of what it adds", "#E69F00"),
}


def draw(results_dir: str | Path) -> Figure:
    """The figure of one results folder."""
    folder = Path(results_dir)
    summary = read_summary(folder)
    grid = pd.read_csv(folder / "grid.csv", keep_default_na=False, na_values=["nan"])
    grid["changed_harmless"] = 1 - grid["identical_harmless"].astype(float)
    points = summary_frame(summary).pivot(index="method", columns="measure", values="value").reset_index()
    points["changed_harmless"] = 1 - points["identical_harmless"]
    points = points[points["method"].isin(SHOWN)]
    settings: dict[str, Any] = {
        method: {k: summary[f"{method}.setting"][k] for k in ("layer", "positions", "options")}
        for method in SHOWN
        if f"{method}.setting" in summary
    }
    with style():
        fig = Figure(figsize=(width(2), 3.3), layout="constrained")
        axes = fig.subplots(1, 3, width_ratios=[1, 1, 0.95])
        for ax, x, letter, title in zip(
            axes, ("over_refusal", "changed_harmless"), "ab", ("Sounds unsafe", "Everyday requests"), strict=False
        ):
            effect_curves(grid, points, x, ax=ax, settings=settings)
            ax.set_title(f"{letter}  {title}")
        axes[1].set_ylabel("")
        _tracker(axes[2], pd.read_csv(folder / "tasktracker.csv"))
        _key(fig, axes[0])
        fig.draw_without_rendering()
    return fig


def _tracker(ax: Axes, frame: pd.DataFrame) -> None:
    """AUC by layer on unseen sources: solid under known kinds of tasks, dashed under new ones."""
    for features, (label, color) in FEATURES.items():
        for split, dash in (("test", "-"), ("test families", (0, (3, 1.5)))):
            own = frame[(frame["features"] == features) & (frame["split"] == split)].sort_values("layer")
            ax.plot(own["layer"], own["auc"], color=color, ls=dash, lw=1.3, label=label if dash == "-" else None)
    ax.axhline(0.5, color="#B0B0B0", lw=0.6, zorder=0)
    ax.set(xlabel="Layer", ylabel="AUC, injected against clean", ylim=(0.45, 1.005))
    ax.set_title("c  A foreign task in the text")
    ax.legend(
        loc="lower left",
        fontsize=6,
        title="dashed: new kinds of tasks",
        title_fontsize=6,
        framealpha=1,
        edgecolor="none",
    )


def _key(fig: Figure, ax: Axes) -> None:
    """The methods, under all panels; stars are test inputs, small dots validation ones at other strengths."""
    handles, labels = ax.get_legend_handles_labels()
    kept = [(h, method_style(m).label) for h, m in zip(handles, labels, strict=True) if not m.endswith("curve")]
    fig.legend(
        [h for h, _ in kept], [m for _, m in kept], loc="outside lower center", ncols=5, fontsize=6.5, frameon=False,
        title="large: test inputs, at the setting that validation chose; lines: validation inputs, over the strength",
        title_fontsize=6.5,
    )  # fmt: skip


if __name__ == "__main__":
    figure_script(draw, __doc__, RESULTS, "compare_methods")
