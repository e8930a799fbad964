"""Bars, trade-offs and effect curves of methods."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from _frontier import pareto_front, trade_off
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.container import BarContainer
from matplotlib.patches import Rectangle

from steerlab import plots
from steerlab.errors import DataError
from steerlab.metrics import share_interval

SHOWN = ["refuse_harmful", "refuse_expert", "cosine"]


@pytest.fixture
def frame(summary):
    return plots.summary_frame(summary)


def test_bars_show_value_and_interval_of_each_method(frame, ax):
    assert plots.method_bars(frame, SHOWN, ax) is ax
    bars = {c.get_label(): c for c in ax.containers if isinstance(c, BarContainer)}
    known = {method: look for method, look in plots.METHODS.items() if method in set(frame["method"])}
    assert list(bars) == [look.label for look in known.values()]
    for method, look in known.items():
        rows = frame[(frame["method"] == method) & frame["metric"].isin(SHOWN)]
        patches = bars[look.label].patches
        assert [p.get_width() for p in patches] == pytest.approx(rows["value"].tolist())
        assert to_hex(patches[0].get_edgecolor()).upper() == look.color
        segments = bars[look.label].errorbar.lines[2][0].get_segments()
        np.testing.assert_allclose([s[:, 0] for s in segments], rows[["low", "high"]])


def test_limits_contain_bars_and_intervals(frame):
    ax = plots.method_bars(frame.assign(high=1.4), SHOWN)
    left, right = ax.get_xlim()
    assert left <= -0.3 and right >= 1.4
    assert plots.method_bars(frame.assign(value=40.0, low=np.nan, high=np.nan), SHOWN).get_xlim()[1] >= 40
    bottom, top = ax.get_ylim()
    assert all(top <= p.get_y() and p.get_y() + p.get_height() <= bottom for p in ax.patches)


def test_text_names_metrics_goals_values_and_methods(frame):
    ax = plots.method_bars(frame, SHOWN, title="a  Title")
    texts = {t.get_text() for t in ax.texts}
    assert {"a  Title", "goal ≥ 0.80", "goal ≤ 0.03", *(plots.metric_style(m).heading for m in SHOWN)} <= texts
    assert f"{frame['value'].iloc[0]:.2f}" in texts
    known = [look.label for method, look in plots.METHODS.items() if method in set(frame["method"])]
    # only two methods have a cosine
    assert [t.get_text() for t in ax.get_yticklabels()] == [*known, *known, "mean vector", "L2S"]


def test_unknown_methods_and_metrics_are_labeled_by_name():
    frame = pd.DataFrame({"method": ["mine"], "metric": ["my_share"], "value": [0.5], "low": [0.5], "high": [0.5]})
    ax = plots.method_bars(frame, ["my_share"])
    assert ax.get_yticklabels()[0].get_text() == "mine"
    assert "my share" in [t.get_text() for t in ax.texts], "no arrow: nobody said which way is better"


def test_summary_frame_has_a_row_per_estimate_without_differences(frame, summary):
    assert len(frame) == sum("." in k and "setting" not in k and "minus" not in k for k in summary)
    row = frame[(frame["method"] == "l2s") & (frame["metric"] == "cosine")].iloc[0]
    assert (row["value"], row["low"], row["high"], row["n"]) == (0.9, 0.88, 0.92, 40)


def test_summary_frame_gives_wilson_intervals_to_shares_alone():
    estimate = {"value": 1.0, "low": 1.0, "high": 1.0, "n": 24}
    over = {"l2s_over_mean.refuse_harmful": estimate | {"value": -0.2}}  # a difference is no share
    shares = plots.summary_frame({"l2s.refuse_harmful": estimate, "l2s.distinct2": estimate} | over)
    assert shares["method"].tolist() == ["l2s", "l2s"]
    wilson = share_interval(24, 24)
    assert tuple(shares.loc[0, ["low", "high"]]) == pytest.approx((wilson.low, wilson.high))
    assert shares.loc[0, "low"] < 0.9 and shares.loc[1, "low"] == 1.0


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


def test_every_setting_is_drawn_once(grid, ax):
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


def test_goal_ends_at_one_and_limits_contain_all_settings(grid):
    goal = artists(trade_off(grid))["goal"]
    assert isinstance(goal, Rectangle)
    assert goal.get_corners()[2].tolist() == [1.0, 1.0]
    wide = grid.assign(refuse_harmful=grid["refuse_harmful"] * 1.5 - 0.2)
    ax = trade_off(wide, goal=(0.7, 0.6))
    assert artists(ax)["goal"].get_xy() == (0.7, 0.6)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("Refuses harmful ↑", "Defers to expert ↑")
    for (low, high), name in ((ax.get_xlim(), "refuse_harmful"), (ax.get_ylim(), "defer_expert")):
        assert low < wide[name].min() and high > wide[name].max()


def test_front_labels_stand_at_their_front(grid):
    ax = trade_off(grid)
    labels = {t.get_text(): t.xy[0] for t in ax.texts if t.get_text() in ("mean vector", "L2S")}
    for method, label in (("mean", "mean vector"), ("l2s", "L2S")):
        assert labels[label] == artists(ax)[f"{method} front"].get_xdata()[-1]


def test_no_front_without_allowed_settings_and_no_hollow_points_without_limit(grid):
    assert "l2s front" not in artists(trade_off(grid.assign(refuse_expert=0.5)))
    found = artists(trade_off(grid.drop(columns="refuse_expert"), limit=None))
    assert len(found["l2s over limit"].get_offsets()) == 0


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=20))
def test_pareto_front_has_all_points_that_no_other_exceeds(points):
    front = pareto_front(pd.DataFrame(points, columns=["a", "b"]), "a", "b")
    exceeded = {p for p in points for q in points if q != p and q[0] >= p[0] and q[1] >= p[1]}
    assert list(zip(front["a"].tolist(), front["b"].tolist(), strict=True)) == sorted(set(points) - exceeded)


@pytest.fixture
def draw_effect(script):
    draw = script("compare_methods")["effect_curves"]
    return lambda grid=GRID, settings=CURVES: draw(grid, POINTS, plt.subplots()[1], settings=settings)


def test_effect_curve_holds_its_setting_in_order_of_strength_with_an_arrow(draw_effect):
    ax = draw_effect()
    lines = {line.get_label(): line for line in ax.lines}
    np.testing.assert_allclose(lines["mean curve"].get_xydata(), [[0.2, 0.5], [0.4, 0.8], [0.6, 0.9]])
    np.testing.assert_allclose(lines["alphasteer curve"].get_xydata(), [[0.0, 0.7]])
    np.testing.assert_allclose(lines["mean"].get_xydata(), [[0.3, 0.7]])
    assert "p2s curve" not in lines and lines["p2s"].get_markerfacecolor() == "none", "an oracle is an outline"
    assert lines["mean"].get_color() == plots.method_style("mean").color
    (arrow,) = [t for t in ax.texts if t.arrow_patch is not None]
    assert (tuple(arrow.xy), tuple(arrow.xyann)) == ((0.6, 0.9), (0.4, 0.8)), "it points to the largest strength"
    assert "↓" in ax.get_xlabel() and "↑" in ax.get_ylabel()


def test_effect_axis_separates_shares_near_zero_and_near_one(draw_effect):
    to_axes = draw_effect().get_xaxis().get_transform()
    x = to_axes.transform(np.array([0, 0.02, 0.49, 0.51, 0.98, 1]))
    assert x[1] - x[0] == pytest.approx(x[5] - x[4]) and x[1] - x[0] > 5 * (x[3] - x[2])
    np.testing.assert_allclose(to_axes.inverted().transform(x), [0, 0.02, 0.49, 0.51, 0.98, 1])


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda frame, grid, effect: plots.method_bars(frame.drop(columns="low"), SHOWN), "low"),
        (lambda frame, grid, effect: plots.method_bars(pd.concat([frame, frame]), SHOWN),
         "needs one row for each method"),
        (lambda frame, grid, effect: plots.method_bars(frame, ["nonsense"]), "nonsense"),
        (lambda frame, grid, effect: plots.method_bars(frame, []), "metrics"),
        (lambda frame, grid, effect: plots.summary_frame({"seconds": 3}), "seconds"),
        (lambda frame, grid, effect: plots.read_summary(Path("nowhere")), r"summary\.json"),
        (lambda frame, grid, effect: trade_off(grid.drop(columns="refuse_expert")), "refuse_expert"),
        (lambda frame, grid, effect: trade_off(grid[:0]), "0 rows"),
        (lambda frame, grid, effect: trade_off(grid, chosen={"l2s": {"layer": 99}}), "99"),
        (lambda frame, grid, effect: trade_off(grid, chosen={"l2s": {"rank": 9}}), "rank"),
        (lambda frame, grid, effect: effect(settings={"mean": {"layer": "3"}}), "mean has 0 rows"),
        (lambda frame, grid, effect: effect(settings={"mean": {"options": ""}}),
         "1 of them with a strength that another row has"),
        (lambda frame, grid, effect: effect(GRID.drop(columns="refuse_harmful"), {}), "refuse_harmful"),
    ],
)  # fmt: skip
def test_missing_columns_metrics_and_settings_are_named(frame, grid, draw_effect, draw, message):
    with pytest.raises(DataError, match=message):
        draw(frame, grid, draw_effect)
