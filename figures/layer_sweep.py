"""Where steering works: layers by strengths for two methods, the chosen bands, and what they gain on test rows.

    python figures/layer_sweep.py [RESULTS_DIR] [--out DIR]

Reads cells.csv, bands.csv and summary.json of analyses/layer_sweep.py; writes layer_sweep.png and .pdf.
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

from steerlab import DataError
from steerlab.plots import layer_range_lines, method_style, style, sweep_heatmap, width
from steerlab.plots.style import MUTED

RESULTS = Path(__file__).parent.parent / "analyses" / "results" / "layer_sweep"
SHOWN = ("mean", "l2s")
CHANGE = "Change of the logit difference"


def draw(results_dir: str | Path) -> Figure:
    """The figure of one results folder."""
    folder = Path(results_dir)
    missing = [name for name in ("settings.csv", "layer_ranges.csv", "summary.json") if not (folder / name).exists()]
    if missing:
        raise DataError(f"{folder} lacks {missing}: give the results folder of analyses/layer_sweep.py")
    cells, layer_ranges = pd.read_csv(folder / "settings.csv"), pd.read_csv(folder / "layer_ranges.csv")
    facts = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["layer_ranges"]
    with style():
        fig = Figure(figsize=(width(2), 5.4), layout="constrained")
        axes = fig.subplots(2, 2, height_ratios=[1.25, 1.0]).ravel()
        limit = max(largest_change(cells[cells["method"] == name]) for name in SHOWN)
        for ax, name, letter in zip(axes, SHOWN, "ab", strict=False):
            title = f"{letter}  {method_style(name).label}, validation rows"
            heat(ax, cells[cells["method"] == name], facts[name], title, limit, bar=letter == "b")
        table = layer_ranges[layer_ranges["method"] == "l2s"]
        layer_range_lines(
            table, axes[2], title=f"c  L2S at α = {facts['l2s']['alpha']:g}, validation", what="Logit difference"
        )
        gains(axes[3], facts)
        fig.draw_without_rendering()
    return fig


def largest_change(cells: pd.DataFrame) -> float:
    """Of the validation means, against no steering; both maps are drawn on one scale."""
    rows = cells[(cells["split"] == "validation") & (cells["metric"] == "propensity")]
    means = rows.pivot(index="layer", columns="alpha", values="value")
    return float(means.sub(means[0], axis=0).abs().to_numpy().max())


def heat(ax: Axes, cells: pd.DataFrame, facts: Mapping[str, Any], title: str, limit: float, bar: bool) -> None:
    """One method's map with its band."""
    sweep_heatmap(
        cells, ax, split="validation", layer_range=facts["layers"], alpha=facts["alpha"], best=facts["best"],
        title=title,
        what=CHANGE, limit=limit, bar=bar,
    )  # fmt: skip


def gains(ax: Axes, facts: Mapping[str, Mapping[str, Any]]) -> None:
    """What every method's band gains on test rows, with its layers."""
    names = list(facts)[::-1]
    for place, name in enumerate(names):
        look, gain = method_style(name), facts[name]["gain"]
        fill = "white" if look.oracle else look.color
        ax.barh(place, gain["value"], color=fill, edgecolor=look.color, lw=1.0, height=0.6)
        ax.plot([gain["low"], gain["high"]], [place, place], color="#222222", lw=0.9)
        layers = facts[name]["layers"]
        told = f"layer {layers[0]}" if len(layers) == 1 else f"layers {layers[0]}–{layers[-1]}"
        alpha = f"{facts[name]['alpha']:g}".replace("-", "−")
        ax.annotate(
            f"{told}, α = {alpha}", (max(gain["high"], 0), place), (4, 0), textcoords="offset points", va="center",
            fontsize=6.5, color=MUTED,
        )  # fmt: skip
    ax.set_yticks(range(len(names)), [method_style(name).label for name in names])
    ax.axvline(0, color="#222222", lw=0.6)
    ax.set_xlim(right=1.45 * max(f["gain"]["high"] for f in facts.values()))
    n = next(iter(facts.values()))["gain"]["n"]
    ax.set(xlabel=f"{CHANGE}, {n} test rows", title="d  Gain of each method's band")
    ax.tick_params(axis="y", length=0)


if __name__ == "__main__":
    figure_script(draw, __doc__, RESULTS, "layer_sweep")
