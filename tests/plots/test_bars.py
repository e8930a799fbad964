"""Bars, intervals, text and limits of method_bars, and the frame of a summary."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.container import BarContainer

from steerlab._support.errors import DataError
from steerlab.metrics import share_interval
from steerlab.plots import METHODS, method_bars, metric_style, read_summary, summary_frame

SHOWN = ["refuse_harmful", "refuse_expert", "cosine"]


@pytest.fixture
def frame(summary: dict[str, object]) -> pd.DataFrame:
    return summary_frame(summary)


def test_bars_show_value_and_interval_of_each_method(frame: pd.DataFrame) -> None:
    _, ax = plt.subplots()
    assert method_bars(frame, SHOWN, ax) is ax
    bars = {c.get_label(): c for c in ax.containers if isinstance(c, BarContainer)}
    known = {method: look for method, look in METHODS.items() if method in set(frame["method"])}
    assert list(bars) == [look.label for look in known.values()]
    for method, look in known.items():
        rows = frame[(frame["method"] == method) & frame["metric"].isin(SHOWN)]
        patches = bars[look.label].patches
        assert [p.get_width() for p in patches] == pytest.approx(rows["value"].tolist())
        assert to_hex(patches[0].get_edgecolor()).upper() == look.color
        segments = bars[look.label].errorbar.lines[2][0].get_segments()
        assert [s[:, 0].tolist() for s in segments] == [
            pytest.approx([low, high]) for low, high in zip(rows["low"], rows["high"], strict=True)
        ]


def test_limits_contain_bars_and_intervals(frame: pd.DataFrame) -> None:
    ax = method_bars(frame.assign(high=1.4), SHOWN)
    left, right = ax.get_xlim()
    assert left <= -0.3 and right >= 1.4
    bottom, top = ax.get_ylim()
    assert all(top <= p.get_y() and p.get_y() + p.get_height() <= bottom for p in ax.patches)


def test_text_names_metrics_goals_values_and_methods(frame: pd.DataFrame) -> None:
    ax = method_bars(frame, SHOWN, title="a  Title")
    texts = {t.get_text() for t in ax.texts}
    assert {"a  Title", "goal ≥ 0.80", "goal ≤ 0.03", *(metric_style(m).heading for m in SHOWN)} <= texts
    assert f"{frame['value'].iloc[0]:.2f}" in texts
    known = [look.label for method, look in METHODS.items() if method in set(frame["method"])]
    # only two methods have a cosine
    assert [t.get_text() for t in ax.get_yticklabels()] == [*known, *known, "mean vector", "L2S"]


def test_unknown_methods_and_metrics_are_labeled_by_name() -> None:
    frame = pd.DataFrame({"method": ["mine"], "metric": ["my_share"], "value": [0.5], "low": [0.5], "high": [0.5]})
    ax = method_bars(frame, ["my_share"])
    assert ax.get_yticklabels()[0].get_text() == "mine"
    assert "my share ↑" in [t.get_text() for t in ax.texts]


def test_missing_columns_and_metrics_are_named(frame: pd.DataFrame) -> None:
    with pytest.raises(DataError, match="low"):
        method_bars(frame.drop(columns="low"), SHOWN)
    with pytest.raises(DataError, match="nonsense"):
        method_bars(frame, ["nonsense"])
    with pytest.raises(DataError, match="metrics"):
        method_bars(frame, [])


def test_summary_frame_has_a_row_per_estimate_without_differences(
    frame: pd.DataFrame, summary: dict[str, object]
) -> None:
    assert len(frame) == sum("." in k and "setting" not in k and "minus" not in k for k in summary)
    row = frame[(frame["method"] == "l2s") & (frame["metric"] == "cosine")].iloc[0]
    assert (row["value"], row["low"], row["high"], row["n"]) == (0.9, 0.88, 0.92, 40)


def test_summary_frame_gives_wilson_intervals_to_shares_alone() -> None:
    estimate = {"value": 1.0, "low": 1.0, "high": 1.0, "n": 24}
    shares = summary_frame({"l2s.refuse_harmful": estimate, "l2s.distinct2": estimate})
    wilson = share_interval(24, 24)
    assert tuple(shares.loc[0, ["low", "high"]]) == pytest.approx((wilson.low, wilson.high))
    assert shares.loc[0, "low"] < 0.9 and shares.loc[1, "low"] == 1.0


def test_summary_without_estimates_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="seconds"):
        summary_frame({"seconds": 3})
    with pytest.raises(DataError, match=r"summary\.json"):
        read_summary(tmp_path)
