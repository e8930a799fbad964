"""MeanDifference, P2S, RandomDirection and Prompt against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from synthetic_acts import make_acts, shuffled

from steerlab._support.errors import ActivationError, DataError, MismatchError, SteeringError
from steerlab.methods import P2S, Context, MeanDifference, Prompt, RandomDirection
from steerlab.methods.p2s import contrast_table
from steerlab.models.sites import Site

D = 16
Z = torch.randn(12, D, generator=torch.Generator().manual_seed(5))
BEHAVIORS = ["refuse"] * 5 + ["defer"] * 4 + ["harmless"] * 3
ACTS = make_acts(torch.ones(12, D), Z, behaviors=BEHAVIORS)
IDS = tuple(f"s{i:04d}" for i in range(12))

# group cosines of LLaVA layer 15 as published: harmful, legal and financial, health
PUBLISHED_COSINES = np.array([[0.88, 0.03, -0.10], [0.03, 0.88, 0.03], [-0.10, 0.03, 0.84]])


def side_of(acts, side):
    return acts.select(side=side).at(3)


def test_p2s_is_the_difference_of_the_two_captures_bit_for_bit():
    expected = side_of(ACTS, "positive") - side_of(ACTS, "negative")
    assert torch.equal(P2S(3).fit(ACTS).vectors(Context(IDS)), expected)


def test_swapping_the_sides_negates_every_contrast_vector():
    swapped = ACTS.index.assign(side=ACTS.index["side"].replace({"positive": "negative", "negative": "positive"}))
    other = type(ACTS)(ACTS.values, swapped, ACTS.sites)
    assert torch.equal(P2S(3).fit(other).table_, -P2S(3).fit(ACTS).table_)


def test_equal_sides_give_exactly_zero():
    acts = make_acts(None, torch.zeros(4, D))
    assert torch.equal(P2S(3).fit(acts).table_, torch.zeros(4, D))


@pytest.mark.parametrize("method", [MeanDifference(3), RandomDirection(3)], ids=lambda s: s.name)
def test_contrasts_that_are_all_zero_are_refused_and_one_that_is_not_suffices(method):
    z = torch.zeros(4, D)
    with pytest.raises(DataError, match=r"same state in all 4 contrasts at site 3.*before their answers part"):
        method.fit(make_acts(None, z))
    z[2, 5] = 1e-3
    assert float(method.fit(make_acts(None, z)).vector_.norm()) > 0


def test_the_mean_of_one_behavior_needs_a_contrast_of_that_behavior_that_is_not_zero():
    acts = make_acts(None, torch.cat([torch.ones(2, D), torch.zeros(2, D)]), behaviors=["a", "a", "b", "b"])
    with pytest.raises(DataError, match="all 2 contrasts"):
        MeanDifference(3, behaviors="b").fit(acts)


def test_p2s_joins_by_id_whatever_the_order():
    oracle = P2S(3).fit(shuffled(ACTS))
    assert torch.equal(oracle.vectors(Context(IDS[::-1])), P2S(3).fit(ACTS).vectors(Context(IDS)).flip(0))


def test_p2s_refuses_an_unknown_input_and_says_that_it_is_an_oracle():
    with pytest.raises(ActivationError, match=r"'other'.*oracle.*very input"):
        P2S(3).fit(ACTS).vectors(Context(("s0001", "other")))


def test_p2s_gives_zero_to_the_behaviors_named_so():
    acts = make_acts(torch.randn(12, D), Z, behaviors=BEHAVIORS, bare=IDS[9:])
    table = P2S(3, zero_behaviors=("harmless",)).fit(acts).table_
    assert torch.equal(table[9:], torch.zeros(3, D))
    assert (table[:9].norm(dim=-1) > 0).all()
    assert torch.equal(P2S(3, zero_behaviors="harmless").fit(ACTS).table_[9:], torch.zeros(3, D))


def test_a_misspelt_zero_behavior_is_refused():
    with pytest.raises(DataError, match=r"harmles.*behaviors are \['defer', 'harmless', 'refuse'\]"):
        P2S(3, zero_behaviors=("harmles",)).fit(ACTS)


def test_a_contrast_with_one_side_only_is_refused():
    acts = ACTS.rows(~((ACTS.index["example_id"] == "s0004") & (ACTS.index["side"] == "negative")))
    with pytest.raises(DataError, match="s0004"):
        P2S(3).fit(acts)


@given(st.integers(1, 30), st.integers(0, 10_000))
def test_the_mean_is_numpys_mean_and_does_not_depend_on_row_order(n, seed):
    z = torch.randn(n, D, generator=torch.Generator().manual_seed(seed))
    acts = make_acts(None, z, seed=seed)
    _, measured = contrast_table(acts, Site(3))
    fitted = MeanDifference(3).fit(acts).vector_
    np.testing.assert_allclose(fitted.numpy(), measured.double().numpy().mean(0), atol=1e-6)
    assert fitted.dtype == torch.float32
    assert torch.equal(MeanDifference(3).fit(shuffled(acts, seed)).vector_, fitted)


def test_the_mean_can_be_restricted_to_behaviors():
    fitted = MeanDifference(3, behaviors=["defer"]).fit(ACTS).vector_
    torch.testing.assert_close(fitted, Z[5:9].mean(0))
    with pytest.raises(DataError, match="nonsense"):
        MeanDifference(3, behaviors=["nonsense"]).fit(ACTS)


def test_the_mean_is_the_same_for_every_input():
    mean = MeanDifference(3).fit(ACTS)
    assert torch.equal(mean.vectors(Context(("a", "b"))), mean.vector_.repeat(2, 1))
    assert mean.interventions(Context(("a",)))[0].site == Site(3)
    assert mean.required_activations == ()


@pytest.mark.parametrize(
    "vector",
    [torch.tensor([1.0, float("nan")]), torch.tensor([float("inf")]), torch.ones(2, 3), torch.ones(0)],
)
def test_a_handmade_vector_that_is_not_one_finite_row_is_refused(vector):
    with pytest.raises(DataError):
        MeanDifference.from_tensor(3, vector)


def test_a_handmade_vector_keeps_its_norm_and_is_refused_for_another_width():
    mean = MeanDifference.from_tensor(3, torch.full((D,), 2.0, dtype=torch.float16))
    assert torch.equal(mean.vector_, torch.full((D,), 2.0))
    with pytest.raises(MismatchError, match=r"width 16.* 8"):
        mean.vectors(Context(("s0000",), make_acts(torch.randn(1, 8), None)))


@pytest.mark.parametrize("steerer", [MeanDifference(3), P2S(3), RandomDirection(3)], ids=lambda s: s.name)
def test_an_unfitted_method_says_so(steerer):
    with pytest.raises(ActivationError, match="not fitted"):
        steerer.vectors(Context(("s0000",)))


def test_without_any_contrast_static_methods_refuse():
    with pytest.raises(ActivationError, match="positive"):
        MeanDifference(3).fit(make_acts(torch.randn(3, D), None))


@pytest.mark.parametrize(("weights", "published"), [((1274, 297, 109), 0.732), ((1125, 297, 109), 0.715)])
def test_the_mean_vectors_cosine_follows_the_closed_form_for_published_geometry(weights, published):
    w = np.array(weights) / sum(weights)
    cosines = PUBLISHED_COSINES @ w / np.sqrt(w @ PUBLISHED_COSINES @ w)
    assert w @ cosines == pytest.approx(published, abs=5e-4)


@given(st.integers(0, 1000), st.booleans())
def test_a_random_direction_has_the_norm_of_the_real_vectors(seed, per_example):
    random = RandomDirection(3, seed=seed, per_example=per_example).fit(ACTS)
    norms = P2S(3).fit(ACTS).table_.norm(dim=-1)
    expected = norms if per_example else norms.mean().expand(12)
    torch.testing.assert_close(random.vectors(Context(IDS)).norm(dim=-1), expected, rtol=1e-5, atol=0)


def test_random_directions_depend_on_seed_and_id_only():
    def vectors(seed, example_ids, per_example):
        return RandomDirection(3, seed=seed, per_example=per_example).fit(ACTS).vectors(Context(example_ids))

    assert torch.equal(vectors(1, IDS, True), vectors(1, IDS[::-1], True).flip(0))
    assert not torch.equal(vectors(1, IDS, True), vectors(2, IDS, True))
    assert torch.equal(vectors(1, IDS[:1], False), vectors(1, ("unseen",), False))
    assert not torch.equal(vectors(1, IDS[:1], False), vectors(2, IDS[:1], False))
    unseen = vectors(1, ("unseen",), True)
    torch.testing.assert_close(unseen.norm(), P2S(3).fit(ACTS).table_.norm(dim=-1).mean())


def test_random_directions_are_uncorrelated_with_the_real_ones():
    hidden, draws = 256, 400
    z = torch.randn(1, hidden)
    acts = make_acts(None, z)
    ids = tuple(map(str, range(draws)))
    drawn = RandomDirection(3, seed=7, per_example=True).fit(acts).vectors(Context(ids))
    cosines = torch.cosine_similarity(drawn, z)
    assert abs(cosines.mean()) < 4 / (hidden * draws) ** 0.5
    assert cosines.std() == pytest.approx(hidden**-0.5, rel=0.15)


def test_random_directions_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    RandomDirection(3, per_example=True).fit(ACTS).vectors(Context(IDS))
    assert torch.equal(torch.get_rng_state(), before)


def test_prompt_changes_the_words_and_adds_nothing():
    prompt = Prompt("Be kind.").fit(ACTS)
    assert prompt.transform_prompt("Hello there.") == "Hello there. Be kind."
    assert prompt.interventions(Context(IDS)) == ()
    assert prompt.required_activations == ()
    with pytest.raises(SteeringError, match="words"):
        prompt.vectors(Context(IDS))
    assert MeanDifference(3).transform_prompt("Hello there.") == "Hello there."
