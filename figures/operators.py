"""Refusals with a direction ablated and added, beside random directions and an instruction.

    python figures/operators.py [RESULTS_DIR] [--out DIR]

Reads summary.json of analyses/operators.py; writes operators.png and operators.pdf.
"""

from __future__ import annotations

from pathlib import Path

from _script import figure_script
from matplotlib.figure import Figure

from steerlab.plots import read_summary, style

RESULTS = Path(__file__).parents[1] / "analyses/results/operators/smollm2"
METHODS = {
    "none": "unsteered", "ablate": "direction ablated", "ablate random": "random direction ablated",
    "add": "direction added", "add random": "random direction added", "add strong": "direction added, stronger",
    "add strong random": "random direction, stronger", "instruction": "instruction",
}  # fmt: skip
PANELS = {
    "harmful.refuses": "Refuses harmful", "harmful.refuses_fluently": "… and is fluent",
    "harmless.refuses": "Refuses harmless",
}  # fmt: skip


def draw(results_dir: str | Path) -> Figure:
    """The figure of a results folder: a panel for each measure, a row for each way."""
    summary = read_summary(results_dir)
    with style():
        methods = {name: label for name, label in METHODS.items() if f"{name}.harmful.refuses" in summary}
        if summary["chosen"]["ablate"]["operator"] == "pair":
            methods |= {"ablate": "two directions ablated", "ablate random": "two random directions ablated"}
        fig = Figure(figsize=(6.2, 0.8 + 0.2 * len(methods)), layout="constrained")
        for ax, (measure, title) in zip(fig.subplots(1, len(PANELS), sharey=True), PANELS.items(), strict=True):
            for row, name in enumerate(methods):
                found = summary[f"{name}.{measure}"]
                errors = [[found["value"] - found["low"]], [found["high"] - found["value"]]]
                color = {"ablate": "C0", "add": "C1", "add strong": "C1"}.get(name, "0.6")
                ax.barh(row, found["value"], xerr=errors, color=color, error_kw={"lw": 0.8})
                ax.text(min(found["high"], 1) + 0.03, row, f"{found['value']:.2f}", va="center", fontsize=6)
            ax.set(title=title, xlim=(0, 1.2), xticks=[0, 0.5, 1], yticks=range(len(methods)))
            ax.set_yticklabels(methods.values())
        ax.invert_yaxis()
        harmful, harmless = (summary[f"none.{part}.refuses"]["n"] for part in ("harmful", "harmless"))
        model = summary["provenance"]["model"]
        fig.supxlabel(
            f"Share of {harmful} harmful and {harmless} harmless test prompts ({model}), with 95 % intervals",
            fontsize=7,
        )
        fig.draw_without_rendering()
    return fig


if __name__ == "__main__":
    figure_script({"operators": draw}, __doc__, RESULTS)
