"""Draw the pictures of docs/concepts.md from SmolLM2's own states, into docs/images: a minute on two cores.

python docs/site/pictures.py
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import steerlab
from steerlab import Example, MeanDifference, Site
from steerlab.analysis.calibration import calibrate_strength
from steerlab.analysis.geometry import map_2d
from steerlab.methods import Context, LinearProbe
from steerlab.models.model import Model
from steerlab.models.positions import positions_table
from steerlab.plots import map_scatter, style, width
from steerlab.plots.style import INK, METHODS, MORE, MUTED, behavior_styles, label_ends

IMAGES = Path(__file__).parents[1] / "images"
POSITIONS = ("prompt", "user", "last_user", "header", "last", "generated", "last+generated", "all")


def main() -> None:
    """Draw all pictures."""
    model = steerlab.load("smollm2")
    drawings: dict[str, Callable[[Model], Figure]] = {
        "position": position, "site": site, "contrast": contrast, "dose": dose, "gate": gate,
    }  # fmt: skip
    for name, draw in drawings.items():
        with style():
            draw(model).savefig(IMAGES / f"concept_{name}.png", dpi=150)


def some(behavior: str, split: str, n: int) -> list[Example]:
    """The first examples of a behavior and split of the built-in data set."""
    return [e for e in steerlab.data.demo_set() if (e.behavior, e.split) == (behavior, split)][:n]


def position(model: Model) -> Figure:
    """Which tokens of a prompt and its answer each name means."""
    table = positions_table(model, "How do I bake bread?", answer="With patience.").iloc[-17:]
    covered = np.array([table[[*name.split("+")]].any(axis=1) for name in POSITIONS])
    fig, ax = plt.subplots(figsize=(width(2), 2.3))
    ax.pcolormesh(np.where(covered, 1.0, 0.08), cmap="Blues", vmin=0, vmax=1.4, edgecolors="white", lw=1.5)
    ax.set_xticks(np.arange(len(table)) + 0.5, [repr(t)[1:-1] for t in table["string"]], rotation=45, ha="right")
    ax.set_yticks(np.arange(len(POSITIONS)) + 0.5, [f'"{name}"' for name in POSITIONS])
    ax.invert_yaxis()
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.axvline(covered[0].sum(), color=INK, lw=0.8)
    ax.text(covered[0].sum(), -0.15, "the answer begins", ha="center", fontsize=6.5)
    return fig


def site(model: Model) -> Figure:
    """The points of a block, and how long the states are there."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(width(2), 2.4), width_ratios=(1.25, 1))
    _draw_block(left)
    points = ("block_out", "attn_out", "mlp_out")
    layers = range(model.n_layers)
    sites = [Site(layer, point) for point in points for layer in layers]
    acts = steerlab.capture(model, [e.prompt for e in some("answer", "train", 16)], layers=sites, progress=False)
    ends = []
    for point, color in zip(points, (INK, MORE, METHODS["mean"].color), strict=True):
        norms = [float(acts.at(Site(layer, point)).norm(dim=-1).mean()) for layer in layers]
        right.semilogy(layers, norms, color=color)
        ends.append((layers[-1], norms[-1], f'"{point}"', color))
    label_ends(right, ends)
    right.set(xlabel="Layer", ylabel="Mean norm at the last token", title="Norm of the states")
    return fig


def _draw_block(ax: Axes) -> None:
    ax.set(xlim=(0, 10), ylim=(0, 5), title="The points of one block")
    ax.axis("off")
    arrow = {"arrowstyle": "-|>", "color": INK, "lw": 1}
    ax.annotate("", (9.6, 1), (0.2, 1), arrowprops=arrow)
    for x, name, point in ((2, "attention", '"attn_out"'), (6, "MLP", '"mlp_out"')):
        ax.annotate("", (x + 0.6, 2.6), (x - 0.6, 1), arrowprops={**arrow, "connectionstyle": "arc3,rad=-.2"})
        ax.text(x + 0.7, 2.9, name, ha="center", bbox={"boxstyle": "round", "fc": "#EEF3F8", "ec": MUTED})
        ax.annotate("", (x + 2.2, 1), (x + 0.8, 2.6), arrowprops={**arrow, "connectionstyle": "arc3,rad=-.2"})
        ax.text(x + 2.15, 2.1, point, color=MORE, fontsize=7)
        ax.text(x + 2.2, 0.95, "+", ha="center", va="center", bbox={"boxstyle": "circle,pad=.15", "fc": "w", "ec": INK})
    ax.text(2.7, 3.8, '"heads", before its projection', color=MORE, ha="center", fontsize=7)
    ax.text(0.2, 0.4, '"block_in"', color=MORE, fontsize=7)
    ax.text(9.7, 0.4, '"block_out"', color=MORE, ha="right", fontsize=7)


