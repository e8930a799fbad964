"""Bootstrap and Wilson intervals."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from steerlab.errors import DataError
from steerlab.metrics import Estimate, bootstrap_ci, bootstrap_ratio, paired_bootstrap, share_interval

numbers = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=25)


@given(numbers, st.sampled_from(["mean", "median"]))
def test_interval_contains_the_statistic_and_stays_in_range(values: list[float], statistic: str) -> None:
    got = bootstrap_ci(values, statistic=statistic, n_boot=200)  # type: ignore[arg-type]
    assert got.value == getattr(np, statistic)(values)
    assert got.low <= got.value <= got.high
    slack = 1e-9 * max(1.0, *map(abs, values))
    assert min(values) - slack <= got.low and got.high <= max(values) + slack
    assert got.n == len(values)


def test_ratio_divides_sums_and_resamples_pairs() -> None:
    rng = np.random.default_rng(0)
    wholes = rng.uniform(1, 9, 300)
    got = bootstrap_ratio(0.5 * wholes, wholes)
    assert got.value == got.low == got.high == 0.5, "each part belongs to its whole"
    parts = wholes * rng.uniform(0, 1, 300)
    got, spread = bootstrap_ratio(parts, wholes, seed=1), (parts - parts.sum() / wholes.sum() * wholes).std()
    assert got.value == pytest.approx(parts.sum() / wholes.sum()) and got.low < got.value < got.high
    deviation = spread / wholes.mean() / 300**0.5  # by the delta method
    assert got.high - got.low == pytest.approx(2 * 1.96 * deviation, rel=0.1)
    with pytest.raises(DataError, match="2 parts and 1 wholes"):
        bootstrap_ratio([1, 2], [1])
    few = bootstrap_ratio([1, 1, 1], [2, 0, 0])
    assert few.value == 1.5 and np.isnan([few.low, few.high]).all(), "some resamples have no whole"


def test_equal_seeds_give_equal_intervals() -> None:
    values = np.random.default_rng(1).normal(size=50)
    assert bootstrap_ci(values, seed=3) == bootstrap_ci(values, seed=3)
    assert bootstrap_ci(values, seed=3) != bootstrap_ci(values, seed=4)


def test_width_equals_the_standard_error() -> None:
    values = np.random.default_rng(0).normal(size=400)
    got = bootstrap_ci(values)
    assert got.high - got.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.08)


def test_coverage_is_near_the_level() -> None:
    rng = np.random.default_rng(0)
    hits = [(e := bootstrap_ci(rng.random(40) < 0.3, n_boot=300)).low <= 0.3 <= e.high for _ in range(300)]
    assert 0.90 <= np.mean(hits) <= 0.98


def test_batched_resamples_are_the_same_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.arange(30.0)
    whole = bootstrap_ci(values)
    monkeypatch.setattr("steerlab.metrics.bootstrap._DRAWS_AT_ONCE", 100)
    parts = bootstrap_ci(values)
    assert (parts.low, parts.high) == pytest.approx((whole.low, whole.high))


def test_paired_differences_cancel_common_parts() -> None:
    shared = np.random.default_rng(0).normal(scale=100, size=60)
    got = paired_bootstrap(shared + 1, shared)
    assert (got.low, got.value, got.high) == pytest.approx((1, 1, 1))
    assert paired_bootstrap(shared, shared) == Estimate(0.0, 0.0, 0.0, 60)


def test_swapping_pairs_negates() -> None:
    a, b = np.random.default_rng(0).random((2, 30))
    forth, back = paired_bootstrap(a, b), paired_bootstrap(b, a)
    assert forth.value == -back.value
    assert (forth.low, forth.high) == pytest.approx((-back.high, -back.low))


@given(st.integers(1, 200), st.floats(0, 1), st.sampled_from([0.8, 0.95, 0.99]))
def test_share_interval_is_the_wilson_score_interval(n: int, share: float, level: float) -> None:
    k, z = round(share * n), norm.ppf((1 + level) / 2)
    found = share_interval(k, n, level=level)
    center = (k + z**2 / 2) / (n + z**2)
    half_width = z / (n + z**2) * (k * (n - k) / n + z**2 / 4) ** 0.5
    assert (found.value, found.n) == (k / n, n)
    assert (found.low, found.high) == pytest.approx((center - half_width, center + half_width), abs=1e-9)
    assert found.low <= found.value <= found.high and found.low < found.high


@pytest.mark.parametrize(
    "bad", [dict(k=2, n=1), dict(k=-1, n=1), dict(k=0, n=0), dict(k=1, n=2, level=1.0), dict(k=1, n=2, level=0.0)]
)
def test_share_interval_of_impossible_counts_is_refused(bad: dict) -> None:
    with pytest.raises(DataError, match="share_interval got"):
        share_interval(**bad)


def test_pairs_of_labeled_values_are_joined_on_their_labels() -> None:
    a, b = (pd.Series(np.random.default_rng(seed).normal(size=40), index=map(str, range(40))) for seed in (1, 2))
    assert paired_bootstrap(a, b.sample(frac=1, random_state=0)) == paired_bootstrap(a, b)
    with pytest.raises(DataError, match="row numbers in another order"):  # of two tables sorted by the example
        paired_bootstrap(a.reset_index(drop=True), b.reset_index(drop=True).sample(frac=1, random_state=0))
    later = pd.Series(b.to_numpy(), index=range(40, 80))  # of one long table: other labels, the same order
    assert paired_bootstrap(a, later) == paired_bootstrap(a, b)
    keyed = pd.concat({"mean": b.sample(frac=1, random_state=0)})  # by method and example, in another order
    for other in (b.iloc[1:].rename({"1": "40"}), b.rename({"1": "0"}), b.add_prefix("x"), keyed):
        with pytest.raises(DataError, match="some labels only or none, or repeat some"):
            paired_bootstrap(pd.concat({"l2s": a}) if other is keyed else a.iloc[: len(other)], other)
