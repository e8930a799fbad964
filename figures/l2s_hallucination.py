"""Learn-to-Steer on hallucinated objects: what every method reaches, what the states know, and some pictures.

    python figures/l2s_hallucination.py [RESULTS_DIR] [--out DIR]

Reads summary.json, probes.csv and gallery/ of analyses/l2s_hallucination.py; writes l2s_hallucination.png and .pdf,
and, where there is a gallery, l2s_hallucination_gallery.png and .pdf.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from _gallery import GalleryItem, gallery
from _script import figure_script
from matplotlib.figure import Figure
from PIL import Image

from steerlab.plots import method_bars, probe_gap_lines, read_summary, save, style, summary_frame, width

RESULTS = Path(__file__).parent.parent / "analyses" / "results" / "l2s_hallucination"
SPLITS = ("random", "popular", "adversarial")


def draw(results_dir: str | Path) -> Figure:
    """The figure of one results folder; the gallery beside it is saved on the way."""
    folder = Path(results_dir)
    found = {k: v for k, v in read_summary(folder).items() if k.partition(".")[2] in SPLITS and isinstance(v, dict)}
    summary = {k: v for k, v in found.items() if "minus" not in k}  # shares, not differences
    frame = summary_frame(summary).replace({"method": {"base": "none"}})
    probes = folder / "probes.csv"
    with style():
        fig = Figure(figsize=(width(2), 3.4), layout="constrained")
        axes = fig.subplots(1, 2 if probes.exists() else 1, squeeze=False)[0]
        method_bars(frame, SPLITS, axes[0], title="a  True answers (test)")
        axes[0].set_xlabel("Share of questions")
        if probes.exists():
            probe_gap_lines(pd.read_csv(probes), axes[1], title="b  Known (blue) and said (gray)")
        fig.draw_without_rendering()
    return fig


def draw_gallery(results_dir: str | Path, columns: int = 4) -> Figure | None:
    """Some pictures with question and answers, or None where the study kept none."""
    table = Path(results_dir) / "gallery" / "gallery.csv"
    if not table.exists():
        return None
    rows = pd.read_csv(table, dtype=str).itertuples()
    shown = [
        GalleryItem(Image.open(table.parent / str(r.file)), str(r.question), str(r.true), str(r.before), str(r.after))
        for r in rows
    ]
    return gallery(shown, columns=columns, title="L2S says what the state knows")


def draw_both(results_dir: Path) -> Figure:
    """Both figures; the gallery is saved beside the results."""
    second = draw_gallery(results_dir)
    if second is not None:
        save(second, results_dir / "l2s_hallucination_gallery")
    return draw(results_dir)


if __name__ == "__main__":
    figure_script(draw_both, __doc__, RESULTS, "l2s_hallucination")
