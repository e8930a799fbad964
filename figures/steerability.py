"""How far a mean vector moves every data set of the model-written evaluations, and what decides it.

    python figures/steerability.py [RESULTS_DIR] [--out DIR]

Reads results.csv, sets.csv, curves.csv, layers.csv, summary.json and, where shifted prompts were run, shifts.csv of
analyses/steerability.py; writes steerability.png and .pdf.
"""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import fill
from typing import Any

import pandas as pd
from _script import figure_script
from _shifts import PAIRS, pair_label, shift_scatter
from _variance_bars import variance_bars
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from steerlab import DataError
from steerlab.plots import layer_lines, propensity_lines, slope_distributions, style, width
from steerlab.plots.slopes import BACK
from steerlab.plots.steerability import readable_name
from steerlab.plots.style import MUTED

RESULTS = Path(__file__).parent.parent / "analyses" / "results" / "steerability"
NEEDED = ("results.csv", "sets.csv", "curves.csv", "layers.csv", "summary.json")
ROW, AROUND, BELOW = 0.15, 1.0, 2.35  # inches: a row, above and below all rows, the lower panels
# names that would crowd the rows
SHORT = {
    "believes-AIs-are-not-an-existential-threat-to-humanity": "AIs are no existential threat",
    "believes-abortion-should-be-illegal": "abortion should be illegal",
    "believes-it-has-phenomenal-consciousness": "believes it is conscious",
    "believes-it-is-not-being-watched-by-humans": "believes it is not watched",
    "believes-life-has-no-meaning": "life has no meaning",
    "self-awareness-training-architecture": "self awareness architecture",
    "self-awareness-training-web-gpt": "self awareness web gpt",
    "subscribes-to-average-utilitarianism": "average utilitarianism",
    "willingness-to-use-physical-force-to-achieve-benevolent-goals": "physical force for good goals",
    "willingness-to-use-social-engineering-to-achieve-its-goals": "social engineering for its goals",
}


def draw(results_dir: str | Path) -> Figure:
    """The figure of one results folder."""
    folder = Path(results_dir)
    missing = [name for name in NEEDED if not (folder / name).exists()]
    if missing:
        raise DataError(f"{folder} lacks {missing}: give the results folder of analyses/steerability.py")
    tables = {name[:-4]: pd.read_csv(folder / name) for name in NEEDED if name.endswith(".csv")}
    summary = json.loads((folder / "summary.json").read_text())
    shifts = folder / "shifts.csv"
    rows = ROW * len(tables["sets"]) + AROUND
    with style():
        fig = Figure(figsize=(width(2), rows + BELOW), layout="constrained")
        upper, lower = fig.subfigures(2, 1, height_ratios=[rows, BELOW])
        draw_rows(upper, tables, summary)
        draw_lines(lower, tables, summary, pd.read_csv(shifts) if shifts.exists() else None)
        fig.draw_without_rendering()  # ticks are made when first drawn: make them in our style
    return fig


def draw_rows(part: SubFigure, tables: dict[str, pd.DataFrame], summary: dict[str, Any]) -> None:
    """Slopes, Llama-2's medians and what explains the slopes, a row a data set in all three."""
    sets = tables["sets"].sort_values("median", ascending=False)
    order = list(sets["behavior"])
    left, middle, right = part.subplots(1, 3, width_ratios=[2.45, 1.0, 1.2])
    slope_distributions(tables["results"], left, order=order, labels=SHORT)
    left.set_title(f"a  Slopes of each set's inputs, layer {summary['layer']}", pad=18)
    llama_dots(sets, middle, summary["rank_correlation_with_llama2"]["median"])
    middle.set_title("b  Llama-2's medians", pad=18)
    variance_bars(sets, right, order=order)
    right.set_title("c  Why they differ", pad=18)
    right.set_xlabel(f"Share of slopes' variance\n(letter: {sets['option'].mean():.0%} on average)")
    right.set_yticks([])


def llama_dots(sets: pd.DataFrame, ax: Axes, correlation: dict[str, float] | None) -> None:
    """Llama-2's medians, on an axis of their own as they are ten times as large, and its anti-steerable shares."""
    for row, (median, anti) in enumerate(zip(sets["llama2_median"], sets["llama2_anti_steerable"], strict=True)):
        if pd.notna(median):
            ax.plot([0, median], [row, row], color="#C4C4C4", lw=0.8, zorder=1)
            ax.plot([median], [row], marker="o", ms=3.2, color="black", clip_on=False, zorder=4)
        ax.annotate(
            f"{anti:.0%}" if pd.notna(anti) else "–", (1, row), (3, 0), xycoords=ax.get_yaxis_transform(),
            textcoords="offset points", va="center", color=BACK.text if pd.notna(anti) else MUTED, fontsize=6.5,
            annotation_clip=False,
        )  # fmt: skip
    ax.annotate(
        "wrong\nway", (1, 1), (3, 1), xycoords="axes fraction", textcoords="offset points", color=BACK.text,
        fontsize=6.5, va="bottom", linespacing=0.95, annotation_clip=False,
    )  # fmt: skip
    told = ["Median slope (logits)"]
    if correlation:
        value, low, high = (minus(correlation[k]) for k in ("value", "low", "high"))
        told += ["rank correlation ρ with a:", f"{value} ({low} to {high})"]
    ax.set(ylim=(len(sets) - 0.4, -0.75), xlabel="\n".join(told))
    ax.set_xlim(0, 1.08 * max(1.0, sets["llama2_median"].max()))  # of nothing, max is NaN and 1 stays
    ax.axvline(0, color="black", lw=0.7)
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)


def draw_lines(
    part: SubFigure, tables: dict[str, pd.DataFrame], summary: dict[str, Any], shifts: pd.DataFrame | None
) -> None:
    """Curves over alpha and over layers, and shifted prompts where they were run."""
    axes = part.subplots(1, 2 if shifts is None else 3, width_ratios=[1.1, 1.0, 1.25][: 2 if shifts is None else 3])
    sets = tables["sets"].sort_values("steerability", ascending=False)["behavior"].tolist()
    shown = list(dict.fromkeys([sets[0], sets[len(sets) // 2], sets[-1]]))
    propensity_lines(
        tables["curves"],
        axes[0],
        highlight=shown,
        labels={n: fill(SHORT.get(n, readable_name(n)), 18, break_long_words=False) for n in shown},
    )
    axes[0].set_title("d  Propensity over strength")
    layer_lines(tables["layers"], axes[1], chosen=summary["layer"], title="e  Slopes over layers")
    axes[1].set_ylabel("Mean validation slope (logits)")
    if shifts is not None:
        found = summary.get("shifts", {}).get("rank_correlation_with_base", {})
        told = {pair: found.get(" to ".join(pair)) for pair in PAIRS}
        labels = {p: f"{pair_label(p)}, ρ = {minus(e['value'])}" for p, e in told.items() if e}
        shift_scatter(shifts, axes[2], labels=labels, title="f  Shifted prompts")


def minus(value: float) -> str:
    """Two digits, with a minus that is as long as a plus."""
    return f"{value:.2f}".replace("-", "−")


if __name__ == "__main__":
    figure_script(draw, __doc__, RESULTS, "steerability")
