"""Concepts from pairs that change two attributes at once: how well directions follow them, and what adding one does.

    python figures/ssae.py [RESULTS_DIR] [--out DIR]

Reads the summary.json of analyses/ssae.py in each folder of RESULTS_DIR; writes ssae.png and ssae.pdf.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from _dots import estimate_dot
from _script import figure_script
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from steerlab.plots import read_summary, style, width

RESULTS = Path(__file__).parents[1] / "analyses/results/ssae"
FOUND = {
    "random": "random directions", "mean": "one mean difference", "pca": "PCA", "affine": "autoencoder, no bound",
    "ica": "ICA", "dictionary": "dictionary learning", "ssae": "SSAE", "labels": "mean differences*",
}  # fmt: skip
ADDED = {
    "none": "no steering", "pca": "PCA", "affine": "autoencoder, no bound", "ica": "ICA",
    "dictionary": "dictionary learning", "ssae": "SSAE", "ica_moved": "ICA from a lower layer",
    "ssae_moved": "SSAE from a lower layer", "labels": "mean differences*", "clean": "mean of clean pairs*",
}  # fmt: skip
MARKERS = ("o", "^", "s")


def draw(results_dir: str | Path) -> Figure:
    """The figure of a folder of results: three panels, a marker for each model."""
    folders = [path.parent for path in sorted(Path(results_dir).glob("*/summary.json"))] or [Path(results_dir)]
    summaries = [read_summary(folder) for folder in folders]
    with style():
        fig = Figure(figsize=(width(2), 2.6), layout="constrained")
        objects, sentences, added = fig.subplots(1, 3)
        for ax, kind, title in (
            (objects, "objects", "a  Objects: 20 values"),
            (sentences, "sentences", "b  Sentences: 3 values"),
        ):
            draw_dots(ax, summaries, {f"{kind}.{name}.mcc": label for name, label in FOUND.items()})
            ax.set_title(title, loc="left")
        sentences.set_yticklabels([])
        objects.set_xlabel("Correlation with each value's changes\n(test pairs, 95 % intervals)", x=1)
        draw_dots(added, summaries, {f"steered.{name}.after": label for name, label in ADDED.items()})
        added.set_title("c  Adding a value", loc="left")
        added.set_xlabel("Objects: share that goes on\nwith the value (95 % intervals)")
        fig.text(0.005, 0.01, "*: labels known", fontsize=7)
        handles, labels = objects.get_legend_handles_labels()
        fig.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=7)
        fig.draw_without_rendering()
    return fig


def draw_dots(ax: Axes, summaries: list[dict[str, Any]], rows: dict[str, str]) -> None:
    """A row for each measure, a dot with its interval for each model."""
    for number, (summary, marker) in enumerate(zip(summaries, MARKERS, strict=False)):
        shift = 0.16 * (number - (len(summaries) - 1) / 2) * 2
        for row, name in enumerate(rows):
            if name not in summary:  # a model on which it was not measured
                continue
            look = "l2s" if "ssae" in name else "p2s" if name.split(".")[1] in ("labels", "clean") else "none"
            label = summary["provenance"]["model"] if row == 0 else None
            estimate_dot(ax, summary[name], row + shift, look, marker=marker, label=label)
    ax.set(xlim=(-0.02, 1.02), xticks=[0, 0.25, 0.5, 0.75, 1])
    ax.set_yticks(range(len(rows)), list(rows.values()))
    ax.invert_yaxis()
    ax.grid(axis="x", lw=0.4)


if __name__ == "__main__":
    figure_script({"ssae": draw}, __doc__, RESULTS)