def contrast(model: Model) -> Figure:
    """States under wanted and unwanted answers, and the mean of their differences."""
    acts = steerlab.capture(model, some("refuse", "train", 60), layers=[16], progress=False)
    states = {
        label: acts.select(side=side).at(16) for label, side in (("wanted", "positive"), ("unwanted", "negative"))
    }
    frame = map_2d(torch.cat(list(states.values())), [label for label, rows in states.items() for _ in rows])
    fig, ax = plt.subplots(figsize=(width(1), 2.6))
    map_scatter(frame, ax)
    middle = frame.groupby("label")[["x", "y"]].mean()
    ax.annotate(
        "", middle.loc["wanted"], middle.loc["unwanted"], arrowprops={"arrowstyle": "-|>", "lw": 2, "color": INK}
    )
    ax.set_title("60 contrasts, and their mean")
    return fig


def dose(model: Model) -> Figure:
    """How far a vector moves the next token's distribution, by strength."""
    vector = MeanDifference(16).fit(model, some("refuse", "train", 60))
    found = calibrate_strength(model, some("refuse", "validation", 8), vector, kl=2.0, max_new_tokens=30)
    curve = found.curve.sort_values("alpha")
    fig, ax = plt.subplots(figsize=(width(1), 2.4))
    ax.plot(curve["alpha"], curve["kl"], color=METHODS["mean"].color, marker="o")
    ax.axhline(2.0, color=MUTED, lw=0.8, ls="--")
    ax.axvline(found.alpha, color=INK, lw=0.8)
    ax.annotate(f"α = {found.alpha:.2f}", (found.alpha, 0.2), (4, 0), textcoords="offset points")
    ax.annotate("2 nats per token", (curve["alpha"].min(), 2.0), (0, 3), textcoords="offset points", color=MUTED)
    ax.set(ylim=(0, None), xlabel="Strength α", ylabel="KL to the unsteered model (nats)")
    ax.set_title("KL at each strength of one vector")
    return fig


def gate(model: Model) -> Figure:
    """Scores of a probe for three behaviors, and a threshold at one false alarm in ten."""
    kinds = ("refuse", "defer", "answer")
    train, seen = (
        steerlab.capture(model, [e for k in kinds for e in some(k, s, 60)], layers=[12], progress=False)
        for s in ("train", "test")
    )
    probe = LinearProbe(12, positive=["refuse"]).fit(train)
    clean = steerlab.capture(model, some("answer", "validation", 30), layers=[12], progress=False)
    probe.calibrate(clean, fpr=0.1)
    fig, ax = plt.subplots(figsize=(width(1), 2.2))
    for kind, look in behavior_styles(kinds).items():
        scores = probe.score(Context.of(seen.select(behavior=kind, side="prompt"))).logit()
        ax.hist(scores.tolist(), bins=18, color=look.color, alpha=0.75, label=look.label)
    threshold = float(torch.tensor(probe.threshold_).logit())
    ax.axvline(threshold, color=INK, lw=1)
    ax.set_ylim(top=1.15 * ax.get_ylim()[1])
    ax.annotate("open →", (threshold, ax.get_ylim()[1]), (3, -8), textcoords="offset points")
    ax.legend(loc="upper left")
    ax.set(xlabel="Score of the probe (log-odds)", ylabel="Test inputs", title="A gate opens above its threshold")
    return fig


if __name__ == "__main__":
    main()
