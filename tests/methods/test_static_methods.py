"""MeanDifference, P2S, RandomDirection and Prompt against their definitions."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from synthetic_acts import make_acts, shuffled

from steerlab import Site
from steerlab.errors import ActivationError, DataError, MismatchError, SteeringError
from steerlab.methods import P2S, Context, MeanDifference, Prompt, RandomDirection, SteeringVector
from steerlab.methods.classes import contrast_table

D = 16
CONTRASTS = torch.randn(12, D, generator=torch.Generator().manual_seed(5))
BEHAVIORS = ["refuse"] * 5 + ["defer"] * 4 + ["harmless"] * 3
ACTS = make_acts(torch.ones(12, D), CONTRASTS, behaviors=BEHAVIORS)
IDS = tuple(f"s{i:04d}" for i in range(12))


def test_p2s_vectors_are_the_capture_differences_for_any_row_order():
    expected = ACTS.select(side="positive").at(3) - ACTS.select(side="negative").at(3)
    assert torch.equal(P2S(3).fit(ACTS).vectors(Context(IDS)), expected)
    assert torch.equal(P2S(3).fit(shuffled(ACTS)).vectors(Context(IDS[::-1])), expected.flip(0))
    assert torch.equal(P2S(3).fit(make_acts(None, torch.zeros(4, D))).table_, torch.zeros(4, D))


def test_swapping_the_sides_negates_every_contrast_vector():
    swapped = ACTS.index.assign(side=ACTS.index["side"].replace({"positive": "negative", "negative": "positive"}))
    assert torch.equal(P2S(3).fit(type(ACTS)(ACTS.values, swapped, ACTS.sites)).table_, -P2S(3).fit(ACTS).table_)


@pytest.mark.parametrize("method", [MeanDifference(3), RandomDirection(3)], ids=lambda s: s.name)
def test_contrasts_that_are_all_zero_are_refused(method):
    z = torch.zeros(4, D)
    with pytest.raises(DataError, match=r"same state in all 4 contrasts at site 3.*before the two answers differ"):
        method.fit(make_acts(None, z))
    with pytest.raises(DataError, match="same state"):  # but for rounding
        method.fit(make_acts(None, z + 1e-9))
    z[2, 5] = 1e-3
    assert float(method.fit(make_acts(None, z)).vector_.norm()) > 0


def test_p2s_refuses_unknown_inputs_and_contrasts_with_one_side():
    with pytest.raises(ActivationError, match=r"'other'.*oracle"):
        P2S(3).fit(ACTS).vectors(Context(("s0001", "other")))
    acts = ACTS.rows(~((ACTS.index["example_id"] == "s0004") & (ACTS.index["side"] == "negative")))
    with pytest.raises(DataError, match="s0004"):
        P2S(3).fit(acts)


def test_p2s_gives_zero_vectors_to_zero_behaviors():
    acts = make_acts(torch.randn(12, D), CONTRASTS, behaviors=BEHAVIORS, bare=IDS[9:])
    table = P2S(3, zero_behaviors=("harmless",)).fit(acts).table_
    assert torch.equal(table[9:], torch.zeros(3, D))
    assert (table[:9].norm(dim=-1) > 0).all()
    assert torch.equal(P2S(3, zero_behaviors="harmless").fit(ACTS).table_[9:], torch.zeros(3, D))
    with pytest.raises(DataError, match=r"harmles.*behaviors are \['defer', 'harmless', 'refuse'\]"):
        P2S(3, zero_behaviors=("harmles",)).fit(ACTS)


@given(st.integers(1, 30), st.integers(0, 10_000))
def test_mean_difference_equals_numpy_mean_for_any_row_order(n, seed):
    acts = make_acts(None, torch.randn(n, D, generator=torch.Generator().manual_seed(seed)), seed=seed)
    _, measured = contrast_table(acts, Site(3))
    fitted = MeanDifference(3).fit(acts).vector_
    np.testing.assert_allclose(fitted.numpy(), measured.double().numpy().mean(0), atol=1e-6)
    assert fitted.dtype == torch.float32
    mean = MeanDifference(3).fit(shuffled(acts, seed))
    assert torch.equal(mean.vectors(Context(("a", "b"))), fitted.repeat(2, 1))
    assert mean.interventions(Context(("a",)))[0].site == Site(3) and mean.required_activations == ()


def test_mean_difference_of_some_behaviors_uses_their_contrasts_only():
    torch.testing.assert_close(MeanDifference(3, behaviors=["defer"]).fit(ACTS).vector_, CONTRASTS[5:9].mean(0))
    with pytest.raises(DataError, match="nonsense"):
        MeanDifference(3, behaviors=["nonsense"]).fit(ACTS)
    zeros = make_acts(None, torch.cat([torch.ones(2, D), torch.zeros(2, D)]), behaviors=["a", "a", "b", "b"])
    with pytest.raises(DataError, match="all 2 contrasts"):
        MeanDifference(3, behaviors="b").fit(zeros)


def test_from_tensor_keeps_the_norm_and_takes_one_finite_row_of_the_same_width():
    mean = SteeringVector({3: torch.full((D,), 2.0, dtype=torch.float16)})
    assert torch.equal(mean.vector_, torch.full((D,), 2.0))
    with pytest.raises(MismatchError, match=r"width 16.* 8"):
        mean.vectors(Context(("s0000",), make_acts(torch.randn(1, 8), None)))
    for vector in (torch.tensor([1.0, float("nan")]), torch.tensor([float("inf")]), torch.ones(2, 3), torch.ones(0)):
        with pytest.raises(DataError):
            SteeringVector({3: vector})


def test_static_methods_refuse_to_work_without_fit_or_contrasts():
    for steerer in (MeanDifference(3), P2S(3), RandomDirection(3)):
        with pytest.raises(ActivationError, match="not fitted"):
            steerer.vectors(Context(("s0000",)))
        with pytest.raises(ActivationError, match="positive"):
            steerer.fit(make_acts(torch.randn(3, D), None))


def random_vectors(seed, ids, per_example, acts=ACTS):
    return RandomDirection(3, seed=seed, per_example=per_example).fit(acts).vectors(Context(ids))


@given(st.integers(0, 1000), st.booleans())
def test_random_direction_has_the_norm_of_the_contrasts(seed, per_example):
    norms = P2S(3).fit(ACTS).table_.norm(dim=-1)
    expected = norms if per_example else norms.mean().expand(12)
    torch.testing.assert_close(random_vectors(seed, IDS, per_example).norm(dim=-1), expected, rtol=1e-5, atol=0)


def test_random_direction_depends_on_seed_and_id_only():
    before = torch.get_rng_state()
    one = random_vectors(1, IDS, True)
    assert torch.equal(one, random_vectors(1, IDS[::-1], True).flip(0))
    assert torch.equal(one, random_vectors(np.int64(1), IDS, True)), "a seed of NumPy's range is the same seed"
    assert not torch.equal(one, random_vectors(2, IDS, True))
    assert torch.equal(random_vectors(1, IDS[:1], False), random_vectors(1, ("unseen",), False))
    assert not torch.equal(random_vectors(1, IDS[:1], False), random_vectors(2, IDS[:1], False))
    torch.testing.assert_close(random_vectors(1, ("unseen",), True).norm(), P2S(3).fit(ACTS).table_.norm(dim=-1).mean())
    assert torch.equal(torch.get_rng_state(), before), "the global generator is not used"


def test_random_directions_are_uncorrelated_with_the_contrast():
    hidden, draws = 256, 400
    z = torch.randn(1, hidden)
    cosines = torch.cosine_similarity(random_vectors(7, tuple(map(str, range(draws))), True, make_acts(None, z)), z)
    assert abs(cosines.mean()) < 4 / (hidden * draws) ** 0.5
    assert cosines.std() == pytest.approx(hidden**-0.5, rel=0.15)


def test_prompt_appends_the_instruction_and_adds_no_vector():
    prompt = Prompt("Be kind.").fit(ACTS)
    assert prompt.transform_prompt("Hello there.") == "Hello there. Be kind."
    assert prompt.interventions(Context(IDS)) == ()
    assert prompt.required_activations == ()
    with pytest.raises(SteeringError, match="words"):
        prompt.vectors(Context(IDS))
    assert MeanDifference(3).transform_prompt("Hello there.") == "Hello there."
