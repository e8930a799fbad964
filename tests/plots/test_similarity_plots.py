"""Heat maps, maps and the geometry of contrast vectors, drawn."""

from __future__ import annotations

import runpy
from itertools import combinations
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from steerlab._support.errors import DataError
from steerlab.plots import cosine_heatmap, geometry_dots, geometry_lines, layer_heatmap, map_scatter

ROOT = Path(__file__).parents[2]


def square(n: int, seed: int = 0) -> pd.DataFrame:
    v = np.random.default_rng(seed).normal(size=(n, 5))
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    names = [f"vector {i}" for i in range(n)]
    return pd.DataFrame(v @ v.T, index=names, columns=names)


def geometry_frame(layers: tuple[int, ...] = (0, 4, 8)) -> pd.DataFrame:
    rows = []
    for layer in layers:
        for a, b in [("defer", "defer"), ("refuse", "refuse"), ("defer", "refuse")]:
            value = 0.9 - 0.01 * layer if a == b else 0.1
            told = {"low": value - 0.02, "high": value + 0.03, "shuffled": 0.5}
            rows.append(
                {"layer": layer, "a": a, "b": b, "kind": "within" if a == b else "between", "cosine": value} | told
            )
    return pd.DataFrame(rows)


def test_cosines_are_drawn_on_a_fixed_scale_and_written_where_there_is_room() -> None:
    _, ax = plt.subplots()
    matrix = square(4)
    assert cosine_heatmap(matrix, ax, title="t") is ax
    (image,) = ax.images
    np.testing.assert_allclose(image.get_array(), matrix)
    assert image.get_clim() == (-1, 1) and image.norm(0) == 0.5
    assert [t.get_text() for t in ax.get_yticklabels()] == list(matrix.index)
    written = {t.get_text() for t in ax.texts}
    assert "1" in written and f"{matrix.iloc[0, 1]:.2f}".replace("0.", ".").replace("-", "−") in written
    assert len(ax.texts) == 16 and len(ax.figure.axes) == 2 and ax.get_title(loc="left") + ax.get_title() == "t"
    assert len(cosine_heatmap(square(13), bar=False).texts) == 0


def test_tuples_become_names_and_many_rows_few_ticks() -> None:
    names = pd.MultiIndex.from_tuples([("refuse", 3), ("defer", 3)])
    ax = cosine_heatmap(pd.DataFrame(np.eye(2), index=names, columns=names))
    assert [t.get_text() for t in ax.get_xticklabels()] == ["refuse 3", "defer 3"]
    ax = cosine_heatmap(square(60))
    assert len(ax.get_yticks()) <= 14 and ax.get_yticklabels()[1].get_text() == "vector 5"


def test_layers_begin_at_the_lower_left() -> None:
    matrix = square(20).abs()
    matrix.index = matrix.columns = range(20)
    ax = layer_heatmap(matrix)
    low, high = ax.get_ylim()
    assert low < high and ax.images[0].get_clim() == (0, 1)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("Layer", "Layer")


def test_heatmaps_refuse_other_values() -> None:
    with pytest.raises(DataError, match=r"from -1 to 1.*3"):
        cosine_heatmap(3 * square(3))
    with pytest.raises(DataError, match=r"'CKA' .* from 0 to 1"):
        layer_heatmap(-square(3).abs())
    with pytest.raises(DataError, match="NaN"):
        cosine_heatmap(square(3) * np.nan)
    with pytest.raises(DataError, match="nothing finite"):
        cosine_heatmap(pd.DataFrame())


def points(labels: int, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(rng.normal(size=(20 * labels, 2)), columns=["x", "y"])
    return frame.assign(label=np.repeat([f"label {i}" for i in range(labels)], 20))


def test_labels_differ_in_color_and_marker_and_the_legend_covers_no_point() -> None:
    frame = points(5)
    frame.attrs["explained"] = (0.31, 0.123)
    ax = map_scatter(frame)
    looks = [(to_hex(c.get_facecolor()[0]), c.get_paths()[0].vertices.tobytes()) for c in ax.collections]
    assert len({color for color, _ in looks}) == len({shape for _, shape in looks}) == 5
    assert [t.get_text() for t in ax.get_legend().get_texts()] == [f"label {i}" for i in range(5)]
    np.testing.assert_allclose(ax.collections[2].get_offsets(), frame[["x", "y"]].iloc[40:60])
    ax.figure.draw_without_rendering()
    box = ax.get_legend().get_window_extent()
    inside = ax.transData.transform(frame[["x", "y"]])
    assert not any(box.contains(*xy) for xy in inside)
    assert "31%" in ax.get_xlabel() and "12%" in ax.get_ylabel()
    assert map_scatter(points(2)).get_xlabel() == "Axis 1"
    many = map_scatter(points(9))
    assert len({(to_hex(c.get_facecolor()[0]), c.get_paths()[0].vertices.tobytes()) for c in many.collections}) == 9
    with pytest.raises(DataError, match="label"):
        map_scatter(frame.drop(columns="label"))


def test_dots_stand_at_the_cosines_within_first() -> None:
    frame = geometry_frame((4,)).sample(frac=1, random_state=1)
    ax = geometry_dots(frame)
    names = [t.get_text() for t in ax.get_yticklabels()]
    assert set(names[:2]) == {"within defer", "within refuse"} and names[2] == "defer – refuse"
    assert ax.containers[1].lines[0].get_xdata() == pytest.approx([0.1])
    np.testing.assert_allclose(ax.collections[0].get_offsets()[:, 0], 0.5)
    top, bottom = ax.get_ylim()
    assert top > bottom
    with pytest.raises(DataError, match="choose one site"):
        geometry_dots(geometry_frame())
    with pytest.raises(DataError, match="shuffled"):
        geometry_dots(frame.drop(columns="shuffled"))


def test_lines_over_layers_are_labeled_without_overlap() -> None:
    frame = geometry_frame()
    ax = geometry_lines(frame.sample(frac=1, random_state=0))
    lines = {line.get_label(): line for line in ax.lines}
    assert {"within refuse", "defer – refuse", "labels shuffled"} <= set(lines)
    np.testing.assert_allclose(lines["within refuse"].get_xydata(), [[0, 0.9], [4, 0.86], [8, 0.82]])
    assert lines["defer – refuse"].get_linestyle() != lines["within refuse"].get_linestyle()
    ax.figure.draw_without_rendering()
    boxes = [t.get_window_extent() for t in ax.texts]
    assert len(boxes) == 4 and not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    with pytest.raises(DataError, match="several times"):
        geometry_lines(pd.concat([frame, frame]))


def test_the_study_s_figure_shows_four_panels_uncut_and_names_missing_files(tmp_path: Path) -> None:
    draw = runpy.run_path(str(ROOT / "figures" / "vector_similarity.py"))["draw"]
    fig = draw(ROOT / "analyses" / "results" / "vector_similarity")
    panels = [ax.get_title(loc="left")[:1] for ax in fig.axes]
    assert [p for p in panels if p] == ["a", "b", "c", "d"]
    (wide, high), box = fig.get_size_inches(), fig.get_tightbbox()
    assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= wide and box.y1 <= high
    with pytest.raises(DataError, match=r"geometry\.csv"):
        draw(tmp_path)
