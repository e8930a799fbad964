"""Coefficient schedules: bounds, monotonicity, fit and storage."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from steerlab.errors import DataError
from steerlab.methods.adasteer.schedules import Logistic, Ramp, fit_schedule
from steerlab.methods.serialization import deserialize, serialize

numbers = st.floats(-3, 3)
ordered = st.tuples(numbers, numbers).map(sorted)
ramps = st.builds(lambda m, b, lh: Ramp(m, b, *lh), numbers, numbers, ordered)
logistics = st.builds(lambda m, b, lh: Logistic(m, b, *lh), numbers, numbers, ordered)
P = torch.linspace(-400, 400, 801)


@given(st.one_of(ramps, logistics))
def test_schedules_are_monotone_and_bounded(schedule):
    values, steps = schedule(P), schedule(P).diff()
    assert bool((steps * (1 if schedule.slope >= 0 else -1) >= -1e-6).all())  # exp itself is rounded
    low, high = torch.tensor([schedule.low, schedule.high])  # as float32, in which coefficients are
    assert float(values.min()) >= float(low) and float(values.max()) <= float(high)


@given(ramps)
def test_negative_of_a_ramp_negates_its_values(ramp):
    torch.testing.assert_close((-ramp)(P), -ramp(P), atol=1e-5, rtol=1e-5)


@given(numbers, numbers, numbers, numbers)
def test_with_range_starts_at_weak_and_ends_at_strong_in_either_order(slope, intercept, weak, strong):
    step = Logistic(slope, intercept)
    torch.testing.assert_close(step.with_range(weak, strong)(P), weak + (strong - weak) * step(P), atol=1e-5, rtol=1e-5)


def test_ramp_without_a_bound_is_unbounded():
    open_above = Ramp(-0.05, -0.75, low=-0.75)
    assert open_above(torch.tensor([-105.0, 0.0, 95.0])).tolist() == pytest.approx([4.5, -0.75, -0.75])
    assert -open_above == Ramp(0.05, 0.75, high=0.75)
    assert Ramp(2.0, 1.0)(torch.tensor([-3.0, 3.0])).tolist() == [-5, 7]


@given(logistics, st.floats(0.02, 3))
def test_ramp_of_a_logistic_is_its_clipped_tangent(schedule, slope):
    schedule = Logistic(slope, schedule.intercept, schedule.low, schedule.high)
    ramp, middle = schedule.ramp(), torch.tensor([-schedule.intercept / slope])
    torch.testing.assert_close(ramp(middle), schedule(middle), atol=1e-4, rtol=1e-4)
    assert ramp.slope == pytest.approx((schedule.high - schedule.low) * slope / 4)
    assert (ramp.low, ramp.high) == (schedule.low, schedule.high)
    torch.testing.assert_close(ramp(torch.tensor([-1e4, 1e4])), torch.tensor([schedule.low, schedule.high]))


@given(st.integers(0, 10_000), st.integers(2, 30), st.floats(0.1, 500), st.floats(-200, 200))
def test_fit_equals_scikit_learn_on_the_standardized_coordinate(seed, n, scale, shift):
    draw = torch.Generator().manual_seed(seed)
    p = scale * torch.cat([torch.randn(n, generator=draw), torch.randn(n, generator=draw) + 1]) + shift
    needs = [True] * n + [False] * n
    schedule = fit_schedule(p, needs)
    x = p.double().numpy()
    z = ((x - x.mean()) / x.std())[:, None]
    expected = LogisticRegression().fit(z, needs).predict_proba(z)[:, 1]
    np.testing.assert_allclose(schedule(p.double()).numpy(), expected, atol=2e-3)


def test_fit_is_independent_of_order_and_label_type():
    p, needs = torch.tensor([3.0, 10.0, 40.0, 55.0, 80.0, 120.0]), [1, 1, 0, 1, 0, 0]
    schedule = fit_schedule(p, needs, -0.2, 0.4)
    assert schedule.slope < 0 and (schedule.low, schedule.high) == (-0.2, 0.4)
    again = fit_schedule(p.flip(0), torch.tensor(needs[::-1]).bool(), -0.2, 0.4)
    assert (again.slope, again.intercept) == pytest.approx((schedule.slope, schedule.intercept), rel=1e-4)


def test_fit_of_separable_labels_is_finite():
    schedule = fit_schedule(torch.tensor([0.0, 2.0, -2.0, 98.0, 100.0, 102.0]), [1, 1, 1, 0, 0, 0])
    assert -1 < schedule.slope < 0
    assert -schedule.intercept / schedule.slope == pytest.approx(50, abs=1e-3)


@pytest.mark.parametrize(
    ("p", "needs", "message"),
    [
        ([1.0, 2.0, 3.0], [1, 1, 1], "3 inputs need strong steering and 0 do not"),
        ([1.0, 2.0, 3.0], [1, 0, 0], "1 inputs need strong steering and 2 do not; at least two"),
        ([1.0, 2.0, 3.0], [1, 0], r"3 coordinates but labels of shape \(2,\)"),
        ([1.0, math.nan, 3.0, 4.0], [1, 0, 1, 0], "1 of 4 coordinates are NaN"),
        ([1.0, math.inf, 3.0, 4.0], [1, 0, 1, 0], "1 of 4 coordinates are NaN or infinite"),
        ([1.0, 2.0, 3.0, 4.0], [1, 2, 1, 0], "labels are 0 and 1"),
        ([1.0, 2.0, 3.0, 4.0], torch.tensor([1, math.nan, 1, 0]), "labels are 0 and 1"),
        ([5.0, 5.0, 5.0, 5.0], [1, 0, 1, 0], "all 4 inputs have the coordinate 5.0"),
        ([], [], "0 inputs need"),
    ],
)
def test_fit_refuses_bad_input(p, needs, message):
    with pytest.raises(DataError, match=message):
        fit_schedule(torch.tensor(p), needs)


@pytest.mark.parametrize("schedule", [Ramp, Logistic])
@pytest.mark.parametrize(
    ("numbers", "message"),
    [((0.1, 0.0, 2.0, 1.0), "low=2.0 is above high=1.0"), ((math.nan, 0.0, 0.0, 1.0), r"\['slope'\].*not finite")],
)
def test_bounds_in_wrong_order_or_not_finite_are_refused(schedule, numbers, message):
    with pytest.raises(DataError, match=message):
        schedule(*numbers)


@pytest.mark.parametrize("schedule", [Ramp(-0.05, -0.75, -0.75, None), Logistic(-0.1, 5.0, -1.5, 0.0)])
def test_schedules_can_be_saved(schedule):
    tensors: dict = {}
    assert deserialize(serialize(schedule, tensors, "schedule"), tensors) == schedule and tensors == {}
