"""How alike steering vectors are: between inputs, over layers and behaviors, and what the contexts look like.

    python figures/vector_similarity.py [RESULTS_DIR] [--out DIR]

Reads geometry.csv, cosines.csv, maps.csv and cka.csv of analyses/vector_similarity.py; writes vector_similarity.png
and .pdf.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from _script import figure_script
from matplotlib.figure import Figure

from steerlab import DataError
from steerlab.plots import cosine_heatmap, geometry_lines, layer_heatmap, map_scatter, style, width

RESULTS = Path(__file__).parent.parent / "analyses" / "results" / "vector_similarity"
NEEDED = ("geometry", "cosines", "maps", "cka")
SHOWN = 6  # layers of the heat map


def draw(results_dir: str | Path) -> Figure:
    """The figure of one results folder."""
    folder = Path(results_dir)
    missing = [f"{name}.csv" for name in NEEDED if not (folder / f"{name}.csv").exists()]
    if missing:
        raise DataError(f"{folder} lacks {missing}: give the results folder of analyses/vector_similarity.py")
    tables = {name: pd.read_csv(folder / f"{name}.csv") for name in NEEDED}
    contexts = tables["maps"].query("map == 'contexts'")
    contexts.attrs["explained"] = tuple(contexts[["explained_x", "explained_y"]].iloc[0])
    square = tables["cka"].pivot(index="layer_a", columns="layer_b", values="cka")
    with style():
        fig = Figure(figsize=(width(2), 5.6), layout="constrained")
        axes = fig.subplots(2, 2, width_ratios=[1.15, 1.0]).ravel()
        geometry_lines(tables["geometry"], axes[0], title="a  Inputs' own vectors, within and between behaviors")
        cosine_heatmap(mean_square(tables["cosines"]), axes[1], title="b  Mean vectors, cosines over layers")
        at = int(contexts["layer"].iloc[0])
        map_scatter(contexts, axes[2], title=f"c  Contexts at layer {at}, principal components")
        layer_heatmap(square, axes[3], title="d  Contexts, CKA between layers")
        fig.draw_without_rendering()  # ticks are made when first drawn: make them in our style
    return fig


def mean_square(cosines: pd.DataFrame) -> pd.DataFrame:
    """The long table as a square, at a few layers spread over all."""
    layers = np.unique(cosines[["layer_a", "layer_b"]])
    shown = layers[np.unique(np.linspace(0, len(layers) - 1, SHOWN).round().astype(int))]
    names = [f"{b} {k}" for b in dict.fromkeys(cosines["behavior_a"]) for k in shown]
    square = pd.DataFrame(np.eye(len(names)), index=names, columns=names)
    for row in cosines[cosines["layer_a"].isin(shown) & cosines["layer_b"].isin(shown)].itertuples():
        a, b = f"{row.behavior_a} {row.layer_a}", f"{row.behavior_b} {row.layer_b}"
        square.loc[a, b] = square.loc[b, a] = row.cosine
    return square


if __name__ == "__main__":
    figure_script(draw, __doc__, RESULTS, "vector_similarity")
