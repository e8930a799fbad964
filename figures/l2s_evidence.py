"""Answers in the language that a clue implies: a panel for each kind of clue, seen and unseen languages.

    python figures/l2s_evidence.py [RESULTS_DIR] [--out DIR]

Reads summary.json of analyses/l2s_evidence.py; writes l2s_evidence.png and l2s_evidence.pdf.
"""

from __future__ import annotations

from pathlib import Path

from _script import figure_script
from matplotlib.figure import Figure

from steerlab.plots import method_style, read_summary, style, width
from steerlab.plots.style import MUTED

RESULTS = Path(__file__).parents[1] / "analyses/results/l2s_evidence"
METHODS = {
    "none": ("none", "no steering"), "instruction": ("prompt", "instruction"), "mean": ("mean", "one vector (mean)"),
    "routed_mean": ("routed_mean", "mean of the language\na probe reads"),
    "nearest_neighbors": ("nearest_neighbors", "mean of 5 neighbors"), "linear": ("linear", "linear map (ridge)"),
    "l2s": ("l2s", "L2S"), "language_mean": ("p2s", "mean of the true\nlanguage (oracle)"),
    "own": ("p2s", "own vector (oracle)"), "named_language": ("prompt", "instruction that\nnames it (oracle)"),
}  # fmt: skip
PANELS = {"city": "a  A city", "name": "b  The language's name", "message": "c  A message in it"}


def draw(results_dir: str | Path) -> Figure:
    """The figure of a results folder."""
    summary = read_summary(results_dir)
    panels = {clue: title for clue, title in PANELS.items() if f"{clue}.seen.none.right" in summary}
    read = any(key.endswith(".right_readably") for key in summary)
    measure, word = ("right_readably", "readable") if read else ("right_fluently", "fluent")
    with style():
        fig = Figure(figsize=(width(2), 3.1), layout="constrained")
        for ax, (clue, title) in zip(
            fig.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels.items(), strict=True
        ):
            for row, (name, (look, _)) in enumerate(METHODS.items()):
                color = method_style(look).color
                for seen, shift, marker in (("seen", -0.17, "o"), ("unseen", 0.17, "^")):
                    found = summary[f"{clue}.{seen}.{name}.{measure}"]
                    ax.errorbar(
                        found["value"], row + shift, fmt=marker, ms=4, color=color, lw=1.0,
                        xerr=[[found["value"] - found["low"]], [found["high"] - found["value"]]],
                    )  # fmt: skip
            counts = [summary[f"{clue}.{seen}.none.right"]["n"] for seen in ("seen", "unseen")]
            ax.set(title=f"{title}  ({counts[0]} | {counts[1]} languages)", xlim=(-0.04, 1.04), xticks=[0, 0.5, 1])
            ax.set_yticks(range(len(METHODS)), [label for _, label in METHODS.values()])
            ax.grid(axis="x", lw=0.4)
        ax.invert_yaxis()
        for marker, label in (
            ("o", "languages seen in training, other clues"),
            ("^", "languages not seen in training"),
        ):
            ax.plot([], [], marker, ms=4, color=MUTED, label=label)
        handles, labels = ax.get_legend_handles_labels()
        fig.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=7)
        fig.supxlabel(
            f"Share of {word} answers in the language of the clue (mean over languages, 95 % intervals)", fontsize=7
        )
        fig.draw_without_rendering()
    return fig


if __name__ == "__main__":
    figure_script({"l2s_evidence": draw}, __doc__, RESULTS)
