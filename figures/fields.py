"""Methods at equal dose: letters moved, layers chosen by W2S, and refusals over the dose.

    python figures/fields.py [RESULTS_DIR] [--out DIR]

Reads summary.json and layers.csv of analyses/fields.py; writes fields.png and fields.pdf.
"""

from __future__ import annotations

from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from _dots import estimate_dot
from _script import figure_script
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from steerlab.plots import method_style, read_summary, style, width
from steerlab.plots.style import MUTED, readable_name

RESULTS = Path(__file__).parents[1] / "analyses/results/fields"
ORDER = ("mean", "gated_mean", "l2s", "field", "spherical", "w2s", "random")
CHOICES = {
    "w2s": (method_style("w2s").label, method_style("w2s").color), "oracle": ("each prompt's best", "#009E73"),
    "shuffled": ("shuffled", "#8C8C8C"),
}  # fmt: skip


def draw(results_dir: str | Path) -> Figure:
    """The figure of a results folder."""
    folder = Path(results_dir)
    summary = read_summary(folder)
    with style():
        fig = Figure(figsize=(width(2), 4.6), layout="constrained")
        axes = fig.subplots(2, 2, width_ratios=[1, 1.15])
        draw_choices(axes[0, 0], summary)
        draw_layers(axes[0, 1], pd.read_csv(folder / "layers.csv"))
        for ax, inputs, measure, title in (
            (axes[1, 0], "harmful", "refuses_fluently", "c  Refuses harmful prompts, fluently"),
            (axes[1, 1], "harmless", "refuses", "d  Refuses harmless prompts"),
        ):
            draw_refusals(ax, summary, inputs, measure)
            ax.set_title(title)
        handles, labels = axes[1, 0].get_legend_handles_labels()
        fig.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=6.5)
        fig.draw_without_rendering()
    return fig


def draw_choices(ax: Axes, summary: dict[str, Any]) -> None:
    """How far the logit difference of the letters moves at the same dose, with 95 % intervals."""
    names = [name for name in ORDER if f"choices.{name}.effect" in summary]
    for row, name in enumerate(names):
        estimate_dot(ax, summary[f"choices.{name}.effect"], row, name, lw=1.2)
    ax.axvline(0, color=MUTED, lw=0.6, zorder=0)
    ax.invert_yaxis()
    ax.set_yticks(
        range(len(names)),
        [f"{method_style(name).label} ({summary[f'choices.{name}.effect']['n']} sets)" for name in names],
    )
    ax.set(title="a  Choices at equal dose", xlabel="Gain of the wanted letter's logit over the other's")


def draw_layers(ax: Axes, frame: pd.DataFrame) -> None:
    """For each set, the mean slope at the layers chosen for each prompt, minus that at the one fixed layer."""
    sets = [shorten(readable_name(name), 28, placeholder=" …") for name in frame["behavior"].unique()]
    gains = frame[["behavior"]].assign(**{label: frame[k] - frame["fixed"] for k, (label, _) in CHOICES.items()})
    long = gains.melt("behavior", var_name="layer of each prompt", value_name="gain")
    sns.pointplot(
        long, x="gain", y="behavior", hue="layer of each prompt", ax=ax, linestyle="none", dodge=0.4, seed=0,
        errorbar=("ci", 95), palette={label: color for label, color in CHOICES.values()}, markersize=3,
        err_kws={"linewidth": 0.9},
    )  # fmt: skip
    ax.axvline(0, color=MUTED, lw=0.6, zorder=0)
    ax.set_yticks(range(len(sets)), sets, fontsize=6.5)
    ax.set(title="b  A layer for each prompt", xlabel="Slope minus that of the layer best in training", ylabel="")
    ax.set_xlim(right=ax.get_xlim()[0] + 1.45 * (ax.get_xlim()[1] - ax.get_xlim()[0]))
    ax.legend(title=None, fontsize=6, loc="lower right")


def draw_refusals(ax: Axes, summary: dict[str, Any], inputs: str, measure: str) -> None:
    """The share of answers over the dose, a line for each method, with the summary's 95 % intervals."""

    def shares_of(name: str) -> dict[float, dict[str, float]]:
        keys = {key: key.removeprefix(f"refusal.{name}.") for key in summary if key.endswith(f".{inputs}.{measure}")}
        found = {float(rest.split(f".{inputs}")[0]): summary[key] for key, rest in keys.items() if rest != key}
        return dict(sorted(found.items()))

    by_name = {name: shares for name in ORDER if (shares := shares_of(name))}
    for number, (name, shares) in enumerate(by_name.items()):
        look, beside = method_style(name), 1.025 ** (number - len(by_name) // 2)
        value, low, high = (np.array([one[key] for one in shares.values()]) for key in ("value", "low", "high"))
        ax.errorbar(
            np.array(list(shares)) * beside, value, yerr=[value - low, high - value], color=look.color, marker="o",
            ms=3, lw=1.2, label=look.label, capsize=1.5,
        )  # fmt: skip
    ax.axhline(shares_of("none")[0.0]["value"], color=MUTED, lw=0.8, ls=":", label="no steering")
    doses = sorted({dose for shares in by_name.values() for dose in shares})
    ax.set(xscale="log", ylim=(-0.03, 1.03), xlabel="Dose on harmful prompts (nats per token)", ylabel="Share")
    ax.set_xticks(doses, [f"{dose:g}" for dose in doses])
    ax.minorticks_off()


if __name__ == "__main__":
    figure_script({"fields": draw}, __doc__, RESULTS)
