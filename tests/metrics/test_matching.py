"""Matching of directions and codes: permutations found again, absolute cosines, and what can't be matched."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from steerlab.errors import DataError
from steerlab.metrics import match_codes, match_directions


@given(st.integers(1, 7), st.integers(0, 10**6))
def test_permuted_directions_and_codes_are_matched_exactly(k: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows, order = torch.randn(k, 9, generator=generator), torch.randperm(k, generator=generator)
    found = match_directions(rows[order] * (torch.rand(k, 1, generator=generator) + 0.5), rows)
    assert torch.equal(found.order, order) and torch.allclose(found.similarity, torch.ones(k))
    signs = torch.where(torch.rand(k, generator=generator) < 0.5, -1.0, 1.0)
    assert torch.equal(match_directions(rows[order] * signs[:, None], rows, signed=False).order, order)
    codes = torch.randn(30, k, generator=generator)
    again = match_codes(codes, codes[:, order] * signs + 3)
    assert torch.equal(again.order, order.argsort()) and again.mean == pytest.approx(1)


def test_one_to_one_matching_has_the_largest_sum() -> None:
    first, second = torch.randn(4, 6), torch.randn(5, 6)
    cosines = torch.nn.functional.cosine_similarity(first[:, None], second[None], dim=2)
    best = max(sum(cosines[i, j] for i, j in enumerate(some)) for some in itertools.permutations(range(5), 4))
    assert float(match_directions(first, second).similarity.sum()) == pytest.approx(float(best), abs=1e-5)
    assert torch.equal(match_directions(first, second, one_to_one=False).order, cosines.argmax(1))


def test_correlation_of_codes_is_numpys_and_a_constant_code_has_none() -> None:
    truth, codes = torch.randn(50, 1), torch.randn(50, 2)
    codes[:, 1] = 4.0
    expected = abs(np.corrcoef(truth[:, 0], codes[:, 0])[0, 1])
    assert match_codes(truth, codes).mean == pytest.approx(expected, abs=1e-5)
    assert match_codes(truth, codes[:, 1:]).mean == 0
    one = codes[:, :1].double()
    assert match_codes(one * 1e-300, one * 1e300).mean == pytest.approx(1), "of any size"
    for n in (37, 999, 1000):  # the rounded mean of equal numbers is another number
        assert match_codes(torch.full((n, 1), 1e3 / 3).double(), torch.full((n, 1), 98765.4321).double()).mean == 0


def test_what_cannot_be_matched_is_refused() -> None:
    with pytest.raises(DataError, match="3 can't each have a partner of their own among 2"):
        match_directions(torch.randn(3, 4), torch.randn(2, 4))
    with pytest.raises(DataError, match="a direction of the second set is zero, NaN or infinite"):
        match_directions(torch.randn(3, 4), torch.zeros(3, 4))
    with pytest.raises(DataError, match="5 rows of truth and 4 of codes"):
        match_codes(torch.randn(5, 2), torch.randn(4, 2))
    with pytest.raises(DataError, match="finite"):
        match_codes(torch.full((5, 2), torch.nan), torch.randn(5, 2))
