"""Heat maps of similarities and sweeps, the selected layers, and maps in the plane."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from steerlab._support.errors import DataError
from steerlab.analysis.layer_selection import select_layers
from steerlab.plots import cosine_heatmap, layer_heatmap, layer_range_lines, map_scatter, sweep_heatmap
from steerlab.plots.style import BEHAVIORS


def square(n: int) -> pd.DataFrame:
    v = np.random.default_rng(0).normal(size=(n, 5))
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    names = [f"vector {i}" for i in range(n)]
    return pd.DataFrame(v @ v.T, index=names, columns=names)


def points(labels: list[str]) -> pd.DataFrame:
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(20 * len(labels), 2)), columns=["x", "y"])
    return frame.assign(label=np.repeat(labels, 20))


@pytest.fixture
def sweep() -> pd.DataFrame:
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


def test_cosines_have_a_fixed_scale_and_are_written_where_there_is_room() -> None:
    _, ax = plt.subplots()
    matrix = square(4)
    assert cosine_heatmap(matrix, ax) is ax
    (mesh,) = ax.collections
    np.testing.assert_allclose(mesh.get_array(), matrix)
    assert mesh.get_clim() == (-1, 1) and mesh.norm(0) == 0.5
    assert [t.get_text() for t in ax.get_yticklabels()] == list(matrix.index)
    texts = {t.get_text() for t in ax.texts}
    assert "1" in texts and f"{matrix.iloc[0, 1]:.2f}".replace("0.", ".").replace("-", "−") in texts
    assert len(ax.texts) == 16 and len(ax.figure.axes) == 2
    assert len(cosine_heatmap(square(13)).texts) == 0


def test_tuples_are_joined_and_large_tables_have_few_ticks() -> None:
    names = pd.MultiIndex.from_tuples([("refuse", 3), ("defer", 3)])
    ax = cosine_heatmap(pd.DataFrame(np.eye(2), index=names, columns=names))
    assert [t.get_text() for t in ax.get_xticklabels()] == ["refuse 3", "defer 3"]
    ax = cosine_heatmap(square(60))
    assert len(ax.get_yticks()) <= 14 and ax.get_yticklabels()[1].get_text() == "vector 5"


def test_layer_zero_is_at_the_lower_left() -> None:
    matrix = square(20).abs()
    matrix.index = matrix.columns = range(20)
    ax = layer_heatmap(matrix)
    low, high = ax.get_ylim()
    assert low < high and ax.collections[0].get_clim() == (0, 1)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("Layer", "Layer")


def test_values_outside_the_scale_are_rejected() -> None:
    with pytest.raises(DataError, match=r"from -1 to 1.*3"):
        cosine_heatmap(3 * square(3))
    with pytest.raises(DataError, match=r"'CKA' .* from 0 to 1"):
        layer_heatmap(-square(3).abs())
    with pytest.raises(DataError, match="NaN"):
        cosine_heatmap(square(3) * np.nan)
    with pytest.raises(DataError, match="no finite value"):
        cosine_heatmap(pd.DataFrame())


def test_map_labels_differ_and_the_legend_covers_no_point() -> None:
    names = ["refuse", "b", "c", "d", "e"]
    frame = points(names)
    frame.attrs["explained"] = (0.31, 0.123)
    ax = map_scatter(frame)
    (dots,) = ax.collections
    np.testing.assert_allclose(dots.get_offsets(), frame[["x", "y"]])
    assert to_hex(dots.get_facecolor()[0]).upper() == BEHAVIORS["refuse"].color
    assert [t.get_text() for t in ax.get_legend().get_texts()] == names
    ax.figure.draw_without_rendering()
    box = ax.get_legend().get_window_extent()
    assert not any(box.contains(*xy) for xy in ax.transData.transform(frame[["x", "y"]]))
    assert "31%" in ax.get_xlabel() and "12%" in ax.get_ylabel()
    assert map_scatter(points(["a", "b"])).get_xlabel() == "Axis 1"
    (many,) = map_scatter(points(list("abcdefghi"))).collections
    shapes = [path.vertices.tobytes() for path in many.get_paths()]
    assert len({(to_hex(c), s) for c, s in zip(many.get_facecolor(), shapes, strict=True)}) == 9
    with pytest.raises(DataError, match="label"):
        map_scatter(frame.drop(columns="label"))


def test_sweep_shows_changes_against_no_steering_and_frames_the_selected_layers(sweep: pd.DataFrame) -> None:
    selected = select_layers(sweep)
    ax = sweep_heatmap(sweep, split="validation", layers=selected.layers, alpha=selected.alpha, best=selected.best)
    mesh = ax.collections[0]
    np.testing.assert_allclose(mesh.get_array(), [[0, 0], [0, 0], [-1, 1], [-1, 1], [0, 0]], atol=0.05)
    assert [t.get_text() for t in ax.get_xticklabels()] == ["−1", "1"]
    (box,) = [p for p in ax.patches if isinstance(p, Rectangle)]
    assert (box.get_x(), box.get_y(), box.get_height()) == (1, 2, 2)
    assert mesh.norm.vmin == -mesh.norm.vmax, "white is no change"
    low, high = ax.get_ylim()
    assert low < high, "layer 0 is at the bottom"
    ax = sweep_heatmap(sweep.assign(layer=sweep["layer"].map(lambda k: f"{k}.mlp_out")))
    assert [t.get_text() for t in ax.get_yticklabels()] == [f"{k}.mlp_out" for k in range(5)]
    ax = layer_range_lines(selected.table)
    assert len(ax.containers[0].lines[0].get_xdata()) == 5
    (span,) = ax.patches
    assert (span.get_x(), span.get_x() + span.get_width()) == (1.5, 3.5)


def test_ambiguous_sweeps_are_rejected(sweep: pd.DataFrame) -> None:
    with pytest.raises(DataError, match="0 of 600 rows"):
        sweep_heatmap(sweep, metric="accuracy")
    with pytest.raises(DataError, match="several of"):
        sweep_heatmap(pd.concat([sweep, sweep.assign(method="l2s")]))
    with pytest.raises(DataError, match="not among the settings"):
        sweep_heatmap(sweep, layers=[9], alpha=1.0)
    with pytest.raises(DataError, match="gap_low"):
        layer_range_lines(sweep)
