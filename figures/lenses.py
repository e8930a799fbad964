"""What can be read off each layer, and where a copied word comes from.

    python figures/lenses.py [RESULTS_DIR] [--out DIR]

Reads results.csv, copies.csv and copies_lens.csv of analyses/lenses.py; writes lenses.png and lenses.pdf.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import seaborn as sns
from _script import figure_script
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from steerlab.plots import patch_heatmap, style, width

RESULTS = Path(__file__).parents[1] / "analyses/results/lenses"


def draw(results_dir: str | Path) -> Figure:
    """The figure of a results folder."""
    read, copies, lens = (
        pd.read_csv(Path(results_dir) / f"{name}.csv") for name in ("results", "copies", "copies_lens")
    )
    of_copies = read["family"] == "copied words"
    with style():
        fig = Figure(figsize=(width(2), 2.7), layout="constrained")
        axes = fig.subplots(1, 3, width_ratios=[1.0, 1.2, 1.0])
        draw_facts(axes[0], read[~of_copies])
        draw_copies(axes[1], copies)
        draw_both(axes[2], copies, lens, read[of_copies])
        fig.draw_without_rendering()
    return fig


def draw_facts(ax: Axes, facts: pd.DataFrame) -> None:
    """The share of each family's answers that is the most probable token at a layer."""
    never = facts.groupby("family")["accessible"].transform("max") == 0  # these lines lie on one another
    facts = facts.assign(family=facts["family"].where(~never, facts["family"] + " (always 0)"))
    sns.lineplot(facts, x="layer", y="accessible", hue="family", palette="tab10", lw=1.2, ax=ax)
    ax.set(title="a  Facts read off a layer", xlabel="Layer", ylabel="Share of right tokens", ylim=(-0.03, 1.03))
    ax.legend(title=None, fontsize=6, loc="upper left")


def draw_copies(ax: Axes, copies: pd.DataFrame) -> None:
    """The share restored by each state, averaged over pairs of words; the copied word has a name of its own."""
    names = copies.groupby("column")["token"].first()
    names[copies.loc[copies["token"] != copies["clean_token"], "column"]] = " WORD"
    frame = copies.groupby(["layer", "column"], sort=False)["restored"].mean().reset_index()
    frame["token"] = frame["clean_token"] = frame["column"].map(names)
    patch_heatmap(frame.assign(example_id="mean", head=-1), ax=ax)
    ax.set_title(f"b  A word to be copied, {copies['example_id'].nunique()} pairs")


def draw_both(ax: Axes, copies: pd.DataFrame, lens: pd.DataFrame, read: pd.DataFrame) -> None:
    """At the last token: what patching restores of the two words' difference, what the lens sees of it, and the share
    of words that are the most probable token there.
    """
    last = copies[copies["column"] == copies["column"].max()]
    options = {"errorbar": ("ci", 95), "seed": 0, "lw": 1.2, "ax": ax}
    sns.lineplot(last, x="layer", y="restored", color="#0072B2", label="patched", **options)
    sns.lineplot(lens, x="layer", y="share", color="#009E73", label="lens, two words", **options)
    ax.plot(read["layer"], read["accessible"], color="#D55E00", ls="--", lw=1.2, label="lens, most probable")
    ax.set(title="c  The last token", xlabel="Layer", ylabel="Share (1: as at the end)", ylim=(-0.05, 1.7))
    ax.legend(title=None, fontsize=6.5, loc="upper left")


if __name__ == "__main__":
    figure_script({"lenses": draw}, __doc__, RESULTS)
