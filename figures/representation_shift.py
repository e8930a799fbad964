"""Concepts before and after a model is trained further, and answers steered from one concept to another.

    python figures/representation_shift.py [RESULTS_DIR] [--out DIR]

Reads the results of analyses/representation_shift.py; writes representation_shift and representation_shift_answers, as
.png and .pdf.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.image as mpimg
import pandas as pd
from _dots import estimate_dot
from _script import figure_script
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from steerlab.plots import read_summary, style, width
from steerlab.plots.style import INK, MUTED

RESULTS = Path(__file__).parents[1] / "analyses/results/representation_shift"
ROWS, TILES, SIDE, GRID, WORDS = 6, 3, 64, 8, 2
PREDICTED = {
    "none": ("nothing added", "none"), "other_concept": ("another concept's shift", "random"),
    "mean": ("one shift for all", "mean"), "concepts": ("the concept's shift", "l2s"),
    "answer": ("mean shift of the same answer", "routed_mean"), "ridge": ("ridge regression", "linear"),
}  # fmt: skip
ARROW: dict[str, Any] = {"arrowstyle": "-|>", "color": MUTED, "shrinkA": 0, "shrinkB": 0}
CLEAR = 0.02  # the share of its activation that a concept loses: below it no region is marked
METHODS = {
    "coarse": ("coarse, all inputs", "mean"), "gated": ("coarse, behind a probe", "gated_mean"),
    "one_concept": ("fine, one concept", "adasteer"), "concepts": ("fine, every concept", "l2s"),
    "random": ("random vector", "none"),
}  # fmt: skip
TASKS = {"existence": "a  yes to no", "number": "b  one to three", "color": "c  red to blue"}
MEASURES = {"moved": "old answers that\nbecome the new one", "changed_same": "other answers of\nits kind changed",
            "changed_other": "other kinds of\nanswers changed"}  # fmt: skip


def draw(results_dir: str | Path) -> Figure:
    """The concepts of both pairs, and how well their shift predicts what the trained model says."""
    folder = Path(results_dir)
    summary, concepts = read_summary(folder), pd.read_csv(folder / "concepts.csv")
    regions, sheet = pd.read_csv(folder / "regions.csv"), mpimg.imread(folder / "images.png")
    with style():
        fig = Figure(figsize=(width(2), 4.9), layout="constrained")
        parts: Any = fig.subfigures(2, 1, height_ratios=[1.75, 1])
        left, right = parts[0].subplots(1, 2, width_ratios=[1.42, 1])
        lower, last = parts[1].subplots(1, 2)
        largest = concepts.groupby("pair", sort=False).head(ROWS)
        draw_concepts(left, largest[largest["pair"] == "colors"], sheet, regions)
        draw_concepts(right, largest[largest["pair"] == "emotion"])
        left.set_title("a  Trained to say red for purple (6 of 8 concepts)", loc="left")
        right.set_title("b  Trained to say it is happy (6 of 8)", loc="left")
        for ax, pair, letter in ((lower, "colors", "c"), (last, "emotion", "d")):
            for row, (name, (_, look)) in enumerate(PREDICTED.items()):
                estimate_dot(ax, summary[f"{pair}.{name}.nats_left"], row, look)
            ax.set(ylim=(len(PREDICTED) - 0.5, -0.5), xscale="log")
            ax.set_yticks(range(len(PREDICTED)), [label for label, _ in PREDICTED.values()])
            ax.set_title(f"{letter}  {'Colors' if pair == 'colors' else 'Emotions'}, a shift added", loc="left")
            ax.set_xlabel("KL from the trained model's next token,\nnats (log scale, 95 % intervals)")
        last.set_yticklabels([])
        fig.draw_without_rendering()
    return fig


def draw_concepts(ax: Axes, concepts: pd.DataFrame, sheet: Any = None, regions: pd.DataFrame | None = None) -> None:
    """A line for each concept: images with the region that it needs, words before, an arrow, words after."""
    first = TILES * 1.08 + 0.2 if sheet is not None else 0.0
    ax.set_axis_off()
    longest = concepts["norm"].max()
    for line, row in enumerate(concepts.itertuples()):
        if sheet is not None and regions is not None:
            draw_tiles(ax, line, sheet, regions.reset_index().query(f"concept == {row.concept}"))
        look: dict[str, Any] = {"x": first, "y": line, "ha": "left", "va": "center", "fontsize": 7}
        ax.text(**look, s="\n".join(row.words_before.split()[:WORDS]), color=INK)
        length = 0.2 + 0.8 * row.norm / longest
        arrow = ARROW | {"lw": 0.5 + 1.5 * row.norm / longest}
        ax.annotate("", (first + 2.4 + length, line), (first + 2.4, line), arrowprops=arrow)
        after = row.words_predicted.split()[:WORDS]
        other = after[:1] != row.words_before.split()[:1]
        ax.text(**look | {"x": first + 3.6}, s="\n".join(after), color="#005A8E" if other else INK,
                fontweight="bold" if other else "normal")  # fmt: skip
        ax.text(**look | {"x": first + 6.4, "ha": "right"}, s=f"{row.changed:.0%}", color=MUTED)
    header: dict[str, Any] = {"y": -0.72, "fontsize": 6.5, "color": MUTED, "va": "bottom"}
    ax.text(x=first, s="before", **header)
    ax.text(x=first + 3.6, s="after its shift", **header)
    ax.text(x=first + 6.4, s="answers\nchanged", ha="right", **header)
    ax.set(xlim=(0, first + 6.5), ylim=(len(concepts) - 0.45, -1.25), aspect="equal")


def draw_tiles(ax: Axes, line: int, sheet: Any, regions: pd.DataFrame) -> None:
    """The images that activate a concept most, each with the region that it needs in a box."""
    for place, row in enumerate(regions.itertuples()):
        top, left = SIDE * (row.index // TILES), SIDE * (row.index % TILES)
        x, y = place * 1.08, line - 0.48
        ax.imshow(
            sheet[top : top + SIDE, left : left + SIDE], extent=(x, x + 0.96, y + 0.96, y), interpolation="nearest"
        )
        if row.drop > CLEAR:
            cell = 0.96 / GRID
            corner = (x + row.column * cell, y + row.row * cell)
            ax.add_patch(Rectangle(corner, cell, cell, fill=False, lw=0.9, edgecolor="black"))


def draw_answers(results_dir: str | Path) -> Figure:
    """For each task and method: the answers that move as wanted, and the others that change."""
    summary = read_summary(Path(results_dir))
    with style():
        fig = Figure(figsize=(width(2), 2.3), layout="constrained")
        axes = fig.subplots(1, len(TASKS), sharey=True)
        for ax, (task, title) in zip(axes, TASKS.items(), strict=True):
            for number, (method, (label, look)) in enumerate(METHODS.items()):
                for row, measure in enumerate(MEASURES):
                    height = row + 0.15 * (number - 2)
                    named = label if row == 0 and ax is axes[0] else None
                    estimate_dot(ax, summary[f"{task}.{method}.{measure}"], height, look, label=named)
            ax.set(xlim=(-0.03, 1.03), xticks=[0, 0.5, 1], ylim=(len(MEASURES) - 0.5, -0.5))
            ax.set_title(title, loc="left")
            ax.set_xlabel("Share of answers")
        axes[0].set_yticks(range(len(MEASURES)), list(MEASURES.values()))
        handles, labels = axes[0].get_legend_handles_labels()
        fig.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=7)
        fig.draw_without_rendering()
    return fig


if __name__ == "__main__":
    figures = {"representation_shift": draw, "representation_shift_answers": draw_answers}
    figure_script(figures, __doc__, RESULTS)
