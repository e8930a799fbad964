"""Lines over layers, bars of explained variance and points of shifted prompts, read off the artists."""

from __future__ import annotations

from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from _shifts import PAIRS, pair_label, shift_scatter
from _variance_bars import variance_bars
from matplotlib.colors import to_hex

from steerlab._support.errors import DataError
from steerlab.plots import layer_lines, propensity_lines, slope_distributions


@pytest.fixture
def layers() -> pd.DataFrame:
    cells = list(product(("openness", "narcissism"), (1, 3, 5)))
    return pd.DataFrame(cells, columns=["behavior", "layer"]).assign(steerability=[0.1, 0.5, 0.2, -0.1, 0.1, 0.4])


@pytest.fixture
def shares() -> pd.DataFrame:
    rows = [("openness", 0.7, 0.2, 0.1), ("narcissism", 0.5, 0.0, 0.5), ("equal", np.nan, np.nan, np.nan)]
    return pd.DataFrame(rows, columns=["behavior", "option", "word", "unexplained"])


@pytest.fixture
def shifts() -> pd.DataFrame:
    pairs = [("base", "base"), *PAIRS]
    rows = [(f"set {i}", *pair, 0.1 * i + 0.01 * j) for i in range(5) for j, pair in enumerate(pairs)]
    return pd.DataFrame(rows, columns=["behavior", "train_variant", "test_variant", "steerability"])


def test_layers_mark_the_chosen_one_on_the_mean(layers: pd.DataFrame) -> None:
    _, ax = plt.subplots()
    assert layer_lines(layers.sample(frac=1, random_state=0), ax, chosen=3, title="t") is ax
    lines = {line.get_label(): line for line in ax.lines}
    np.testing.assert_allclose(lines["narcissism"].get_xydata(), [[1, -0.1], [3, 0.1], [5, 0.4]])
    np.testing.assert_allclose(lines["mean"].get_xydata(), [[1, 0], [3, 0.3], [5, 0.3]], atol=1e-12)
    assert lines["mean"].get_linewidth() > 2 * lines["openness"].get_linewidth()
    mark = next(line for line in ax.lines if line.get_marker() == "o")
    assert mark.get_xydata().tolist() == [[3, pytest.approx(0.3)]]
    assert {t.get_text() for t in ax.texts} == {"layer 3", "mean"} and ax.get_title(loc="left") + ax.get_title() == "t"
    assert [t.get_text() for t in layer_lines(layers).texts] == ["mean"]


def test_unclear_layers_are_refused(layers: pd.DataFrame) -> None:
    with pytest.raises(DataError, match="layer 4 is not among"):
        layer_lines(layers, chosen=4)
    with pytest.raises(DataError, match="6 rows"):
        layer_lines(pd.concat([layers, layers]))
    with pytest.raises(DataError, match="lacks"):
        layer_lines(layers.drop(columns="steerability"))


def test_shares_stack_up_to_the_whole(shares: pd.DataFrame) -> None:
    _, ax = plt.subplots()
    order = ["narcissism", "openness", "equal"]
    assert variance_bars(shares, ax, order=order, labels={"openness": "Open"}, title="t") is ax
    assert [t.get_text() for t in ax.get_yticklabels()] == ["narcissism", "Open", "equal"]
    letter, word, rest = ([bar.get_width() for bar in bars] for bars in ax.containers)
    np.testing.assert_allclose([letter[:2], word[:2], rest[:2]], [[0.5, 0.7], [0, 0.2], [0.5, 0.1]])
    assert np.isnan([letter[2], word[2], rest[2]]).all()
    assert [bars[1].get_x() for bars in ax.containers] == pytest.approx([0, 0.7, 0.9])
    top, bottom = ax.get_ylim()
    assert top > bottom and ax.get_xlim() == (0, 1)
    assert [t.get_text() for t in ax.texts] == ["letter", "word", "rest"]
    assert len({to_hex(bars[0].get_facecolor()) for bars in ax.containers}) == 3


def test_unclear_shares_are_refused(shares: pd.DataFrame) -> None:
    with pytest.raises(DataError, match="'openness' do not add up"):
        variance_bars(shares.assign(option=shares["option"] + [0.2, 0, 0]))
    with pytest.raises(DataError, match="more than once"):
        variance_bars(pd.concat([shares, shares]))
    with pytest.raises(DataError, match="nothing"):
        variance_bars(shares, order=["nothing"])
    with pytest.raises(DataError, match="lacks"):
        variance_bars(shares.drop(columns="word"))


def test_points_stand_at_base_and_shifted_slopes_and_the_key_covers_none(shifts: pd.DataFrame) -> None:
    ax = shift_scatter(shifts.sample(frac=1, random_state=0), labels={PAIRS[0]: "first"}, title="t")
    for number, cloud in enumerate(ax.collections):
        base = 0.1 * np.arange(5)
        np.testing.assert_allclose(cloud.get_offsets(), np.column_stack([base, base + 0.01 * (number + 1)]))
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["first", *map(pair_label, PAIRS[1:])]
    looks = {(to_hex(c.get_facecolor()[0]), c.get_paths()[0].vertices.tobytes()) for c in ax.collections}
    assert len(looks) == len({color for color, _ in looks}) == 4
    same = next(line for line in ax.lines if line.get_label() == "unchanged")
    np.testing.assert_array_equal(same.get_xdata(), same.get_ydata())
    ax.figure.draw_without_rendering()
    box = ax.get_legend().get_window_extent()
    points = np.concatenate([c.get_offsets() for c in ax.collections])
    assert not any(box.contains(*xy) for xy in ax.transData.transform(points))


def test_unclear_shifts_are_refused(shifts: pd.DataFrame) -> None:
    assert len(shift_scatter(shifts, pairs=[("base", "user_pos")]).collections) == 1
    with pytest.raises(DataError, match=r"lacks the pairs \[\('base', 'base'\)\]"):
        shift_scatter(shifts[(shifts["train_variant"] != "base") | (shifts["test_variant"] != "base")])
    with pytest.raises(DataError, match="25 rows"):
        shift_scatter(pd.concat([shifts, shifts]))
    with pytest.raises(DataError, match="test_variant"):
        shift_scatter(shifts.drop(columns="test_variant"))


def test_labels_of_two_lines_are_spread_wider() -> None:
    cells = list(product(("one", "two"), (-1.0, 1.0)))
    curves = pd.DataFrame(cells, columns=["behavior", "alpha"]).assign(mean=[0, 1, 0, 1.01], low=-1.0, high=2.0)
    ax = propensity_lines(curves, labels={"one": "a\nb", "two": "c\nd"})
    low, high = ax.get_ylim()
    assert np.ptp([t.xy[1] for t in ax.texts]) == pytest.approx(0.12 * (high - low))


def test_two_humps_stay_apart() -> None:
    side = np.repeat([-0.15, 0.15], 125)
    slopes = pd.DataFrame({"behavior": "openness", "slope": side + np.random.default_rng(0).normal(0, 0.03, 250)})
    corners = np.concatenate([c.get_paths()[0].vertices for c in slope_distributions(slopes).collections])
    near = np.abs(corners[np.abs(corners[:, 0]) < 0.02, 1]).max()
    assert near < 0.05 * np.abs(corners[:, 1]).max()
