"""Cosines of steering vectors between inputs, over layers and between behaviors, and a map of the contexts.

    python figures/vector_similarity.py [RESULTS_DIR] [--out DIR]

Reads geometry.csv, cosines.csv, maps.csv and cka.csv of analyses/vector_similarity.py; writes vector_similarity.png
and .pdf.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from _script import figure_script
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from steerlab.errors import DataError
from steerlab.plots import cosine_heatmap, geometry_lines, layer_heatmap, map_scatter, style, width
from steerlab.plots.style import BEHAVIORS

RESULTS = Path(__file__).parent.parent / "analyses" / "results" / "vector_similarity"
TABLES = ("geometry", "cosines", "maps", "cka")
HEATMAP_LAYERS = 6


def draw(results_dir: str | Path) -> Figure:
    """The figure of a results folder."""
    folder = Path(results_dir)
    missing = [f"{name}.csv" for name in TABLES if not (folder / f"{name}.csv").exists()]
    if missing:
        raise DataError(f"{folder} lacks {missing}: give the results folder of analyses/vector_similarity.py")
    tables = {name: pd.read_csv(folder / f"{name}.csv") for name in TABLES}
    contexts = tables["maps"].query("map == 'contexts'")
    contexts.attrs["explained"] = tuple(contexts[["explained_x", "explained_y"]].iloc[0])
    with style():
        fig = Figure(figsize=(width(2), 5.6), layout="constrained")
        axes = fig.subplots(2, 2, width_ratios=[1.15, 1.0]).ravel()
        geometry_lines(tables["geometry"], axes[0])
        axes[0].set_title("a  Cosines of the inputs' P2S vectors")
        cosine_heatmap(cosine_table(tables["cosines"]), axes[1])
        color_behaviors(axes[1])
        axes[1].set_title("b  Cosines of mean vectors, by layer")
        map_scatter(contexts, axes[2])
        axes[2].set_title(f"c  Contexts at layer {int(contexts['layer'].iloc[0])}, principal components")
        layer_heatmap(tables["cka"].pivot(index="layer_a", columns="layer_b", values="cka"), axes[3])
        axes[3].set_title("d  Contexts, CKA between layers")
        fig.draw_without_rendering()  # ticks are made when first drawn: make them in this style
    return fig


def cosine_table(cosines: pd.DataFrame) -> pd.DataFrame:
    """The long table as a square one, at a few layers spaced evenly."""
    layers = np.unique(cosines[["layer_a", "layer_b"]])
    shown = layers[np.unique(np.linspace(0, len(layers) - 1, HEATMAP_LAYERS).round().astype(int))]
    names = [f"{behavior} {layer}" for behavior in dict.fromkeys(cosines["behavior_a"]) for layer in shown]
    square = pd.DataFrame(np.eye(len(names)), index=names, columns=names)
    for row in cosines[cosines["layer_a"].isin(shown) & cosines["layer_b"].isin(shown)].itertuples():
        a, b = f"{row.behavior_a} {row.layer_a}", f"{row.behavior_b} {row.layer_b}"
        square.loc[a, b] = square.loc[b, a] = row.cosine
    return square


def color_behaviors(ax: Axes) -> None:
    """Color the names of the rows and columns by behavior."""
    for tick in [*ax.get_xticklabels(), *ax.get_yticklabels()]:
        behavior = tick.get_text().split()[0]
        tick.set_color(BEHAVIORS[behavior].text_color if behavior in BEHAVIORS else "black")


if __name__ == "__main__":
    figure_script({"vector_similarity": draw}, __doc__, RESULTS)
