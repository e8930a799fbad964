"""Lines, intervals and the names at line ends."""

from __future__ import annotations

from itertools import combinations, product

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from steerlab._support.errors import DataError
from steerlab.plots import geometry_lines, probe_gap_lines, propensity_lines, style
from steerlab.plots.style import BEHAVIORS, METHODS, OTHER_COLORS, behavior_styles, readable_name, separate_labels


def lines_by_color(ax: Axes) -> dict[str, np.ndarray]:
    return {to_hex(line.get_color()).upper(): line.get_xydata() for line in ax.lines}


@pytest.fixture
def curves() -> pd.DataFrame:
    rows = [
        (name, layer, alpha, slope * alpha + layer)
        for name, slope in (("openness", 2.0), ("narcissism", -1.0), ("self-awareness-text-model", 2.1))
        for layer in (3, 4)
        for alpha in (-1.5, 0.0, 1.5)
    ]
    frame = pd.DataFrame(rows, columns=["behavior", "layer", "alpha", "mean"])
    return frame.assign(low=frame["mean"] - 0.2, high=frame["mean"] + 0.3, method="mean")


@pytest.fixture
def geometry() -> pd.DataFrame:
    rows = [
        (layer, a, b, "within" if a == b else "between", 0.9 - 0.01 * layer if a == b else 0.1)
        for layer in (0, 4, 8)
        for a, b in (("defer", "defer"), ("refuse", "refuse"), ("defer", "refuse"))
    ]
    frame = pd.DataFrame(rows, columns=["layer", "a", "b", "kind", "cosine"])
    return frame.assign(low=frame["cosine"] - 0.02, high=frame["cosine"] + 0.03, shuffled=0.5)


def test_propensity_has_one_named_line_with_its_interval_per_behavior(curves: pd.DataFrame) -> None:
    _, ax = plt.subplots()
    assert propensity_lines(curves.sample(frac=1, random_state=0), ax, layer=3) is ax
    for color, name in zip(OTHER_COLORS, ("self-awareness-text-model", "openness", "narcissism"), strict=False):
        assert color in lines_by_color(ax), name
    names = {t.get_text(): t for t in ax.texts}
    assert set(names) == {"openness", "narcissism", "self awareness text model"}
    for name, text in names.items():
        rows = curves[(curves["behavior"].map(readable_name) == name) & (curves["layer"] == 3)]
        color = to_hex(text.get_color()).upper()
        np.testing.assert_allclose(lines_by_color(ax)[color], rows[["alpha", "mean"]])
        assert text.xy == tuple(rows[["alpha", "mean"]].iloc[-1]), "a name points at the end of its line"
        (band,) = [c for c in ax.collections if to_hex(c.get_facecolor()[0]).upper() == color]
        corners = band.get_paths()[0].vertices
        assert (corners[:, 1].min(), corners[:, 1].max()) == (rows["low"].min(), rows["high"].max())
    assert np.diff(sorted(t.xyann[1] for t in ax.texts)).min() >= 0.0699


def test_propensity_names_highlighted_lines_alone(curves: pd.DataFrame) -> None:
    ax = propensity_lines(curves, highlight=["openness"], labels={"openness": "Open"}, layer=4)
    assert [t.get_text() for t in ax.texts] == ["Open"]
    assert len(ax.collections) == 1 and len(ax.lines) == 4
    ax = propensity_lines(curves[curves["behavior"] == "openness"], hue="method", layer=4)
    assert [t.get_text() for t in ax.texts] == ["mean vector"]
    assert METHODS["mean"].color in lines_by_color(ax)


def test_names_of_two_text_lines_get_twice_the_distance() -> None:
    settings = list(product(("one", "two"), (-1.0, 1.0)))
    curves = pd.DataFrame(settings, columns=["behavior", "alpha"]).assign(mean=[0, 1, 0, 1.01], low=-1.0, high=2.0)
    ax = propensity_lines(curves, labels={"one": "a\nb", "two": "c\nd"})
    assert np.ptp([t.xyann[1] for t in ax.texts]) == pytest.approx(0.14)


