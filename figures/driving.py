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
SHOWN = ("pedestrian added", "car nearer", "light turned")


def draw(results_dir: str | Path) -> Figure:
    """How often the edited fact changes, and others: by editing, by steering; and what probes read at each site."""
    summary = read_summary(Path(results_dir))
    with style():
        fig = Figure(figsize=(width(2), 5.6), layout="constrained")
        grid = fig.add_gridspec(2, 5, height_ratios=(3, 2))
        edited = fig.add_subplot(grid[0, :2])
        draw_edited(edited, summary)
        steered = fig.add_subplot(grid[0, 2:], sharey=edited)
        draw_steered(steered, summary)
        draw_probes(fig.add_subplot(grid[1, :]), pd.DataFrame(summary["probes"]))
        handles = {
            label: h for ax in (edited, steered) for h, label in zip(*ax.get_legend_handles_labels(), strict=True)
        }
        fig.legend(list(handles.values()), list(handles), loc="outside upper center", ncols=5, fontsize=7)
        fig.draw_without_rendering()
    return fig


def draw_edited(ax: Axes, summary: dict[str, Any]) -> None:
    """Captions of edited scenes: the fact, and other facts."""
    for k, (name, label, color) in enumerate(
        (("moved", "edited fact", DARK), ("others", "other facts (b: line)", LIGHT))
    ):
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
        ax.plot(places, others, ls="none", marker="_", color="black", ms=5)
    ax.set(title="b  The scene stays, states are steered")
    ax.tick_params(labelleft=False)
    _name_edits(ax)


def _offset(k: int, n: int) -> float:
    return (k - (n - 1) / 2) * 0.8 / n


def _bars(ax: Axes, found: list[dict[str, float]], k: int, n: int, label: str, color: Any) -> None:
    values, low, high = ([one[name] for one in found] for name in ("value", "low", "high"))
    places = np.arange(len(found)) + _offset(k, n)
    ax.bar(places, values, 0.8 / n, color=color, label=label)
    ax.vlines(places, low, high, color="black", lw=0.6)


def _name_edits(ax: Axes) -> None:
    ax.set_xticks(range(len(EDITS)), EDITS, fontsize=7, rotation=25, ha="right")


def draw_probes(ax: Axes, probes: pd.DataFrame) -> None:
    """The error of each probe, as a share of the error without looking."""
    table = probes.assign(share=probes["error"] / probes["without_looking"])
    grid = table.pivot(index="target", columns="site", values="share")[list(dict.fromkeys(probes["site"]))]
    sns.heatmap(grid, ax=ax, annot=True, fmt=".2f", cmap="viridis_r", vmin=0, vmax=1, annot_kws={"size": 6},
                cbar_kws={"label": "error / error without looking"})  # fmt: skip
    ax.tick_params(axis="y", labelsize=7)
    ax.set(xlabel="", ylabel="", title="c  Linear probes on test scenes, site by site")
    ax.set_xticks(ax.get_xticks(), list(grid.columns), rotation=35, ha="right", fontsize=7)


def draw_scenes(results_dir: str | Path) -> Figure:
    """Three scenes from above, as they are and edited, with what the model says of both, and when it is steered."""
    scenes = json.loads((Path(results_dir) / "scenes.json").read_text())["scenes"]
    chosen = [scene for scene in scenes if scene["edit"] in SHOWN]
    with style():
        fig = Figure(figsize=(width(2), 2.6 * len(chosen)), layout="constrained")
        for row, (axes, scene) in enumerate(
            zip(fig.subplots(len(chosen), 3, width_ratios=(2, 2, 3)), chosen, strict=True)
        ):
            for number, version in enumerate(("before", "after")):
                draw_scene(axes[number], scene, number)
                letter, name = "abcdef"[2 * row + number], scene["edit"] if number else "as it is"
                axes[number].set_title(f"{letter}  {name}", loc="left", fontsize=8)
                axes[number].set_xlabel(f"says: {short(scene[version])}".replace("s, c", "s,\nc"), fontsize=6.5)
            axes[0].set_ylabel("meters ahead", fontsize=7)
            _write(axes[2], scene)
            if row == 0:
                handles, labels = axes[0].get_legend_handles_labels()
        fig.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=7)
        fig.draw_without_rendering()
    return fig


def draw_scene(ax: Axes, scene: dict[str, Any], number: int) -> None:
    """The objects of one version, the traffic light, and a ring around what the edit has put there; ahead is up."""
    frame, route = pd.DataFrame(scene["objects"]), np.array(scene["route"])
    ax.plot(-route[:, 1], route[:, 0], color="0.85", lw=4, zorder=0, label="route")
    before, after = (frame[frame["version"] == version] for version in ("before", "after"))
    for kind, (marker, look) in {"vehicles": ("s", "mean"), "pedestrians": ("o", "l2s")}.items():
        rows = (before, after)[number]
        rows, color = rows[rows["kind"] == kind], method_style(look).color
        for seen, face in ((True, color), (False, "none")):
            some = rows[rows["in_view"] == seen]
            label = f"{kind}, {'counted' if seen else 'not counted'}"
            ax.scatter(
                -some["y"], some["x"], s=16, marker=marker, facecolors=face, edgecolors=color, lw=0.8, label=label
            )
        other = (after, before)[number]
        found = rows.merge(other.loc[other["kind"] == kind, ["x", "y"]], how="left", on=["x", "y"], indicator=True)
        new = found[found["_merge"] == "left_only"]
        ring = "edited" if kind == "vehicles" else None
        ax.scatter(-new["y"], new["x"], s=110, facecolors="none", edgecolors="black", lw=1.2, zorder=3, label=ring)
    light = scene["lights"][number]
    if light is not None and light["x"] < 40:
        ax.annotate(
            light["state"], (-light["y"], light["x"]), (8, 0), textcoords="offset points", fontsize=6.5, va="center"
        )
        ax.scatter([-light["y"]], [light["x"]], marker="D", s=22, color="black", zorder=2, label="traffic light")
    ax.scatter([0], [0], marker="^", s=40, color="0.3", label="the car itself")
    ax.set(xlim=(-20, 20), ylim=(-3, 42), aspect="equal")
    ax.tick_params(labelsize=6)


def _write(ax: Axes, scene: dict[str, Any]) -> None:
    """What is true of both versions, and what is said of the scene as it is when it is steered."""
    lines = [("true", scene["true"][0]), ("true after the edit", scene["true"][1])]
    lines += [(f"as it is, steered: {name}", said) for name, said in scene["steered"].items()]
    text = "\n".join(f"{name}\n    {short(said)}" for name, said in lines)
    ax.text(0, 0.95, text, va="top", fontsize=7, linespacing=1.4, transform=ax.transAxes)
    ax.axis("off")


def short(caption: str) -> str:
    """A caption as a few numbers."""
    counts = re.search(r"observing (\S+) cars and (\S+) ped", caption)
    near, light = re.search(r"Distance: (\d+)m", caption), re.search(r"it is ([a-z+]+)\.", caption)
    found = [f"{counts[1]} cars, {counts[2]} pedestrians" if counts else "?"]
    found += [f"car at {near[1]} m"] if near else []
    return ", ".join([*found, light[1] if light else "no light"])


if __name__ == "__main__":
    figure_script({"driving": draw, "driving_scenes": draw_scenes}, __doc__, RESULTS)
