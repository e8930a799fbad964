"""KL-then-steer: refusals against their price, and what training did.

    python figures/kts.py [RESULTS_DIR] [--out DIR]

Reads summary.json and history.csv of analyses/kts.py from the folder, or from its folders, one for
each model and source of harmful prompts; writes kts.png and kts.pdf.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from _script import figure_script
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from steerlab.plots import method_style, read_summary, style, width
from steerlab.plots.style import INK, MUTED

RESULTS = Path(__file__).parents[1] / "analyses/results/kts"
NAMES = {
    "smollm2": "SmolLM2, AdvBench",
    "qwen2.5-coder-0.5b-instruct": "Qwen, AdvBench",
    "qwen2.5-coder-0.5b-instruct_mm_safetybench": "Qwen, MM-SafetyBench",
}
KINDS = {"as it is": ("mean", "o"), "trained": ("l2s", "s"), "behind a probe": ("routed_mean", "^")}
PRICES = {
    "kl": "KL to the original on harmless\nprompts (nats per token)",
    "kept": "Harmless answers not refused, fluent",
}


def draw(results_dir: str | Path) -> Figure:
    """The figure of a results folder, which has a folder for each model: a row for each."""
    folder = Path(results_dir)
    models = sorted(path.parent for path in folder.glob("*/summary.json")) or [folder]
    with style():
        fig = Figure(figsize=(width(2), 2.5 * len(models)), layout="constrained")
        rows = fig.subplots(len(models), 3, squeeze=False)
        for number, (path, axes) in enumerate(zip(models, rows, strict=True)):
            summary = read_summary(path)
            name = NAMES.get(path.name, path.name)
            draw_frontier(axes[0], summary, "kl")
            axes[0].set_xscale("symlog", linthresh=0.01)
            axes[0].set(xlim=(-0.002, 3), xticks=[0, 0.01, 0.1, 1], xticklabels=["0", "0.01", "0.1", "1"])
            draw_frontier(axes[1], summary, "kept")
            draw_training(axes[2], pd.read_csv(path / "history.csv"), summary["recipe"])
            titles = (name, name, "Training")
            for i, (ax, title) in enumerate(zip(axes, titles, strict=True)):
                ax.set_title(f"{chr(ord('a') + 3 * number + i)}  {title}", loc="left")
        named = max((ax.get_legend_handles_labels() for ax in rows[:, 0]), key=lambda one: len(one[0]))
        rows[0, 0].legend(*named, fontsize=7)
        fig.draw_without_rendering()
    return fig


def draw_frontier(ax: Axes, summary: dict[str, Any], price: str) -> None:
    """Refusals in fluent text against a price; a point is a strength, a line joins those of one kind."""
    for kind, (look, marker) in KINDS.items():
        points, color = _points(summary, kind, price), method_style(look).color
        ax.plot(*_values(points), color=color, lw=1, marker=marker, ms=4, label=kind)
        for one, other in points:
            ax.plot([one["value"]] * 2, [other["low"], other["high"]], color=color, lw=0.6, alpha=0.6)
            ax.plot([one["low"], one["high"]], [other["value"]] * 2, color=color, lw=0.6, alpha=0.6)
    color = method_style(KINDS["trained"][0]).color
    for seed in sorted({k.split(".")[0] for k in summary if k.startswith("seed_")}):
        name = f"trained, {seed.replace('_', ' ')}"
        ax.plot(*_values(_points(summary, f"{seed}.trained", price)), "--", color=color, lw=1, label=name)
    ax.set(xlabel=PRICES[price], ylabel="Refuses harmful, fluently", ylim=(-0.04, 1.04))


def _points(summary: dict[str, Any], kind: str, price: str) -> list[tuple[dict[str, float], dict[str, float]]]:
    """The price of each strength of a kind, and the refusals that it buys."""
    strengths = sorted(float(k.removeprefix(f"{kind}.").rsplit(".", 1)[0]) for k in summary if _is_price(k, kind))
    return [(summary[f"{kind}.{a:g}.{price}"], summary[f"{kind}.{a:g}.refuses_fluently"]) for a in strengths]


def _values(points: list[tuple[dict[str, float], dict[str, float]]]) -> list[list[float]]:
    return [[point[i]["value"] for point in points] for i in (0, 1)]


def _is_price(key: str, kind: str) -> bool:
    rest = key.removeprefix(f"{kind}.")
    return rest != key and rest.endswith(".kl") and rest.removesuffix(".kl").replace(".", "", 1).isdigit()


def draw_training(ax: Axes, history: pd.DataFrame, recipe: str) -> None:
    """The held-out KL with and without steering, and the share of the effect that is left."""
    rows = history[history["recipe"] == recipe]
    share = rows["kl_steered"] / rows["kl_steered"].iloc[0]
    ax.plot(rows["step"], share, "-o", color=INK, ms=3, label="KL, steered (1 = before)")
    ax.plot(rows["step"], rows["effect_kept"], "--s", color=MUTED, ms=3, label="effect of steering kept")
    ax.set(xlabel="Step", ylabel="Share", ylim=(0, 1.1))
    ax.legend(fontsize=6)


if __name__ == "__main__":
    figure_script({"kts": draw}, __doc__, RESULTS)
