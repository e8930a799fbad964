"""True answers about images to which a model says what is usual: a panel for each type of question.

    python figures/l2s_images.py [RESULTS_DIR] [--out DIR]

Reads summary.json of analyses/l2s_images.py; writes l2s_images.png and l2s_images.pdf.
"""

from __future__ import annotations

from pathlib import Path

from _dots import estimate_dot
from _script import figure_script
from matplotlib.figure import Figure

from steerlab.plots import read_summary, style, width

RESULTS = Path(__file__).parents[1] / "analyses/results/l2s_images"
METHODS = {
    "none": ("none", "no steering"), "one_vector": ("mean", "best single vector\nfor this type"),
    "routed_mean": ("routed_mean", "routed mean"),
    "nearest_neighbors": ("nearest_neighbors", "mean of the nearest\nneighbors"),
    "linear": ("linear", "linear map (ridge)"),
    "l2s": ("l2s", "L2S"), "gated": ("l2s", "L2S behind a probe"), "paper": ("l2s", "L2S, the paper's training"),
    "released_pope": ("l2s", "L2S, training\nreleased for POPE"), "shuffled": ("random", "L2S, shuffled targets"),
    "answer_mean": ("p2s", "mean of the true\nanswer (oracle)"),
    "own": ("p2s", "own vector (oracle)"),
}  # fmt: skip
PANELS = {
    "existence": "a  Is there a kite?", "color": "b  What color?", "number": "c  How many?",
    "neighbor": "d  What is next to it?",
}  # fmt: skip


def draw(results_dir: str | Path) -> Figure:
    """The figure of a results folder."""
    summary = read_summary(results_dir)
    methods = {name: look for name, look in METHODS.items() if f"existence.{name}.right" in summary}
    with style():
        fig = Figure(figsize=(width(2), 0.9 + 0.25 * len(methods)), layout="constrained")
        axes = fig.subplots(1, len(PANELS), sharex=True, sharey=True)
        for (kind, title), ax in zip(PANELS.items(), axes, strict=True):
            if f"{kind}.probe.right" in summary:
                ax.axvline(summary[f"{kind}.probe.right"]["value"], color="0.5", ls=":", lw=1.0)
            for row, (name, (look, _)) in enumerate(methods.items()):
                estimate_dot(ax, summary[f"{kind}.{name}.right"], row, look)
            ax.set(title=title, xlim=(-0.04, 1.04), xticks=[0, 0.5, 1])
            ax.grid(axis="x", lw=0.4)
        axes[0].set_yticks(range(len(methods)), [label for _, label in methods.values()])
        axes[0].invert_yaxis()
        label = "Share of true answers about new images, with 95 % intervals over images"
        if any(key.endswith(".probe.right") for key in summary):
            label += "; dotted: accuracy of the probe"
        fig.supxlabel(label, fontsize=7)
        fig.draw_without_rendering()
    return fig


if __name__ == "__main__":
    figure_script({"l2s_images": draw}, __doc__, RESULTS)
