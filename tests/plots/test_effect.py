"""Effect against side effect: a curve a method, and its point on other inputs."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from steerlab._support.errors import DataError
from steerlab.plots import effect_curves, method_style

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
SETTINGS = {"mean": {"layer": "15", "options": ""}, "alphasteer": {"layer": "16", "options": "dead_zone=0.5"}}


def test_a_curve_holds_the_chosen_place_alone_in_the_order_of_strength() -> None:
    ax = effect_curves(GRID, POINTS, settings=SETTINGS)
    lines = {line.get_label(): line for line in ax.lines}
    np.testing.assert_allclose(lines["mean curve"].get_xydata(), [[0.2, 0.5], [0.4, 0.8], [0.6, 0.9]])
    np.testing.assert_allclose(lines["alphasteer curve"].get_xydata(), [[0.0, 0.7]])
    np.testing.assert_allclose(lines["mean"].get_xydata(), [[0.3, 0.7]])
    assert "p2s curve" not in lines and lines["p2s"].get_markerfacecolor() == "none", "an oracle is an outline"
    assert lines["mean"].get_color() == method_style("mean").color
    assert "↓" in ax.get_xlabel() and "↑" in ax.get_ylabel()


def test_settings_that_leave_nothing_or_several_are_refused() -> None:
    with pytest.raises(DataError, match="mean has 0 rows"):
        effect_curves(GRID, POINTS, settings={"mean": {"layer": "3"}})
    with pytest.raises(DataError, match="1 of them with a strength that another has"):
        effect_curves(GRID, POINTS, settings={"mean": {"options": ""}})
    with pytest.raises(DataError, match="refuse_harmful"):
        effect_curves(GRID.drop(columns="refuse_harmful"), POINTS, settings={})
