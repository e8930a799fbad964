"""What the pictures of a sweep show."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.patches import Rectangle

from steerlab import DataError
from steerlab.analysis.layer_selection import select_layers
from steerlab.plots import layer_range_lines, style, sweep_heatmap


@pytest.fixture
def frame() -> pd.DataFrame:
    rng = np.random.default_rng(1)
    rows = [
        [layer, alpha, f"{split}/{i}", split, "propensity", 3 + alpha * (layer in (2, 3)) + rng.normal(0, 0.05)]
        for split in ("validation", "test")
        for layer in range(5)
        for alpha in (-1.0, 0.0, 1.0)
        for i in range(20)
    ]
    columns = ["layer", "alpha", "example_id", "split", "metric", "value"]
    return pd.DataFrame(rows, columns=columns).assign(method="mean", positions="last")


def test_cells_are_changes_against_no_steering_and_the_band_is_framed(frame: pd.DataFrame) -> None:
    layer_range = select_layers(frame)
    with style():
        ax = sweep_heatmap(
            frame, split="validation", layer_range=layer_range.layers, alpha=layer_range.alpha, best=layer_range.best
        )
    shown = ax.images[0].get_array()
    assert shown.shape == (5, 2)
    np.testing.assert_allclose(shown, [[0, 0], [0, 0], [-1, 1], [-1, 1], [0, 0]], atol=0.05)
    assert [t.get_text() for t in ax.get_xticklabels()] == ["−1", "1"]
    (box,) = [p for p in ax.patches if isinstance(p, Rectangle)]
    assert (box.get_x(), box.get_y(), box.get_height()) == (0.5, 1.5, 2)
    assert ax.images[0].norm.vmin == -ax.images[0].norm.vmax, "white is no change"


def test_layers_may_have_names(frame: pd.DataFrame) -> None:
    named = frame.assign(layer=frame["layer"].map(lambda k: f"{k}.mlp_out"))
    ax = sweep_heatmap(named)
    assert [t.get_text() for t in ax.get_yticklabels()] == [f"{k}.mlp_out" for k in range(5)]


def test_the_band_is_shaded_and_every_layer_has_a_point(frame: pd.DataFrame) -> None:
    ax = layer_range_lines(select_layers(frame).table)
    assert len(ax.containers[0].lines[0].get_xdata()) == 5
    (span,) = ax.patches
    assert (span.get_x(), span.get_x() + span.get_width()) == (1.5, 3.5)


def test_what_can_not_be_drawn_is_refused(frame: pd.DataFrame) -> None:
    with pytest.raises(DataError, match="0 of 600 rows"):
        sweep_heatmap(frame, metric="accuracy")
    with pytest.raises(DataError, match="several of"):
        sweep_heatmap(pd.concat([frame, frame.assign(method="l2s")]))
    with pytest.raises(DataError, match="not among the cells"):
        sweep_heatmap(frame, layer_range=[9], alpha=1.0)
    with pytest.raises(DataError, match="gap_low"):
        layer_range_lines(frame)


def test_a_figure_in_our_style_leaves_the_notebook_showing_figures() -> None:
    before = mpl.is_interactive()
    try:
        mpl.interactive(False)
        with style():
            mpl.interactive(True)  # what a notebook's first figure does
        assert mpl.is_interactive()
    finally:
        mpl.interactive(before)