def test_ambiguous_curves_are_rejected(curves: pd.DataFrame) -> None:
    with pytest.raises(DataError, match=r"\['layer'\]"):
        propensity_lines(curves)
    with pytest.raises(DataError, match="leaves 0"):
        propensity_lines(curves, layer=9)
    with pytest.raises(DataError, match="nothing"):
        propensity_lines(curves, highlight=["nothing"], layer=3)
    with pytest.raises(DataError, match="lacks"):
        propensity_lines(curves.drop(columns="low"), layer=3)
    many = pd.concat([curves[curves["layer"] == 3].assign(behavior=f"set{i}") for i in range(9)])
    with pytest.raises(DataError, match="highlight"):
        propensity_lines(many.drop_duplicates(["behavior", "alpha"]))


def test_geometry_lines_have_behavior_colors_and_names_that_do_not_overlap(geometry: pd.DataFrame) -> None:
    ax = geometry_lines(geometry.sample(frac=1, random_state=0))
    lines = lines_by_color(ax)
    np.testing.assert_allclose(lines[BEHAVIORS["refuse"].color], [[0, 0.9], [4, 0.86], [8, 0.82]])
    np.testing.assert_allclose(lines[OTHER_COLORS[0]], [[0, 0.1], [4, 0.1], [8, 0.1]])
    dashed = {to_hex(line.get_color()).upper(): line.is_dashed() for line in ax.lines}
    assert dashed[OTHER_COLORS[0]] and not dashed[BEHAVIORS["refuse"].color]
    assert {t.get_text() for t in ax.texts} == {"within refuse", "within defer", "defer – refuse", "labels shuffled"}
    ax.figure.draw_without_rendering()
    boxes = [mpl.text.Text.get_window_extent(t) for t in ax.texts]
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    with pytest.raises(DataError, match="18 of them"):
        geometry_lines(pd.concat([geometry, geometry]))


def test_probe_gap_lines_show_probe_and_answers_of_each_group() -> None:
    frame = pd.DataFrame(list(product((0, 1, 2), ("random", "popular"))), columns=["layer", "group"])
    frame = frame.assign(probe_accuracy=[0.5, 0.6, 0.7, 0.8, 0.9, 1.0], model_accuracy=[0.4, 0.3] * 3)
    ax = probe_gap_lines(frame)
    drawn = sorted(line.get_ydata().tolist() for line in ax.lines)
    assert drawn == [[0.3] * 3, [0.4] * 3, [0.5, 0.7, 0.9], [0.6, 0.8, 1.0]]
    ends = {t.get_text(): t.xy for t in ax.texts}
    assert ends["probe, popular"] == (2, 1.0) and ends["answers, random"] == (2, 0.4) and len(ends) == 4
    with pytest.raises(DataError, match="model_accuracy"):
        probe_gap_lines(frame.drop(columns="model_accuracy"))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.01, 0.2))
def test_separate_labels_keeps_order_and_distance(heights: list[float], gap: float) -> None:
    moved = np.array(separate_labels(heights, gap))
    order = np.argsort(heights, kind="stable")
    assert (np.diff(moved[order]) >= gap - 1e-9).all()
    assert moved.mean() == pytest.approx(np.mean(heights), abs=1e-9)
    if (np.diff(np.array(heights)[order]) >= gap).all():
        np.testing.assert_allclose(moved, heights, atol=1e-9)


def test_methods_and_behaviors_have_distinct_fixed_colors_and_readable_names() -> None:
    known = [*METHODS.values(), *BEHAVIORS.values()]
    assert len({look.color for look in known} | set(OTHER_COLORS)) == len(known) + len(OTHER_COLORS)
    first, second = behavior_styles(["defer", "openness"]), behavior_styles(["refuse", "narcissism", "defer"])
    assert first["defer"] == second["defer"] == BEHAVIORS["defer"]
    assert first["openness"].color == second["narcissism"].color == OTHER_COLORS[0]
    assert readable_name("sycophancy_test") == "sycophancy test"
    long = readable_name("willingness-to-use-physical-force-to-achieve-benevolent-goals")
    assert len(long) <= 44 and long.endswith("…")


def test_style_keeps_interactive_mode_for_later_figures() -> None:
    before = mpl.is_interactive()
    try:
        mpl.interactive(False)
        with style():
            mpl.interactive(True)  # as the first figure of a notebook does
        assert mpl.is_interactive()
    finally:
        mpl.interactive(before)
