"""Learn-to-Steer on hallucinated objects: true answers of every method, what a probe reads, and example images.

    python figures/l2s_hallucination.py [RESULTS_DIR] [--out DIR]

Reads summary.json, probes.csv and gallery/ of analyses/l2s_hallucination.py; writes l2s_hallucination.png and .pdf,
and, if there is a gallery, l2s_hallucination_gallery.png and .pdf.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
from _gallery import GalleryItem, gallery
from _probe_gap import probe_gap_lines
from _script import figure_script
from matplotlib.figure import Figure
from PIL import Image

from steerlab.plots import method_bars, read_summary, style, summary_frame, width

RESULTS = Path(__file__).parent.parent / "results" / "l2s_hallucination"
SPLITS = ("random", "popular", "adversarial")


def draw(results_dir: str | Path) -> Figure:
    """The main figure of a results folder."""
    folder = Path(results_dir)
    estimates = summary_frame(read_summary(folder))
    estimates = estimates[estimates["metric"].isin(SPLITS)]
    probes = folder / "probes.csv"
    with style():
        fig = Figure(figsize=(width(2), 3.4), layout="constrained")
        axes = fig.subplots(1, 2 if probes.exists() else 1, squeeze=False)[0]
        method_bars(estimates.replace({"method": {"base": "none"}}), SPLITS, axes[0], title="a  True answers (test)")
        axes[0].set_xlabel("Share of questions")
        if probes.exists():
            probe_gap_lines(pd.read_csv(probes), axes[1])
            axes[1].set_title("b  Linear probe, and the model's answers")
            axes[1].set_ylabel("Accuracy (test)")
        fig.draw_without_rendering()
    return fig


def draw_gallery(results_dir: str | Path, columns: int = 4) -> Figure | None:
    """Images with question and answers, or None if the study kept none."""
    table = Path(results_dir) / "gallery" / "gallery.csv"
    if not table.exists():
        return None
    items = [
        GalleryItem(Image.open(table.parent / row["file"]), row["question"], row["true"], row["before"], row["after"])
        for _, row in pd.read_csv(table, dtype=str, keep_default_na=False).iterrows()
    ]
    return gallery(items, columns=columns)


if __name__ == "__main__":
    figures: dict[str, Callable[[Path], Figure | None]] = {
        "l2s_hallucination": draw,
        "l2s_hallucination_gallery": draw_gallery,
    }
    figure_script(figures, __doc__, RESULTS)
