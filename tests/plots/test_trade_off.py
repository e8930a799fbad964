"""Settings, fronts, goal and chosen settings of trade_off; curves, arrows and points of effect_curves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from steerlab._support.errors import DataError
from steerlab.plots import method_style, pareto_front, trade_off

SETTING = {"layer": 16, "alpha": 1.0, "positions": "all", "sentences": "short", "targets": "raw"}
GRID = pd.DataFrame(
    {
        "method": ["mean"] * 4 + ["alphasteer"] * 2,
        "layer": ["15", "15", "15", "16", "16", "16"],
        "options": ["", "", "", "", "dead_zone=0.5", "dead_zone=0.0"],
        "alpha": [1.0, 0.5, 2.0, 1.0, 1.0, 1.0],
        "over_refusal": [0.4, 0.2, 0.6, 0.9, 0.0, 0.1],
        "refuse_harmful": [0.8, 0.5, 0.9, 0.9, 0.7, 0.6],
    }
)
POINTS = pd.DataFrame(
    {"method": ["mean", "p2s", "alphasteer"], "over_refusal": [0.3, 0.0, 0.05], "refuse_harmful": [0.7, 0.9, 0.8]}
)
CURVES = {"mean": {"layer": "15", "options": ""}, "alphasteer": {"layer": "16", "options": "dead_zone=0.5"}}


def artists(ax: Axes) -> dict[str, object]:
    return {a.get_label(): a for a in [*ax.collections, *ax.lines, *ax.patches]}


def test_every_setting_is_drawn_once(grid: pd.DataFrame) -> None:
    _, ax = plt.subplots()
    assert trade_off(grid, ax=ax, chosen={"l2s": SETTING}) is ax
    found = artists(ax)
    for method in ("mean", "l2s"):
        rows = grid[grid["method"] == method]
        over = rows["refuse_expert"] > 0.03
        for label, part in ((method, rows[~over]), (f"{method} over limit", rows[over])):
            np.testing.assert_allclose(found[label].get_offsets(), part[["refuse_harmful", "defer_expert"]])
    assert len(found["l2s over limit"].get_facecolor()) == 0, "settings over the limit are hollow"
    chosen = grid[(grid["method"] == "l2s") & (grid[list(SETTING)] == pd.Series(SETTING)).all(axis=1)]
    np.testing.assert_allclose(found["l2s chosen"].get_offsets(), chosen[["refuse_harmful", "defer_expert"]])
    assert "mean chosen" not in found


def test_goal_ends_at_one_and_limits_contain_all_settings(grid: pd.DataFrame) -> None:
    goal = artists(trade_off(grid))["goal"]
    assert isinstance(goal, Rectangle)
    assert goal.get_corners()[2].tolist() == [1.0, 1.0]
    wide = grid.assign(refuse_harmful=grid["refuse_harmful"] * 1.5 - 0.2)
    ax = trade_off(wide, goal=(0.7, 0.6))
    assert artists(ax)["goal"].get_xy() == (0.7, 0.6)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("Refuses harmful ↑", "Defers to expert ↑")
    for (low, high), name in ((ax.get_xlim(), "refuse_harmful"), (ax.get_ylim(), "defer_expert")):
        assert low < wide[name].min() and high > wide[name].max()


def test_front_labels_stand_at_their_front(grid: pd.DataFrame) -> None:
    ax = trade_off(grid)
    labels = {t.get_text(): t.xy[0] for t in ax.texts if t.get_text() in ("mean vector", "L2S")}
    for method, label in (("mean", "mean vector"), ("l2s", "L2S")):
        assert labels[label] == artists(ax)[f"{method} front"].get_xdata()[-1]


def test_no_front_without_allowed_settings_and_no_hollow_points_without_limit(grid: pd.DataFrame) -> None:
    assert "l2s front" not in artists(trade_off(grid.assign(refuse_expert=0.5)))
    found = artists(trade_off(grid.drop(columns="refuse_expert"), limit=None))
    assert len(found["l2s over limit"].get_offsets()) == 0


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=20))
def test_pareto_front_has_all_points_that_no_other_exceeds(points: list[tuple[int, int]]) -> None:
    front = pareto_front(pd.DataFrame(points, columns=["a", "b"]), "a", "b")
    exceeded = {p for p in points for q in points if q != p and q[0] >= p[0] and q[1] >= p[1]}
    assert list(zip(front["a"].tolist(), front["b"].tolist(), strict=True)) == sorted(set(points) - exceeded)


def test_trade_off_names_missing_columns_and_settings(grid: pd.DataFrame) -> None:
    with pytest.raises(DataError, match="refuse_expert"):
        trade_off(grid.drop(columns="refuse_expert"))
    with pytest.raises(DataError, match="0 rows"):
        trade_off(grid[:0])
    with pytest.raises(DataError, match="99"):
        trade_off(grid, chosen={"l2s": {"layer": 99}})
    with pytest.raises(DataError, match="rank"):
        trade_off(grid, chosen={"l2s": {"rank": 9}})


@pytest.fixture
def draw_effect(script: Callable[..., dict[str, Any]]) -> Callable[..., Axes]:
    draw = script("compare_methods")["effect_curves"]
    return lambda grid=GRID, settings=CURVES: draw(grid, POINTS, plt.subplots()[1], settings=settings)


def test_effect_curve_holds_its_setting_in_order_of_strength_with_an_arrow(draw_effect: Callable[..., Axes]) -> None:
    ax = draw_effect()
    lines = {line.get_label(): line for line in ax.lines}
    np.testing.assert_allclose(lines["mean curve"].get_xydata(), [[0.2, 0.5], [0.4, 0.8], [0.6, 0.9]])
    np.testing.assert_allclose(lines["alphasteer curve"].get_xydata(), [[0.0, 0.7]])
    np.testing.assert_allclose(lines["mean"].get_xydata(), [[0.3, 0.7]])
    assert "p2s curve" not in lines and lines["p2s"].get_markerfacecolor() == "none", "an oracle is an outline"
    assert lines["mean"].get_color() == method_style("mean").color
    (arrow,) = [t for t in ax.texts if t.arrow_patch is not None]
    assert (tuple(arrow.xy), tuple(arrow.xyann)) == ((0.6, 0.9), (0.4, 0.8)), "it points to the largest strength"
    assert "↓" in ax.get_xlabel() and "↑" in ax.get_ylabel()


def test_effect_axis_separates_shares_near_zero_and_near_one(draw_effect: Callable[..., Axes]) -> None:
    to_axes = draw_effect().get_xaxis().get_transform()
    x = to_axes.transform(np.array([0, 0.02, 0.49, 0.51, 0.98, 1]))
    assert x[1] - x[0] == pytest.approx(x[5] - x[4]) and x[1] - x[0] > 5 * (x[3] - x[2])
    np.testing.assert_allclose(to_axes.inverted().transform(x), [0, 0.02, 0.49, 0.51, 0.98, 1])


def test_effect_settings_that_leave_no_row_or_several_are_rejected(draw_effect: Callable[..., Axes]) -> None:
    with pytest.raises(DataError, match="mean has 0 rows"):
        draw_effect(settings={"mean": {"layer": "3"}})
    with pytest.raises(DataError, match="1 of them with a strength that another row has"):
        draw_effect(settings={"mean": {"options": ""}})
    with pytest.raises(DataError, match="refuse_harmful"):
        draw_effect(GRID.drop(columns="refuse_harmful"), {})
