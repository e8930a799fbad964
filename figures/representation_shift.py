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
TILES, SIDE, GRID, WORDS = 3, 64, 8, 2
PREDICTED = {
    "none": ("nothing added", "none"), "other_concept": ("another concept's shift", "random"),
    "mean": ("one shift for all", "mean"), "concepts": ("the concept's shift", "l2s"),
    "answer": ("mean shift of the same answer", "routed_mean"), "ridge": ("ridge regression", "linear"),
}  # fmt: skip
TITLES = {"colors": "a  Trained to say red for purple: eight concepts, largest shift first",
          "emotion": "b  Trained to say that it is happy"}  # fmt: skip
# where things stand in a line, in heights of a line
TILED = {"before": 3.4, "arrow": 5.5, "predicted": 7.1, "after": 9.2, "tiles_after": 11.0}
PLAIN = {"before": 0.1, "arrow": 5.5, "predicted": 7.1, "after": 11.2}
HEADERS = {
    "before": "first model",
    "arrow": "its shift",
    "predicted": "first model\nwith the shift",
    "after": "trained\nmodel",
}
NUMBERS = {"shifts\nagree": 15.4, "distance\nrecovered": 16.9, "answers\nchanged": 18.3}
ARROW: dict[str, Any] = {"arrowstyle": "-|>", "color": MUTED, "shrinkA": 0, "shrinkB": 0}
CLEAR = 0.02  # the share of its activation that a concept loses: below it no region is marked
METHODS = {
    "coarse": ("coarse, all inputs", "mean"), "coarse_kept": ("coarse, others kept*", "confst"),
    "gated": ("coarse, behind a probe", "gated_mean"),
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
        fig = Figure(figsize=(width(2), 7.9), layout="constrained")
        parts: Any = fig.subfigures(3, 1, height_ratios=[3.9, 2.1, 1.9])
        for part, pair, title in zip(parts, TITLES, TITLES.values(), strict=False):
            ax = part.subplots()
            draw_concepts(ax, concepts[concepts["pair"] == pair])
            ax.set_title(title, loc="left")
            if pair == "colors":
                draw_tiles(ax, concepts[concepts["pair"] == pair], sheet, regions)
        lower, last = parts[2].subplots(1, 2)
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


def draw_concepts(ax: Axes, concepts: pd.DataFrame) -> None:
    """A line for each concept, the longest shift first: words before, an arrow, words after, and numbers."""
    tiles = concepts["pair"].iloc[0] == "colors"
    columns, join = (TILED, "\n") if tiles else (PLAIN, ", ")
    ax.set_axis_off()
    ordered, longest = concepts.sort_values("norm", ascending=False), concepts["norm"].max()
    for line, row in enumerate(ordered.itertuples()):
        for name in ("before", "predicted", "after"):
            words = str(getattr(row, f"words_{name}")).split()[:WORDS]
            changed = words[:1] != row.words_before.split()[:1]
            ax.text(columns[name], line, join.join(words), ha="left", va="center", fontsize=7,
                    color="#005A8E" if changed else INK, fontweight="bold" if changed else "normal")  # fmt: skip
        end = columns["arrow"] + 0.3 + 0.9 * row.norm / longest
        arrow = ARROW | {"lw": 0.5 + 1.5 * row.norm / longest}
        ax.annotate("", (end, line), (columns["arrow"], line), arrowprops=arrow)
        for name, number in zip(NUMBERS, (row.consistency_others, row.recovered, row.changed), strict=True):
            ax.text(NUMBERS[name], line, f"{number:.2f}".replace("0.", "."), ha="right", va="center", fontsize=7)
    header: dict[str, Any] = {"y": -0.6 if tiles else -0.7, "fontsize": 6.5, "color": MUTED, "va": "bottom"}
    for name, text in HEADERS.items():
        ax.text(columns[name], s=text, ha="left", **header)
    for name, x in NUMBERS.items():
        ax.text(x, s=name, ha="right", **header)
    ax.set(xlim=(0, 18.4), ylim=(len(concepts) - 0.45, -1.4), aspect="equal" if tiles else "auto")


def draw_tiles(ax: Axes, concepts: pd.DataFrame, sheet: Any, regions: pd.DataFrame) -> None:
    """The images that activate each concept most, in both models: the region that it needs in a box, the thing that
    the question is about in a dashed one.
    """
    order = concepts.reset_index(drop=True).sort_values("norm", ascending=False).index
    for row in regions.itertuples():
        after = row.model == "after"
        top, left = SIDE * row.line, SIDE * (row.tile + TILES * after)
        x, y = (TILED["tiles_after"] if after else 0) + 1.06 * row.tile, order.get_loc(row.line) - 0.48
        ax.imshow(
            sheet[top : top + SIDE, left : left + SIDE], extent=(x, x + 0.96, y + 0.96, y), interpolation="nearest"
        )
        edge, down, side = (0.96 * int(one) / SIDE for one in row.thing.split())
        ax.add_patch(Rectangle((x + edge, y + down), side, side, fill=False, lw=0.6, ls=(0, (2, 1.5)), edgecolor=INK))
        if row.drop > CLEAR:
            cell = 0.96 / GRID
            corner = (x + row.column * cell, y + row.row * cell)
            ax.add_patch(Rectangle(corner, cell, cell, fill=False, lw=1.1, edgecolor="black"))
    key = "dashed: the thing asked about; box: the region that the concept needs"
    ax.text(0, len(concepts) - 0.3, key, fontsize=6.5, color=MUTED, va="top")


def draw_answers(results_dir: str | Path) -> Figure:
    """For each task and method: the answers that move as wanted, and the others that change."""
    summary = read_summary(Path(results_dir))
    with style():
        fig = Figure(figsize=(width(2), 2.5), layout="constrained")
        axes = fig.subplots(1, len(TASKS), sharey=True)
        for ax, (task, title) in zip(axes, TASKS.items(), strict=True):
            for number, (method, (label, look)) in enumerate(METHODS.items()):
                for row, measure in enumerate(MEASURES):
                    if f"{task}.{method}.{measure}" not in summary:  # no strength leaves the others alone
                        continue
                    height = row + 0.13 * (number - 2.5)
                    named = label if row == 0 and ax is axes[0] else None
                    estimate_dot(ax, summary[f"{task}.{method}.{measure}"], height, look, label=named)
            ax.set(xlim=(-0.03, 1.03), xticks=[0, 0.5, 1], ylim=(len(MEASURES) - 0.5, -0.5))
            ax.set_title(title, loc="left")
            ax.set_xlabel("Share of answers")
        axes[0].set_yticks(range(len(MEASURES)), list(MEASURES.values()))
        handles, labels = axes[0].get_legend_handles_labels()
        fig.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=7)
        fig.text(0.005, 0.01, "*: other images", fontsize=7)
        fig.draw_without_rendering()
    return fig


if __name__ == "__main__":
    figures = {"representation_shift": draw, "representation_shift_answers": draw_answers}
    figure_script(figures, __doc__, RESULTS)
