"""Lines and shapes read off the artists."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from steerlab._support.errors import DataError
from steerlab.plots import propensity_lines, slope_distributions
from steerlab.plots.slopes import BACK
from steerlab.plots.steerability import readable_name


@pytest.fixture
def curves() -> pd.DataFrame:
    rows = [
        (name, layer, alpha, slope * alpha + layer)
        for name, slope in (("openness", 2.0), ("narcissism", -1.0), ("self-awareness-text-model", 2.1))
        for layer in (3, 4)
        for alpha in (-1.5, 0.0, 1.5)
    ]
    frame = pd.DataFrame(rows, columns=["behavior", "layer", "alpha", "mean"])
    return frame.assign(low=frame["mean"] - 0.2, high=frame["mean"] + 0.2, method="mean")


@pytest.fixture
def slopes() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    parts = [
        pd.DataFrame(
            {"behavior": name, "example_id": [f"{name}/{i}" for i in range(80)], "slope": rng.normal(m, 1, 80)}
        )
        for name, m in (("low", 0.0), ("high", 3.0), ("middle", 1.0))
    ]
    return pd.concat([*parts, pd.DataFrame({"behavior": "equal", "example_id": ["equal/0", "equal/1"], "slope": 2.0})])


def test_one_labeled_line_a_behavior(curves: pd.DataFrame) -> None:
    _, ax = plt.subplots()
    assert propensity_lines(curves.sample(frac=1, random_state=0), ax, layer=3) is ax
    lines = {line.get_label(): line for line in ax.lines}
    for name in curves["behavior"].unique():
        here = curves[(curves["behavior"] == name) & (curves["layer"] == 3)]
        assert lines[name].get_xdata().tolist() == here["alpha"].tolist()
        assert lines[name].get_ydata().tolist() == here["mean"].tolist()
    assert len(ax.collections) == 3
    heights = {t.get_text(): t.xy[1] for t in ax.texts}
    assert set(heights) == {"openness", "narcissism", "self awareness text model"}
    bottom, top = ax.get_ylim()
    assert min(np.diff(sorted(heights.values()))) >= 0.0599 * (top - bottom)


def test_only_the_highlighted_are_named(curves: pd.DataFrame) -> None:
    ax = propensity_lines(curves, highlight=["openness"], labels={"openness": "Open"}, layer=4)
    assert [t.get_text() for t in ax.texts] == ["Open"]
    assert len(ax.collections) == 1
    ax = propensity_lines(curves[curves["behavior"] == "openness"], hue="method", layer=4)
    assert [t.get_text() for t in ax.texts] == ["mean vector"]


def test_unclear_curves_are_refused(curves: pd.DataFrame) -> None:
    with pytest.raises(DataError, match=r"\['layer'\]"):
        propensity_lines(curves)
    with pytest.raises(DataError, match="leaves 0"):
        propensity_lines(curves, layer=9)
    with pytest.raises(DataError, match="unknown"):
        propensity_lines(curves, highlight=["nothing"], layer=3)
    with pytest.raises(DataError, match="lacks"):
        propensity_lines(curves.drop(columns="low"), layer=3)
    many = pd.concat([curves[curves["layer"] == 3].assign(behavior=f"set{i}") for i in range(9)])
    with pytest.raises(DataError, match="highlight"):
        propensity_lines(many.drop_duplicates(["behavior", "alpha"]))


def test_rows_fall_by_median_and_carry_their_share(slopes: pd.DataFrame) -> None:
    ax = slope_distributions(slopes)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["high", "equal", "middle", "low"]
    shares = [t for t in ax.texts if t.get_text().endswith("%")]
    wrong = slopes.assign(wrong=slopes["slope"] <= 0).groupby("behavior")["wrong"].mean()
    assert [t.get_text() for t in shares] == [f"{wrong[n]:.0%}" for n in ("high", "equal", "middle", "low")]
    assert [t.xy[1] for t in shares] == [0, 1, 2, 3]
    left, right = ax.get_xlim()
    inner = slopes.groupby("behavior")["slope"].quantile([0.01, 0.99])
    assert left <= inner.min() and right >= inner.max()


def test_the_wrong_side_has_its_color(slopes: pd.DataFrame) -> None:
    ax = slope_distributions(slopes[slopes["behavior"] == "low"])
    forth, back = (shape.get_paths()[0].vertices[:, 0] for shape in ax.collections)
    assert forth.min() == 0 == back.max()
    assert plt.matplotlib.colors.to_hex(ax.collections[1].get_facecolor()[0]).upper() == BACK.color


def test_reference_and_order(slopes: pd.DataFrame) -> None:
    paper = pd.DataFrame({"behavior": ["low", "unknown", "high"], "median": [0.5, 9.0, 4.0]})
    ax = slope_distributions(slopes, order=["low", "high"], reference=paper, labels={"low": "Low one"})
    assert [t.get_text() for t in ax.get_yticklabels()] == ["Low one", "high"]
    marks = next(line for line in ax.lines if line.get_marker() == "D")
    assert (list(marks.get_xdata()), list(marks.get_ydata())) == ([0.5, 4.0], [0, 1])
    said = [t.get_text() for t in ax.get_legend().get_texts()]
    assert said == ["moved as meant", "moved the wrong way", "median", "paper's median, Llama-2-7B"]


def test_unclear_slopes_are_refused(slopes: pd.DataFrame) -> None:
    with pytest.raises(DataError, match=r"\['layer'\]"):
        slope_distributions(pd.concat([slopes.assign(layer=1), slopes.assign(layer=2)]))
    with pytest.raises(DataError, match="1 NaN"):
        slope_distributions(pd.concat([slopes, pd.DataFrame({"behavior": ["x"], "slope": [np.nan]})]))
    with pytest.raises(DataError, match="nothing"):
        slope_distributions(slopes, order=["nothing"])
    with pytest.raises(DataError, match="lacks"):
        slope_distributions(slopes.drop(columns="slope"))


def test_names_in_words() -> None:
    assert readable_name("sycophancy_test") == "sycophancy test"
    long = readable_name("willingness-to-use-physical-force-to-achieve-benevolent-goals")
    assert len(long) <= 44 and long.endswith("…")
