"""The Unsafe-score: threshold grids, curves and their intervals."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steerlab.errors import DataError
from steerlab.metrics import expected_unsafe, threshold_grid, unsafe_curve

probabilities = st.lists(st.floats(0, 1), min_size=1, max_size=20)


@pytest.mark.parametrize(("t", "published", "exact"), [(0.5, 25, 25), (0.7, 16, 15), (0.9, 5, 5)])
def test_grids_have_the_published_size(t: float, published: int, exact: int) -> None:
    assert len(threshold_grid(t)) == published == len(np.arange(t, 1, 0.02))
    grid = threshold_grid(t, rule="exact")
    assert len(grid) == exact and grid.max() < 1
    np.testing.assert_allclose(np.diff(grid), 0.02)


@given(st.integers(0, 99))
def test_grids_start_at_t_and_end_at_most_at_one(hundredths: int) -> None:
    for grid in (threshold_grid(hundredths / 100), threshold_grid(hundredths / 100, rule="exact")):
        assert grid[0] == hundredths / 100 and grid[-1] <= 1


@given(probabilities)
def test_curve_is_the_decreasing_share_above_each_threshold(p: list[float]) -> None:
    taus = threshold_grid(0.0)
    assert unsafe_curve([0.5], [0.5])["value"].tolist() == [0.0], "equal is not above"
    curve = unsafe_curve(p, taus, n_boot=10)["value"]
    np.testing.assert_allclose(curve, [np.mean([x > tau for x in p]) for tau in taus])
    assert np.all(np.diff(curve) <= 0) and 0 <= curve.min() <= curve.max() <= 1


@given(probabilities)
def test_expected_score_decreases_with_t(p: list[float]) -> None:
    values = [expected_unsafe(p, t, rule="exact", n_boot=10).value for t in (0.5, 0.7, 0.9)]
    assert all(low <= high + 1e-12 for high, low in itertools.pairwise(values))
    assert expected_unsafe(p, 0.7, n_boot=10).value == pytest.approx(15 / 16 * values[1])


@given(probabilities, st.sampled_from([0.5, 0.7, 0.9]), st.integers(0, 99))
def test_expected_score_is_the_mean_of_the_curve_with_a_bootstrap_interval(p: list[float], t: float, seed: int) -> None:
    grid, found = threshold_grid(t), expected_unsafe(p, t, n_boot=40, seed=seed)
    curve = unsafe_curve(p, grid, n_boot=40, seed=seed)
    assert found.value == pytest.approx(curve["value"].mean()) and found.n == len(p)
    drawn = np.array(p)[np.random.default_rng(seed).integers(len(p), size=(40, len(p)))]
    low, high = np.quantile([np.mean([np.mean(row > tau) for tau in grid]) for row in drawn], [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx((min(low, found.value), max(high, found.value)))
    assert expected_unsafe(p, t, n_boot=40, seed=seed) == found


def test_interval_of_the_curve_contains_it_and_depends_on_the_seed() -> None:
    p = np.random.default_rng(1).beta(0.4, 0.6, 80)
    frame, again = unsafe_curve(p, threshold_grid(0.1)), unsafe_curve(p, threshold_grid(0.1))
    assert list(frame) == ["threshold", "value", "low", "high", "n"] and frame.equals(again)
    assert frame["threshold"].tolist() == threshold_grid(0.1).tolist() and (frame["n"] == 80).all()
    assert (frame["low"] < frame["value"]).all() and (frame["value"] < frame["high"]).iloc[:-1].all()
    assert all((np.diff(frame[name]) <= 0).all() for name in ("value", "low", "high"))
    narrow, other = unsafe_curve(p, [0.5], level=0.5), unsafe_curve(p, [0.5], seed=1, n_boot=100)
    at = frame[np.isclose(frame["threshold"], 0.5)].iloc[0]
    assert at["low"] < narrow["low"][0] and narrow["high"][0] < at["high"]
    assert (other["low"][0], other["high"][0]) != (at["low"], at["high"])


@pytest.mark.parametrize("bad", [[], [float("nan")], [1.2], [-0.1], [[0.5]]])
def test_bad_probabilities_are_refused(bad: list[float]) -> None:
    with pytest.raises(DataError):
        expected_unsafe(bad, 0.5)


@pytest.mark.parametrize("t", [1.0, -0.1, 0.505, float("nan")])
def test_bad_thresholds_are_refused(t: float) -> None:
    with pytest.raises(DataError, match="hundredths"):
        threshold_grid(t)
