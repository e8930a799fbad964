"""Driving scenes from above, what the model says of them before and after an edit or a vector, and how often.

    python figures/driving.py [RESULTS_DIR] [--out DIR]

Reads summary.json and scenes.json of analyses/driving.py; writes driving.png, driving.pdf, driving_scenes.png and
driving_scenes.pdf.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from _script import figure_script
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from steerlab.plots import method_style, read_summary, style, width

RESULTS = Path(__file__).parents[1] / "analyses/results/driving"
EDITS = ("pedestrian added", "pedestrian removed", "car removed", "car nearer", "light turned")
METHODS = {
    "mean": "mean", "mean by class": "routed_mean", "L2S": "l2s", "L2S, shuffled within classes": "nearest_neighbors",
    "random": "random", "own vectors": "p2s",
}  # fmt: skip
LIGHT, DARK = "0.75", "0.35"


def draw(results_dir: str | Path) -> Figure:
    """How often the edited fact changes, alone: by editing, by steering; and what probes read at each site."""
    summary = read_summary(Path(results_dir))
    with style():
        fig = Figure(figsize=(width(2), 5.2), layout="constrained")
        grid = fig.add_gridspec(2, 3)
        edited = fig.add_subplot(grid[0, 0])
        draw_edited(edited, summary)
        draw_steered(fig.add_subplot(grid[0, 1:], sharey=edited), summary)
        draw_probes(fig.add_subplot(grid[1, :]), pd.DataFrame(summary["probes"]))
        fig.draw_without_rendering()
    return fig


def draw_edited(ax: Axes, summary: dict[str, Any]) -> None:
    """Captions of edited scenes: the fact, and other facts."""
    for k, (name, label, color) in enumerate((("moved", "edited fact", DARK), ("others", "other facts", LIGHT))):
        _bars(ax, [summary[f"edited.{edit}.{name}"] for edit in EDITS], k, 2, label, color)
    ax.set(ylabel="Share that changes", title="a  The scene is edited", ylim=(0, 1.02))
    _name_edits(ax)


def draw_steered(ax: Axes, summary: dict[str, Any]) -> None:
    """Captions of the scene as it is, steered: the fact, with the other facts below the line."""
    for k, (method, look) in enumerate(METHODS.items()):
        found = [summary[f"steered.{edit}.{method}.moved"] for edit in EDITS]
        _bars(ax, found, k, len(METHODS), method, method_style(look).color)
        others = [summary[f"steered.{edit}.{method}.others"]["value"] for edit in EDITS]
        places = np.arange(len(EDITS)) + _offset(k, len(METHODS))
        ax.plot(places, others, ls="none", marker="_", color="black", ms=5, label="other facts" if k == 0 else None)
    ax.set(title="b  The scene is as it was, its states are steered")
    ax.legend(fontsize=6, ncols=3, loc="upper left")
    _name_edits(ax)


def _offset(k: int, n: int) -> float:
    return (k - (n - 1) / 2) * 0.8 / n


def _bars(ax: Axes, found: list[dict[str, float]], k: int, n: int, label: str, color: Any) -> None:
    values, low, high = ([one[name] for one in found] for name in ("value", "low", "high"))
    places = np.arange(len(found)) + _offset(k, n)
    ax.bar(places, values, 0.8 / n, color=color, label=label)
    ax.vlines(places, low, high, color="black", lw=0.6)


def _name_edits(ax: Axes) -> None:
    ax.set_xticks(range(len(EDITS)), [edit.replace(" ", "\n") for edit in EDITS], fontsize=7)
    if len(ax.get_legend_handles_labels()[1]) == 2:
        ax.legend(fontsize=6, loc="upper right")


def draw_probes(ax: Axes, probes: pd.DataFrame) -> None:
    """The error of each probe, as a share of the error without looking."""
    table = probes.assign(share=probes["error"] / probes["without_looking"])
    grid = table.pivot(index="target", columns="site", values="share")[list(dict.fromkeys(probes["site"]))]
    sns.heatmap(grid, ax=ax, annot=True, fmt=".2f", cmap="viridis_r", vmin=0, vmax=1, annot_kws={"size": 6},
                cbar_kws={"label": "error / error without looking"})  # fmt: skip
    ax.set(xlabel="", ylabel="", title="c  Linear probes on test scenes, site by site")
    ax.set_xticks(ax.get_xticks(), list(grid.columns), rotation=35, ha="right", fontsize=7)


def draw_scenes(results_dir: str | Path) -> Figure:
    """A scene for each edit, from above, with what the model says."""
    scenes = json.loads((Path(results_dir) / "scenes.json").read_text())["scenes"]
    with style():
        fig = Figure(figsize=(width(2), 5.0), layout="constrained")
        axes = fig.subplots(2, len(scenes), height_ratios=(3, 2))
        for i, scene in enumerate(scenes):
            draw_scene(axes[0, i], scene)
            _write(axes[1, i], scene)
        axes[0, 0].set_ylabel("meters ahead")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        fig.legend(handles, labels, loc="outside lower center", ncols=6, fontsize=6)
        fig.draw_without_rendering()
    return fig


def draw_scene(ax: Axes, scene: dict[str, Any]) -> None:
    """The objects before the edit, sized by attention, and rings where the edit changed something; ahead is up."""
    frame = pd.DataFrame(scene["objects"])
    route = np.array(scene["route"])
    ax.plot(-route[:, 1], route[:, 0], color="0.8", lw=3, zorder=0, label="route")
    before, after = (frame[frame["version"] == v] for v in ("before", "after"))
    for kind, marker, color in (
        ("vehicles", "s", method_style("mean").color),
        ("pedestrians", "o", method_style("l2s").color),
    ):
        rows = before[before["kind"] == kind]
        for seen, face in ((True, color), (False, "none")):
            some = rows[rows["in_view"] == seen]
            label = f"{kind}, {'counted' if seen else 'not counted'}"
            ax.scatter(
                -some["y"], some["x"], s=14, marker=marker, facecolors=face, edgecolors=color, lw=0.7, label=label
            )
        where = ["x", "y"]
        new = after[after["kind"] == kind].merge(rows[where], how="left", on=where, indicator=True)
        gone = rows.merge(after.loc[after["kind"] == kind, where], how="left", on=where, indicator=True)
        for changed, mark in ((new, "+"), (gone, "x")):
            some = changed[changed["_merge"] == "left_only"]
            ax.scatter(-some["y"], some["x"], s=60, marker=mark, color="black", lw=1.2, zorder=3)
    ax.scatter([0], [0], marker="^", s=50, color="black", label="the car itself")
    ax.set(xlim=(-25, 25), ylim=(-5, 45), title=scene["edit"], aspect="equal")
    ax.tick_params(labelsize=6)


def _write(ax: Axes, scene: dict[str, Any]) -> None:
    """What is true and what is said, in short, before and after."""
    lines = [
        ("true", scene["true"][0]), ("says", scene["before"]), ("edited, true", scene["true"][1]),
        ("says", scene["after"]), *((f"{name}, not edited", said) for name, said in scene["steered"].items()),
    ]  # fmt: skip
    text = "\n".join(f"{name}: {short(said)}" for name, said in lines)
    ax.text(0, 1, text, va="top", fontsize=5.5, transform=ax.transAxes)
    ax.axis("off")


def short(caption: str) -> str:
    """A caption as a few numbers."""
    counts = re.search(r"observing (\S+) cars and (\S+) ped", caption)
    near, light = re.search(r"Distance: (\d+)m", caption), re.search(r"it is ([a-z+]+)\.", caption)
    found = [f"{counts[1]} cars, {counts[2]} ped." if counts else "?"]
    found += [f"car {near[1]} m"] if near else []
    return ", ".join([*found, light[1] if light else "no light"])


if __name__ == "__main__":
    figure_script({"driving": draw, "driving_scenes": draw_scenes}, __doc__, RESULTS)
