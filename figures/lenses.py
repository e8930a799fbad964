"""What can be read off each layer, whether that says how steerable a set is, and where a copied word comes from.

    python figures/lenses.py [RESULTS_DIR] [--out DIR]

Reads results.csv, facts.csv, copies.csv and summary.json of analyses/lenses.py; writes lenses.png and lenses.pdf.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import seaborn as sns
from _script import figure_script
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from steerlab.analysis.accessibility import HOPELESS, STEERABLE
from steerlab.plots import patch_heatmap, read_summary, style, width
from steerlab.plots.style import MUTED

RESULTS = Path(__file__).parents[1] / "analyses/results/lenses"


def draw(results_dir: str | Path) -> Figure:
    """The figure of a results folder."""
    folder = Path(results_dir)
    facts, choices, copies = (pd.read_csv(folder / f"{name}.csv") for name in ("facts", "results", "copies"))
    with style():
        fig = Figure(figsize=(width(2), 2.7), layout="constrained")
        axes = fig.subplots(1, 3, width_ratios=[1.1, 0.9, 1.1])
        draw_facts(axes[0], facts)
        draw_choices(axes[1], choices, read_summary(folder))
        draw_copies(axes[2], copies)
        fig.draw_without_rendering()
    return fig


def draw_facts(ax: Axes, facts: pd.DataFrame) -> None:
    """The share of each family's answers that is the most probable token at a layer."""
    sns.lineplot(facts, x="layer", y="accessible", hue="family", palette="tab10", ax=ax)
    ax.set(title="a  Facts read off a layer", xlabel="Layer", ylabel="Share of right tokens", ylim=(-0.03, 1.03))
    ax.legend(title=None, fontsize=6, loc="upper left")


def draw_choices(ax: Axes, choices: pd.DataFrame, summary: dict[str, Any]) -> None:
    """For each persona set, the largest share that can be read and the largest mean slope of all layers."""
    peaks = choices.groupby("behavior")[["accessible", "steerability"]].max()
    sns.scatterplot(peaks, x="accessible", y="steerability", ax=ax, s=18, color="#0072B2")
    for threshold in (HOPELESS, STEERABLE):
        ax.axvline(threshold, color=MUTED, lw=0.6, ls=":")
    found = summary.get("choices.accessible_and_steerability")
    if found:
        note = f"rank correlation {found['value']:.2f}\n[{found['low']:.2f}, {found['high']:.2f}]"
        ax.text(0.98, 0.97, note, transform=ax.transAxes, ha="right", va="top", fontsize=6.5)
    ax.set(title=f"b  {len(peaks)} persona sets", xlabel="Right letters read (best layer)", xlim=(0, None))
    ax.set_ylabel("Slope of the mean vector (best layer)")


def draw_copies(ax: Axes, copies: pd.DataFrame) -> None:
    """The share restored by each state, averaged over pairs of words; the copied word has a name of its own."""
    first = copies["column"].min()
    words = copies.groupby("column")["token"].first()
    words[first] = " WORD"
    mean = copies.groupby(["layer", "column"], sort=False)[["value", "restored", "clean", "corrupted"]].mean()
    frame = mean.reset_index().assign(example_id="mean", head=-1)
    frame["token"] = frame["clean_token"] = frame["column"].map(words)
    patch_heatmap(frame, ax=ax)
    ax.set_title(f"c  A word copied, {copies['example_id'].nunique()} pairs")


if __name__ == "__main__":
    figure_script({"lenses": draw}, __doc__, RESULTS)
