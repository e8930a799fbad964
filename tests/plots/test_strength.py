"""Lines against alpha and their labels."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steerlab._support.errors import DataError
from steerlab.plots import strength_curves
from steerlab.plots.strength import separate_labels

WHERE = {"layer": 16, "positions": "all", "sentences": "short"}
TWO = ("refuse_harmful", "defer_expert")


def test_one_line_a_method_and_measure(grid: pd.DataFrame) -> None:
    _, ax = plt.subplots()
    assert strength_curves(grid.sample(frac=1, random_state=0), TWO, ax, **WHERE) is ax
    lines = {line.get_label(): line for line in ax.lines}
    assert set(lines) == {f"{m} {name}" for m in ("mean", "l2s") for name in TWO}
    rows = grid[(grid["method"] == "l2s") & (grid[list(WHERE)] == pd.Series(WHERE)).all(axis=1)]
    np.testing.assert_allclose(lines["l2s defer_expert"].get_xydata(), rows[["alpha", "defer_expert"]])
    assert lines["l2s defer_expert"].get_linestyle() != lines["l2s refuse_harmful"].get_linestyle()
    low, high = ax.get_ylim()
    assert low < rows[list(TWO)].min().min() and rows[list(TWO)].max().max() < high


def test_words(grid: pd.DataFrame) -> None:
    ax = strength_curves(grid, TWO, **WHERE)
    assert {t.get_text() for t in ax.texts} == {
        f"{m}: {w}" for m in ("L2S", "mean vector") for w in ("refuses harmful", "defers to expert")
    }
    assert "α" in ax.get_xlabel()
    assert [t.get_text() for t in ax.get_xticklabels()] == ["0.7", "1", "1.5"]


def test_ambiguous_and_empty_choices_are_refused(grid: pd.DataFrame) -> None:
    with pytest.raises(DataError, match="sentences"):
        strength_curves(grid, TWO, layer=16, positions="all")
    with pytest.raises(DataError, match="0 of 48"):
        strength_curves(grid, TWO, layer=99)
    with pytest.raises(DataError, match="nonsense"):
        strength_curves(grid, ("nonsense",), **WHERE)
    with pytest.raises(DataError, match="5 measures"):
        strength_curves(grid, (*TWO, "distinct2", "harmless_kept", "refuse_expert"), **WHERE)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.01, 0.2))
def test_spread_keeps_order_and_distance(heights: list[float], gap: float) -> None:
    got = np.array(separate_labels(heights, gap))
    order = np.argsort(heights, kind="stable")
    assert (np.diff(got[order]) >= gap - 1e-9).all()
    assert got.mean() == pytest.approx(np.mean(heights), abs=1e-9)
    if (np.diff(np.array(heights)[order]) >= gap).all():
        np.testing.assert_allclose(got, heights, atol=1e-9)
