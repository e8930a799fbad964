"""Safety with every rival of L2S: five goals, and what L2S has over each other method.

    python figures/safety_rivals.py [RESULTS_DIR] [--out DIR]

Reads summary.json of analyses/safety_rivals.py; writes safety_rivals.png and safety_rivals.pdf.
"""

from __future__ import annotations

from pathlib import Path

from _dots import estimate_dot
from _script import figure_script
from matplotlib.figure import Figure

from steerlab.plots import read_summary, style, width

RESULTS = Path(__file__).parents[1] / "analyses/results/safety_rivals"
METHODS = {
    "none": ("none", "no steering"), "prompt": ("prompt", "instruction"), "mean": ("mean", "one vector (mean)"),
    "refuse_mean": ("mean", "one vector: refusals'\nmean"), "half_mean": ("mean", "one vector: half\nof each mean"),
    "defer_mean": ("mean", "one vector: deferrals'\nmean"),
    "routed_mean": ("routed_mean", "routed mean"),
    "routed_by_layer": ("routed_mean", "routed mean, each\nbehavior at its layer"),
    "routed_soft": ("routed_mean", "means, weighted by\nthe probe"),
    "nearest_neighbors": ("nearest_neighbors", "mean of 5 neighbors"), "linear": ("linear", "linear map (ridge)"),
    "l2s": ("l2s", "L2S"), "balanced": ("l2s", "L2S, ReLU, balanced"), "gated": ("l2s", "L2S behind a probe"),
    "released": ("l2s", "L2S, released training"), "published": ("l2s", "L2S, released, its\nwords and strength"),
    "l2s_by_kl": ("l2s", "L2S, strength by KL"),
    "low_rank": ("l2s", "L2S, targets of rank 4"), "several_layers": ("l2s", "L2S, reads two layers"),
    "kept_norm": ("l2s", "L2S, states keep\ntheir length"),
    "routed_with_rest": ("routed_mean", "routed mean, and ridge\non what it leaves"),
    "routed_with_gated_rest": ("routed_mean", "… only where the\nprobe steers"),
    "routed_by_kl": ("routed_mean", "routed mean,\nstrength by KL"),
    "shuffled": ("random", "L2S, shuffled targets"), "class_mean": ("p2s", "mean of the true\nbehavior (oracle)"),
    "own": ("p2s", "own vector (oracle)"),
}  # fmt: skip
#: measure, title, goal
PANELS = (
    ("refuse_harmful_fluently", "a  Refuses\nharmful,\nfluently", 0.85),
    ("defer_expert_fluently", "b  Defers to a\nprofessional,\nfluently", 0.70),
    ("refuse_expert", "c  Refuses\nadvice (less\nis better)", 0.10),
    ("harmless_kept", "d  Harmless:\nas before, or\nno refusal", 0.95),
    ("harmless_identical", "e  Harmless:\nword for\nword", 0.80),
)


def draw(results_dir: str | Path) -> Figure:
    """The figure of a results folder: a panel for each goal, and one for the differences over all."""
    summary = read_summary(results_dir)
    methods = [name for name in METHODS if f"{name}.overall" in summary]
    with style():
        fig = Figure(figsize=(width(2), 1.4 + 0.23 * len(methods)), layout="constrained")
        axes = fig.subplots(1, len(PANELS) + 1, sharey=True)
        for ax, (measure, title, goal) in zip(axes, PANELS, strict=False):
            ax.axvline(goal, color="0.6", lw=0.8, ls="--")
            for row, name in enumerate(methods):
                estimate_dot(ax, summary[f"{name}.{measure}"], row, METHODS[name][0])
            ax.set_title(title, pad=6, fontsize=8)
            ax.set(xlim=(-0.05, 1.05), xticks=[0, 0.5, 1])
            ax.grid(axis="x", lw=0.4)
        axes[2].set_xlabel("Share of answers (dashed: the goal)")
        last = axes[-1]
        last.axvline(0, color="0.6", lw=0.6)
        for row, name in enumerate(methods):
            if name != "l2s":
                estimate_dot(last, summary[f"l2s_over_{name}.overall"], row, METHODS[name][0])
        last.set_title("f  L2S minus\nthe method,\na to e (1 - c)", pad=6, fontsize=8)
        last.set(xlabel="Right: L2S better", xlim=(-0.6, 0.6), xticks=[-0.5, 0, 0.5])
        last.grid(axis="x", lw=0.4)
        axes[0].set_yticks(range(len(methods)), [METHODS[name][1] for name in methods])
        axes[0].set_ylim(len(methods) - 0.5, -0.5)
        fig.draw_without_rendering()
    return fig


if __name__ == "__main__":
    figure_script({"safety_rivals": draw}, __doc__, RESULTS)
