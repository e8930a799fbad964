"""The slopes of a mean vector on every data set of the model-written evaluations, and what explains them.

    python figures/steerability.py [RESULTS_DIR] [--out DIR]

Reads results.csv, sets.csv, curves.csv, layers.csv, summary.json and, if shifted prompts were run, shifts.csv of
analyses/steerability.py; writes steerability.png and .pdf.
"""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import fill
from typing import Any

import pandas as pd
import seaborn as sns
from _answer_position import variance_bars
from _script import figure_script
from _shifts import PAIRS, pair_label, shift_scatter
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from steerlab.errors import DataError
from steerlab.plots import propensity_lines, slope_distributions, style, width
from steerlab.plots.slopes import write_shares
from steerlab.plots.style import CONTEXT, DASHES, INK, MUTED, label_ends, readable_name

RESULTS = Path(__file__).parent.parent / "analyses" / "results" / "steerability"
FILES = ("results.csv", "sets.csv", "curves.csv", "layers.csv", "summary.json")
ROW, AROUND, BELOW = 0.15, 1.0, 2.35  # inches: a row, above and below all rows, the lower panels
SHORT_NAMES = {
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
    """The figure of a results folder."""
    folder = Path(results_dir)
    missing = [name for name in FILES if not (folder / name).exists()]
    if missing:
        raise DataError(f"{folder} lacks {missing}: give the results folder of analyses/steerability.py")
    tables = {name[:-4]: pd.read_csv(folder / name) for name in FILES if name.endswith(".csv")}
    summary = json.loads((folder / "summary.json").read_text())
    shifts = folder / "shifts.csv"
    rows = ROW * len(tables["sets"]) + AROUND
    with style():
        fig = Figure(figsize=(width(2), rows + BELOW), layout="constrained")
        upper, lower = fig.subfigures(2, 1, height_ratios=[rows, BELOW], squeeze=False).flat
        draw_rows(upper, tables, summary)
        draw_lines(lower, tables, summary, pd.read_csv(shifts) if shifts.exists() else None)
        fig.draw_without_rendering()  # ticks are made when first drawn: make them in this style
    return fig


def draw_rows(part: SubFigure, tables: dict[str, pd.DataFrame], summary: dict[str, Any]) -> None:
    """Slopes, the medians of Llama-2 and the explained variance, with the same data set in each row."""
    sets = tables["sets"].sort_values("median", ascending=False)
    order = list(sets["behavior"])
    left, middle, right = part.subplots(1, 3, width_ratios=[2.45, 1.0, 1.2])
    slope_distributions(tables["results"], left, order=order, labels=SHORT_NAMES)
    left.set_title(f"a  Slopes of the test examples, layer {summary['layer']}", pad=18)
    draw_llama(sets, middle, summary["rank_correlation_with_llama2"]["median"])
    middle.set_title("b  Llama-2's medians", pad=18)
    variance_bars(sets, right, order=order)
    right.set_title("c  Explained variance", pad=18)
    right.set_xlabel(f"Share of slopes' variance\n(letter: {sets['option'].mean():.0%} on average)")


def draw_llama(sets: pd.DataFrame, ax: Axes, correlation: dict[str, float] | None) -> None:
    """Llama-2's medians, which are about a hundred times as large and need another axis, and its shares moved away."""
    known = sets["llama2_median"].notna().to_numpy()
    rows = pd.Series(range(len(sets)), index=sets.index)[known]
    ax.hlines(rows, 0, sets["llama2_median"][known], color=CONTEXT, lw=0.8, zorder=1)
    ax.plot(sets["llama2_median"][known], rows, ls="", marker="o", ms=3.2, color="black", clip_on=False, zorder=4)
    write_shares(ax, sets["llama2_anti_steerable"])
    label = ["Median slope (logits)"]
    if correlation:
        value, low, high = (two_digits(correlation[k]) for k in ("value", "low", "high"))
        label += ["rank correlation ρ with a:", f"{value} ({low} to {high})"]
    ax.set(ylim=(len(sets) - 0.4, -0.75), xlabel="\n".join(label), yticks=[])
    ax.set_xlim(0, 1.08 * max(1.0, sets["llama2_median"].max()))  # the maximum of NaN is NaN and leaves 1
    ax.axvline(0, color="black", lw=0.7)
    ax.spines["left"].set_visible(False)


def draw_lines(
    part: SubFigure, tables: dict[str, pd.DataFrame], summary: dict[str, Any], shifts: pd.DataFrame | None
) -> None:
    """Propensity over alpha for three data sets, slopes over layers, and shifted prompts if they were run."""
    axes = part.subplots(1, 2 if shifts is None else 3, width_ratios=[1.1, 1.0, 1.25][: 2 if shifts is None else 3])
    sets = tables["sets"].sort_values("steerability", ascending=False)["behavior"].tolist()
    shown = list(dict.fromkeys([sets[0], sets[len(sets) // 2], sets[-1]]))
    labels = {n: fill(SHORT_NAMES.get(n, readable_name(n)), 18, break_long_words=False) for n in shown}
    propensity_lines(tables["curves"], axes[0], highlight=shown, labels=labels)
    axes[0].set_title("d  Propensity over strength")
    draw_layers(tables["layers"], axes[1], summary["layer"])
    axes[1].set_title("e  Slopes over layers")
    if shifts is not None:
        correlations = summary.get("shifts", {}).get("rank_correlation_with_base", {})
        known = {pair: correlations.get(" to ".join(pair)) for pair in PAIRS}
        labels = {pair: f"{pair_label(pair)}, ρ = {two_digits(c['value'])}" for pair, c in known.items() if c}
        shift_scatter(shifts, axes[2], labels=labels)
        axes[2].set_title("f  Shifted prompts")


def draw_layers(layers: pd.DataFrame, ax: Axes, chosen: int) -> None:
    """The mean slope of each data set over layers in gray, their mean in black, and the chosen layer."""
    ax.axhline(0, color=MUTED, lw=0.6, ls=DASHES[1], zorder=0)
    line = {"x": "layer", "y": "steerability", "ax": ax}
    sns.lineplot(layers, units="behavior", estimator=None, color=CONTEXT, lw=0.5, zorder=1, **line)
    sns.lineplot(layers, errorbar=None, color=INK, lw=1.6, zorder=3, **line)
    ax.axvline(chosen, color=MUTED, lw=0.7, ls=DASHES[2], zorder=2)
    ax.annotate(
        f"chosen: {chosen}", (chosen, 1), (-3, 0), xycoords=ax.get_xaxis_transform(), textcoords="offset points",
        ha="right", va="top", color=MUTED, fontsize=6.5,
    )  # fmt: skip
    ax.set(xlabel="Layer", ylabel="Mean validation slope (logits)")
    last = layers[layers["layer"] == layers["layer"].max()]
    label_ends(ax, [(last["layer"].max(), last["steerability"].mean(), "mean", INK)])


def two_digits(value: float) -> str:
    """Two decimals, with a typographic minus."""
    return f"{value:.2f}".replace("-", "−")


if __name__ == "__main__":
    figure_script({"steerability": draw}, __doc__, RESULTS)
