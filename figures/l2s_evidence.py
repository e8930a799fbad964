"""Answers in the language that a clue implies, and in English without a clue: a column for each kind of clue.

    python figures/l2s_evidence.py [RESULTS_DIR] [--out DIR]

Reads summary.json of analyses/l2s_evidence.py; writes l2s_evidence.png and l2s_evidence.pdf.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from _dots import estimate_dot
from _script import figure_script
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from steerlab.plots import read_summary, style, width

RESULTS = Path(__file__).parents[1] / "analyses/results/l2s_evidence"
METHODS = {
    "none": ("none", "no steering"), "instruction": ("prompt", "instruction"), "mean": ("mean", "one vector (mean)"),
    "routed_mean": ("routed_mean", "routed mean"),
    "nearest_neighbors": ("nearest_neighbors", "mean of 5 neighbors"), "linear": ("linear", "linear map (ridge)"),
    "l2s": ("l2s", "L2S"), "shuffled": ("random", "L2S, shuffled targets"),
    "gated_mean": ("mean", "one vector behind\na probe of clues"),
    "routed_mean_and_zero": ("routed_mean", "routed mean, zero targets"),
    "linear_and_zero": ("linear", "ridge, zero targets"), "l2s_and_zero": ("l2s", "L2S, zero targets"),
    "language_mean": ("p2s", "mean of the true\nlanguage (oracle)"), "own": ("p2s", "own vector (oracle)"),
    "named_language": ("prompt", "instruction that\nnames it (oracle)"),
}  # fmt: skip
SEEN = {"seen": ("o", "languages seen in training, other clues"), "unseen": ("^", "languages not seen in training")}
# of questions without a clue
KEPT = {"plain": ("s", "questions without a clue, alone"), "unrelated": ("D", "… and with an unrelated sentence")}
PANELS = {"city": "a  A city", "name": "b  The language's name", "message": "c  A message in it"}


def draw(results_dir: str | Path) -> Figure:
    """The figure of a results folder, a column for each clue: all answers, readable ones, answers without a clue."""
    [summary] = read_summary(results_dir)["expert"].values()  # of one model
    clues = [clue for clue in PANELS if f"{clue}.seen.none.right" in summary]
    read = any(key.endswith(".right_readably") for key in summary)
    gated = (
        ("right_readably", "Share in the language and readable")
        if read
        else ("right_fluently", "Share in the language and fluent")
    )
    measures = {"right": "Share of answers in the language", gated[0]: gated[1]}
    with style():
        fig = Figure(figsize=(width(2), 10), layout="constrained")
        axes = fig.subplots(len(measures) + 1, len(clues), sharex=True, sharey=True, squeeze=False)
        for (measure, label), of_measure in zip(measures.items(), axes, strict=False):
            for clue, ax in zip(clues, of_measure, strict=True):
                draw_shares(ax, summary, clue, measure, SEEN)
                counts = [summary[f"{clue}.{seen}.none.right"]["n"] for seen in SEEN]
                ax.set_title(f"{PANELS[clue]}: {counts[0]} and {counts[1]} languages" if measure == "right" else "")
                ax.set_xlabel(label)
        for clue, ax in zip(clues, axes[-1], strict=True):
            draw_shares(ax, summary, clue, "right", KEPT)
            ax.set_xlabel("Share of answers in English, without a clue")
        axes[0, 0].invert_yaxis()
        shown: dict[str, Any] = {}  # the first of each kind
        for ax in (axes[0, 0], axes[-1, 0]):
            for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
                shown.setdefault(label, handle)
        fig.legend([*shown.values()], [*shown], loc="outside lower center", ncols=2, fontsize=7)
        fig.draw_without_rendering()
    return fig


def draw_shares(ax: Axes, summary: dict[str, Any], clue: str, measure: str, kinds: dict[str, tuple[str, str]]) -> None:
    """The share of answers under each method, for both kinds of questions, with 95 % intervals."""
    for row, (name, (look, _)) in enumerate(METHODS.items()):
        for (kind, (marker, label)), shift in zip(kinds.items(), (-0.17, 0.17), strict=True):
            if estimate := summary.get(f"{clue}.{kind}.{name}.{measure}"):  # oracles need a clue
                estimate_dot(ax, estimate, row + shift, look, marker=marker, label=label)
    ax.set(xlim=(-0.04, 1.04), xticks=[0, 0.5, 1])
    ax.set_yticks(range(len(METHODS)), [label for _, label in METHODS.values()])
    ax.grid(axis="x", lw=0.4)


if __name__ == "__main__":
    figure_script({"l2s_evidence": draw}, __doc__, RESULTS)
