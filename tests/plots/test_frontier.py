"""Cells, fronts, goal and chosen cell, read off the artists."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.patches import Rectangle

from steerlab._support.errors import DataError
from steerlab.plots import pareto_front, trade_off

CELL = {"layer": 16, "alpha": 1.0, "positions": "all", "sentences": "short", "targets": "raw"}


def artists(ax: plt.Axes) -> dict[str, object]:
    return {a.get_label(): a for a in [*ax.collections, *ax.lines, *ax.patches]}


def test_every_cell_is_drawn_once(grid: pd.DataFrame) -> None:
    _, ax = plt.subplots()
    assert trade_off(grid, ax=ax, chosen={"l2s": CELL}) is ax
    found = artists(ax)
    for method in ("mean", "l2s"):
        cells = grid[grid["method"] == method]
        for name, rows in (
            ("cells", cells[cells["refuse_expert"] <= 0.03]),
            ("cells over limit", cells[cells["refuse_expert"] > 0.03]),
        ):
            drawn = found[f"{method} {name}"].get_offsets()
            np.testing.assert_allclose(drawn, rows[["refuse_harmful", "defer_expert"]])
    assert len(found["l2s cells over limit"].get_facecolor()) == 0  # hollow
    one = grid[(grid["method"] == "l2s") & (grid[list(CELL)] == pd.Series(CELL)).all(axis=1)]
    np.testing.assert_allclose(found["l2s chosen"].get_offsets(), one[["refuse_harmful", "defer_expert"]])
    assert "mean chosen" not in found


def test_goal_labels_and_limits(grid: pd.DataFrame) -> None:
    wide = grid.assign(refuse_harmful=grid["refuse_harmful"] * 1.5 - 0.2)
    ax = trade_off(wide, goal=(0.7, 0.6))
    goal = artists(ax)["goal"]
    assert isinstance(goal, Rectangle)
    assert goal.get_xy() == (0.7, 0.6)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("Refuses harmful ↑", "Defers to expert ↑")
    assert {"goal", "L2S", "mean vector"} <= {t.get_text() for t in ax.texts}
    for (low, high), name in ((ax.get_xlim(), "refuse_harmful"), (ax.get_ylim(), "defer_expert")):
        assert low < wide[name].min()
        assert high > wide[name].max()


def test_without_limit_nothing_is_hollow(grid: pd.DataFrame) -> None:
    found = artists(trade_off(grid.drop(columns="refuse_expert"), limit=None))
    assert len(found["l2s cells over limit"].get_offsets()) == 0


def test_no_cell_within_the_limit_leaves_no_front(grid: pd.DataFrame) -> None:
    assert "l2s front" not in artists(trade_off(grid.assign(refuse_expert=0.5)))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=20))
def test_front_is_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    front = pareto_front(pd.DataFrame(points, columns=["a", "b"]), "a", "b")
    got = list(zip(front["a"].tolist(), front["b"].tolist(), strict=True))
    beaten = {p for p in points for q in points if q != p and q[0] >= p[0] and q[1] >= p[1]}
    assert got == sorted(set(points) - beaten)


def test_errors_name_what_is_missing(grid: pd.DataFrame) -> None:
    with pytest.raises(DataError, match="refuse_expert"):
        trade_off(grid.drop(columns="refuse_expert"))
    with pytest.raises(DataError, match="0 rows"):
        trade_off(grid[:0])
    with pytest.raises(DataError, match="99"):
        trade_off(grid, chosen={"l2s": {"layer": 99}})
    with pytest.raises(DataError, match="rank"):
        trade_off(grid, chosen={"l2s": {"rank": 9}})
