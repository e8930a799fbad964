"""Laws from a coordinate to a coefficient: bounded, monotone, and fitted to what inputs need."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from steerlab._support.errors import DataError
from steerlab.methods.adasteer.schedules import Logistic, Ramp, fit_schedule
from steerlab.methods.serialization import deserialize, serialize

numbers = st.floats(-3, 3)
ordered = st.tuples(numbers, numbers).map(sorted)
ramps = st.builds(lambda m, b, lh: Ramp(m, b, *lh), numbers, numbers, ordered)
logistics = st.builds(lambda m, b, lh: Logistic(m, b, *lh), numbers, numbers, ordered)
P = torch.linspace(-400, 400, 801)


@given(st.one_of(ramps, logistics))
def test_a_law_is_monotone_in_p_and_stays_within_its_bounds(law):
    values, steps = law(P), law(P).diff()
    assert bool((steps * (1 if law.slope >= 0 else -1) >= -1e-6).all())  # exp itself is rounded
    low, high = torch.tensor([law.low, law.high])  # as float32, in which coefficients are
    assert float(values.min()) >= float(low) and float(values.max()) <= float(high)


@given(st.one_of(ramps, logistics))
def test_negating_a_law_negates_its_values_and_twice_is_none(law):
    torch.testing.assert_close(law.negated()(P), -law(P), atol=1e-5, rtol=1e-5)
    assert law.negated().negated() == law


@given(numbers, numbers, numbers, numbers)
def test_a_step_between_two_values_starts_at_the_weak_one_whichever_is_larger(slope, intercept, weak, strong):
    step = Logistic(slope, intercept)
    law = step.with_range(weak, strong)
    torch.testing.assert_close(law(P), weak + (strong - weak) * step(P), atol=1e-5, rtol=1e-5)


def test_a_ramp_may_lack_either_bound():
    open_above = Ramp(-0.05, -0.75, low=-0.75)
    assert open_above(torch.tensor([-105.0, 0.0, 95.0])).tolist() == pytest.approx([4.5, -0.75, -0.75])
    assert open_above.negated() == Ramp(0.05, 0.75, high=0.75)
    assert Ramp(2.0, 1.0)(torch.tensor([-3.0, 3.0])).tolist() == [-5, 7]


@given(logistics, st.floats(0.02, 3))
def test_the_ramp_of_a_step_touches_it_at_the_middle_and_ends_where_it_ends(law, slope):
    law = Logistic(slope, law.intercept, law.low, law.high)
    ramp, middle = law.ramp(), torch.tensor([-law.intercept / slope])
    torch.testing.assert_close(ramp(middle), law(middle), atol=1e-4, rtol=1e-4)
    assert ramp.slope == pytest.approx((law.high - law.low) * slope / 4)
    assert (ramp.low, ramp.high) == (law.low, law.high)
    torch.testing.assert_close(ramp(torch.tensor([-1e4, 1e4])), torch.tensor([law.low, law.high]))


@given(st.integers(0, 10_000), st.integers(2, 30), st.floats(0.1, 500), st.floats(-200, 200))
def test_the_fit_is_scikit_learns_on_the_standardized_coordinate(seed, n, scale, shift):
    draw = torch.Generator().manual_seed(seed)
    p = scale * torch.cat([torch.randn(n, generator=draw), torch.randn(n, generator=draw) + 1]) + shift
    needs = [True] * n + [False] * n
    law = fit_schedule(p, needs)
    x = p.double().numpy()
    z = ((x - x.mean()) / x.std())[:, None]
    theirs = LogisticRegression().fit(z, needs).predict_proba(z)[:, 1]
    np.testing.assert_allclose(law(p.double()).numpy(), theirs, atol=2e-3)


def test_the_fit_does_not_depend_on_the_order_or_kind_of_labels():
    p, needs = torch.tensor([3.0, 10.0, 40.0, 55.0, 80.0, 120.0]), [1, 1, 0, 1, 0, 0]
    law = fit_schedule(p, needs, -0.2, 0.4)
    assert law.slope < 0 and (law.low, law.high) == (-0.2, 0.4)
    again = fit_schedule(p.flip(0), torch.tensor(needs[::-1]).bool(), -0.2, 0.4)
    assert (again.slope, again.intercept) == pytest.approx((law.slope, law.intercept), rel=1e-4)


def test_separable_labels_give_a_finite_step_halfway_between_the_classes():
    law = fit_schedule(torch.tensor([0.0, 2.0, -2.0, 98.0, 100.0, 102.0]), [1, 1, 1, 0, 0, 0])
    assert -1 < law.slope < 0
    assert -law.intercept / law.slope == pytest.approx(50, abs=1e-3)


@pytest.mark.parametrize(
    ("p", "needs", "told"),
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
def test_what_can_not_be_fitted_is_refused(p, needs, told):
    with pytest.raises(DataError, match=told):
        fit_schedule(torch.tensor(p), needs)


@pytest.mark.parametrize("law", [Ramp, Logistic])
@pytest.mark.parametrize(
    ("numbers", "told"),
    [((0.1, 0.0, 2.0, 1.0), "low=2.0 is above high=1.0"), ((math.nan, 0.0, 0.0, 1.0), r"\['slope'\].*not finite")],
)
def test_bounds_in_the_wrong_order_and_numbers_that_are_none_are_refused(law, numbers, told):
    with pytest.raises(DataError, match=told):
        law(*numbers)


@pytest.mark.parametrize("law", [Ramp(-0.05, -0.75, -0.75, None), Logistic(-0.1, 5.0, -1.5, 0.0)])
def test_laws_survive_storage(law):
    tensors: dict = {}
    assert deserialize(serialize(law, tensors, "law"), tensors) == law and tensors == {}
