"""The panels of the steerability figure: distributions of slopes, explained variance and shifted prompts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from steerlab._support.errors import DataError


@pytest.fixture
def panels(script: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    return script("steerability")


@pytest.fixture
def slopes() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    parts = [
        pd.DataFrame(
            {"behavior": name, "example_id": [f"{name}/{i}" for i in range(80)], "slope": rng.normal(m, 1, 80)}
        )
        for name, m in (("low", 0.0), ("high", 3.0), ("middle", 1.0))
    ]
    equal = pd.DataFrame({"behavior": "equal", "example_id": ["equal/0", "equal/1"], "slope": 2.0})
    return pd.concat([*parts, equal], ignore_index=True)


@pytest.fixture
def shares() -> pd.DataFrame:
    rows = [("openness", 0.7, 0.2, 0.1), ("narcissism", 0.5, 0.0, 0.5), ("equal", np.nan, np.nan, np.nan)]
    return pd.DataFrame(rows, columns=["behavior", "option", "word", "unexplained"])


@pytest.fixture
def shifts(panels: dict[str, Any]) -> pd.DataFrame:
    pairs = [("base", "base"), *panels["PAIRS"]]
    rows = [(f"set {i}", *pair, 0.1 * i + 0.01 * j) for i in range(5) for j, pair in enumerate(pairs)]
    return pd.DataFrame(rows, columns=["behavior", "train_variant", "test_variant", "steerability"])


def test_slopes_have_a_violin_per_color_a_median_and_the_share_moved_away(panels: dict, slopes: pd.DataFrame) -> None:
    order = ["high", "equal", "middle", "low"]
    _, ax = plt.subplots()
    panels["slope_distributions"](slopes, ax, order=order, labels={"low": "Low one"})
    assert [t.get_text() for t in ax.get_yticklabels()] == ["high", "equal", "middle", "Low one"]
    away = (slopes["slope"] <= 0).groupby(slopes["behavior"]).mean()[order]
    assert [t.get_text() for t in ax.texts] == [*(f"{share:.0%}" for share in away), "away"]
    assert [t.xy[1] for t in ax.texts[:4]] == [0, 1, 2, 3]
    medians = next(line for line in ax.lines if line.get_marker() == "|")
    np.testing.assert_allclose(medians.get_xdata(), slopes.groupby("behavior")["slope"].median()[order])
    left, right = ax.get_xlim()
    inner = slopes.groupby("behavior")["slope"].quantile([0.01, 0.99])
    assert left <= inner.min() and right >= inner.max() - 0.5
    colors = [to_hex(violin.get_facecolor()[0]).upper() for violin in ax.collections]
    assert colors == ["#4393C3"] * 3 + ["#D6604D"] * 3, "equal slopes have no violin"
    blue, red = (ax.collections[i].get_clip_box() for i in (0, 3))
    zero = ax.transData.transform((0, 0))[0]
    assert blue.x0 == pytest.approx(zero) and red.x1 == pytest.approx(zero)


def test_two_modes_of_slopes_are_not_smoothed_into_one(panels: dict) -> None:
    side = np.repeat([-0.15, 0.15], 125) + np.random.default_rng(0).normal(0, 0.03, 250)
    slopes = pd.DataFrame({"behavior": "openness", "example_id": range(250), "slope": side})
    _, ax = plt.subplots()
    panels["slope_distributions"](slopes, ax, order=["openness"])
    corners = ax.collections[0].get_paths()[0].vertices
    assert np.abs(corners[np.abs(corners[:, 0]) < 0.02, 1]).max() < 0.05 * np.abs(corners[:, 1]).max()


def test_broken_repeated_and_unknown_slopes_are_rejected(panels: dict, slopes: pd.DataFrame) -> None:
    _, ax = plt.subplots()
    for frame, order, match in (
        (pd.concat([slopes, slopes]), ["low"], "242 examples that occur twice"),
        (slopes.assign(slope=[np.nan, *slopes["slope"][1:]]), ["low"], "1 NaN"),
        (slopes, ["nothing"], "nothing"),
        (slopes.drop(columns="slope"), ["low"], "lacks"),
    ):
        with pytest.raises(DataError, match=match):
            panels["slope_distributions"](frame, ax, order=order)


def test_explained_shares_stack_to_one(panels: dict, shares: pd.DataFrame) -> None:
    _, ax = plt.subplots()
    panels["variance_bars"](shares, ax, order=["narcissism", "openness", "equal"])
    letter, word, rest = ([bar.get_width() for bar in bars] for bars in ax.containers)
    np.testing.assert_allclose([letter[:2], word[:2], rest[:2]], [[0.5, 0.7], [0, 0.2], [0.5, 0.1]])
    assert np.isnan([letter[2], word[2], rest[2]]).all()
    assert [bars[1].get_x() for bars in ax.containers] == pytest.approx([0, 0.7, 0.9])
    assert [t.get_text() for t in ax.texts] == ["letter", "word", "rest"]


def test_explained_shares_that_are_not_one_fit_are_rejected(panels: dict, shares: pd.DataFrame) -> None:
    _, ax = plt.subplots()
    for frame, order, match in (
        (shares.assign(option=shares["option"] + [0.2, 0, 0]), ["openness"], "'openness' do not add up"),
        (pd.concat([shares, shares]), ["openness"], "one row for each behavior"),
        (shares, ["nothing"], "nothing"),
        (shares.drop(columns="word"), ["openness"], "lacks"),
    ):
        with pytest.raises(DataError, match=match):
            panels["variance_bars"](frame, ax, order=order)


def test_shift_points_have_base_and_shifted_slopes_and_the_legend_covers_none(
    panels: dict, shifts: pd.DataFrame
) -> None:
    pairs = panels["PAIRS"]
    _, ax = plt.subplots()
    panels["shift_scatter"](shifts.sample(frac=1, random_state=0), ax, labels={pairs[0]: "first"})
    base = np.tile(0.1 * np.arange(5), 4)
    points = ax.collections[0].get_offsets()
    np.testing.assert_allclose(points, np.column_stack([base, base + 0.01 * np.repeat([1, 2, 3, 4], 5)]))
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["first", *map(panels["pair_label"], pairs[1:])]
    assert len({to_hex(color) for color in ax.collections[0].get_facecolor()}) == 4
    ax.figure.draw_without_rendering()
    box = ax.get_legend().get_window_extent()
    assert not any(box.contains(*xy) for xy in ax.transData.transform(points))


def test_missing_and_repeated_shifts_are_rejected(panels: dict, shifts: pd.DataFrame) -> None:
    _, ax = plt.subplots()
    with pytest.raises(DataError, match=r"lacks the pairs \[\('base', 'base'\)\]"):
        panels["shift_scatter"](shifts[(shifts["train_variant"] != "base") | (shifts["test_variant"] != "base")], ax)
    with pytest.raises(DataError, match="50 of them"):
        panels["shift_scatter"](pd.concat([shifts, shifts]), ax)
