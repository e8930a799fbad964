"""Layers by strengths for two methods, the selected layers, and the gain of each method on test examples.

    python figures/layer_sweep.py [RESULTS_DIR] [--out DIR]

Reads settings.csv, layer_ranges.csv and summary.json of analyses/layer_sweep.py; writes layer_sweep.png and .pdf.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from _script import figure_script
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from steerlab.errors import DataError
from steerlab.plots import layer_range_lines, method_style, style, sweep_heatmap, width
from steerlab.plots.style import INK, MUTED

RESULTS = Path(__file__).parent.parent / "analyses" / "results" / "layer_sweep"
SHOWN = ("mean", "l2s")
CHANGE = "Change of the logit difference"


def draw(results_dir: str | Path) -> Figure:
    """The figure of a results folder."""
    folder = Path(results_dir)
    missing = [n for n in ("settings.csv", "layer_ranges.csv", "summary.json") if not (folder / n).exists()]
    if missing:
        raise DataError(f"{folder} lacks {missing}: give the results folder of analyses/layer_sweep.py")
    grid, ranges = pd.read_csv(folder / "settings.csv"), pd.read_csv(folder / "layer_ranges.csv")
    selected = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["layer_ranges"]
    l2s = method_style("l2s")
    with style():
        fig = Figure(figsize=(width(2), 5.4), layout="constrained")
        axes = fig.subplots(2, 2, height_ratios=[1.25, 1.0]).ravel()
        largest = max(largest_change(grid[grid["method"] == name]) for name in SHOWN)
        for ax, name, letter in zip(axes, SHOWN, "ab", strict=False):
            sweep_heatmap(
                grid[grid["method"] == name], ax, split="validation", max_change=largest, label=CHANGE,
                colorbar=letter == "b", **{k: selected[name][k] for k in ("layers", "alpha", "best")},
            )  # fmt: skip
            ax.set_title(f"{letter}  {method_style(name).label} (validation; framed: selected)")
        layer_range_lines(ranges[ranges["method"] == "l2s"], axes[2], label="Logit difference", color=l2s.color)
        axes[2].set_title(f"c  {l2s.label} at α = {selected['l2s']['alpha']:g} (validation)")
        draw_gains(axes[3], selected)
        fig.draw_without_rendering()
    return fig


def largest_change(grid: pd.DataFrame) -> float:
    """The largest absolute change of a validation mean against alpha 0, for one color scale in both heat maps."""
    rows = grid[(grid["split"] == "validation") & (grid["metric"] == "propensity")]
    means = rows.pivot(index="layer", columns="alpha", values="value")
    return float(means.sub(means[0], axis=0).abs().to_numpy().max())


def draw_gains(ax: Axes, selected: Mapping[str, Mapping[str, Any]]) -> None:
    """The gain on test examples at the selected layers and strength of each method."""
    names = list(selected)[::-1]
    for row, name in enumerate(names):
        look, gain, layers = method_style(name), selected[name]["gain"], selected[name]["layers"]
        ax.barh(
            row, gain["value"], color="white" if look.outline else look.color, edgecolor=look.color, lw=1.0, height=0.6
        )
        ax.plot([gain["low"], gain["high"]], [row, row], color=INK, lw=0.9)
        where = f"layer {layers[0]}" if len(layers) == 1 else f"layers {layers[0]}–{layers[-1]}"
        alpha = f"{selected[name]['alpha']:g}".replace("-", "−")
        ax.annotate(
            f"{where}, α = {alpha}", (max(gain["high"], 0), row), (4, 0), textcoords="offset points", va="center",
            color=MUTED, fontsize=6.5,
        )  # fmt: skip
    ax.set_yticks(range(len(names)), [method_style(name).label for name in names])
    ax.axvline(0, color=INK, lw=0.6)
    ax.set_xlim(right=1.45 * max(f["gain"]["high"] for f in selected.values()))
    n = next(iter(selected.values()))["gain"]["n"]
    ax.set(xlabel=f"{CHANGE}, {n} test examples")
    ax.set_title("d  Gain at the selected layers and α (test)")
    ax.tick_params(axis="y", length=0)


if __name__ == "__main__":
    figure_script({"layer_sweep": draw}, __doc__, RESULTS)
