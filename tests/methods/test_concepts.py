"""Concept dictionaries and steering between concepts."""

from pathlib import Path

import numpy as np
import pytest
import torch
from plain import hidden
from synthetic_acts import activations, normal

from steerlab import SteeringVector, generate
from steerlab.errors import DataError, MismatchError, SteeringError
from steerlab.methods import ConceptDictionary, ConceptSteering, Context, load_steerer
from steerlab.metrics import match_directions
from steerlab.testing import tiny_lm

CENTERS = 4 * torch.eye(6)[:3] + 1


def states(n: int = 60, seed: int = 0, noise: float = 0.1) -> tuple[torch.Tensor, torch.Tensor]:
    """States around three centers, the first with most of them, and the center of each."""
    which = torch.tensor([0, 0, 0, 1, 1, 2]).repeat(n // 6)
    return CENTERS[which] + noise * normal(n, 6, seed=seed), which


def fitted(method: str = "kmeans", n: int = 3, **options) -> ConceptDictionary:
    return ConceptDictionary(3, n, method=method, **options).fit_states(states()[0])


def test_kmeans_finds_centers_with_most_members_first_whatever_the_seed() -> None:
    x, which = states()
    for seed in range(3):
        concepts = fitted(seed=seed)
        torch.testing.assert_close(concepts.concepts_, CENTERS, atol=0.15, rtol=0)
        assert torch.equal(concepts.assign(x), which) and concepts.members_.tolist() == [30, 20, 10]
    assert float(concepts.activations(concepts.concepts_).diag().min()) == 1.0, "at no distance"


def test_seminmf_weights_are_not_negative_and_rebuild_sums_of_concepts() -> None:
    weights = torch.rand(300, 4, generator=torch.Generator().manual_seed(1)) ** 3
    truth = normal(4, 12, seed=2)
    concepts = ConceptDictionary(3, 4, method="seminmf").fit_states(weights @ truth)
    found = concepts.activations(weights @ truth)
    assert float(found.min()) >= 0
    error = (found @ concepts.concepts_ - weights @ truth).norm() / (weights @ truth).norm()
    assert error < 0.02 and match_directions(truth, concepts.concepts_).mean > 0.9
    medians = np.nanmedian(found.masked_fill(found <= 0, torch.nan).numpy(), axis=0)
    np.testing.assert_allclose(medians, 1, atol=1e-3)
    u, noisy = concepts.concepts_, weights @ truth + 0.3 * normal(300, 12, seed=5)
    clipped = (noisy @ torch.linalg.pinv(u)).clamp(min=0)
    lost = [(codes @ u - noisy).square().sum(1) for codes in (concepts.activations(noisy), clipped)]
    assert bool((lost[0] <= lost[1] + 1e-4).all()) and float(lost[0].sum()) < 0.999 * float(lost[1].sum())


def test_pca_concepts_are_orthogonal_directions_from_the_mean() -> None:
    x, _ = states()
    concepts = fitted("pca", 2)
    torch.testing.assert_close(concepts.concepts_ @ concepts.concepts_.T, torch.eye(2), atol=1e-5, rtol=0)
    centered = x - x.mean(0)
    assert (concepts.activations(x) @ concepts.concepts_ - centered).norm() < 0.1 * centered.norm()


@pytest.mark.parametrize(("method", "n"), [("kmeans", 61), ("pca", 7), ("seminmf", 7)])
def test_more_concepts_than_states_or_rank_are_refused(method: str, n: int) -> None:
    with pytest.raises(DataError, match="give at most that"):
        fitted(method, n)
    if method != "kmeans":
        with pytest.raises(DataError, match="rank"):  # what rounding leaves is no direction
            ConceptDictionary(3, 5, method=method).fit_states(normal(100, 2) @ normal(2, 64))
    with pytest.raises(DataError, match="NaN"):
        ConceptDictionary(3, 1).fit_states(torch.full((4, 6), torch.nan))
    with pytest.raises(DataError, match="give at most that"):
        ConceptDictionary(3, 2).fit_states(torch.ones(5, 6))


def test_each_input_gets_the_vector_of_the_concept_it_activates() -> None:
    x, which = states()
    concepts = fitted()
    steering = ConceptSteering(concepts, {0: concepts.between(0, 2), 1: concepts.between(1, 0)})
    acts = activations(x[:, None], [3], {}, example_id=[f"s{i}" for i in range(len(x))])
    vectors = steering.vectors(Context.of(acts))
    u = concepts.concepts_
    for row, concept in zip(vectors, which.tolist(), strict=True):
        torch.testing.assert_close(row, {0: u[2] - u[0], 1: u[0] - u[1], 2: torch.zeros(6)}[concept])
    torch.testing.assert_close(concepts.between(0, 1), -concepts.between(1, 0))


@pytest.mark.parametrize("method", ["pca", "seminmf"])
def test_state_that_activates_nothing_is_no_member_and_is_not_steered(method: str) -> None:
    x, _ = states()
    concepts = ConceptDictionary(3, 2, method=method).fit_states(x)
    assert concepts.members_.sum() == (concepts.activations(x) > 0).any(1).sum()
    opposite = (concepts.mean_ if method == "pca" else 0) - concepts.concepts_.sum(0)
    context = Context.of(activations(torch.stack([opposite, x[0]])[:, None], [3], {}, example_id=["a", "b"]))
    steering = ConceptSteering(concepts, {k: torch.ones(6) for k in range(2)})
    assert concepts.assign(opposite[None]) == -1 and not steering.vectors(context)[0].any()


def test_one_concept_each_is_the_difference_of_means() -> None:
    x, which = states()
    first, second = (ConceptDictionary(3, 1).fit_states(x[which == k]) for k in (0, 1))
    fine = ConceptSteering(first, {0: second.concepts_[0] - first.concepts_[0]})
    acts = activations(normal(4, 1, 6), [3], {}, example_id=list("abcd"))
    coarse = x[which == 1].mean(0) - x[which == 0].mean(0)
    torch.testing.assert_close(fine.vectors(Context.of(acts)), coarse.expand(4, -1))


def test_steered_texts_are_those_of_the_vector_and_saved_steering_is_the_same(tmp_path: Path) -> None:
    model = tiny_lm("llama", backend="hooks")
    prompts = [f"Number {i} of a list" for i in range(6)]
    concepts = ConceptDictionary(1, 2, seed=1).fit(model, prompts)
    steering = ConceptSteering(concepts, {0: concepts.between(0, 1)})
    options = {"max_new_tokens": 6, "progress": False, "alpha": 20.0}
    found = list(generate(model, prompts, steer=steering, **options))
    plain = list(generate(model, prompts, **options | {"steer": ()}))
    vector = SteeringVector({1: concepts.concepts_[1] - concepts.concepts_[0]})
    added = list(generate(model, prompts, steer=vector, **options))
    acts = steering.concepts.assign(torch.stack([hidden(model, model.encode(p).ids)[1][-1] for p in prompts])).tolist()
    assert set(acts) == {0, 1}
    assert found == [a if k == 0 else p for a, p, k in zip(added, plain, acts, strict=True)] and found != plain
    steering.save_pretrained(tmp_path)
    assert list(generate(model, prompts, steer=load_steerer(tmp_path, model), **options)) == found


def test_steering_between_what_does_not_fit_is_refused() -> None:
    concepts = fitted()
    for method in ("pca", "seminmf"):
        with pytest.raises(SteeringError, match="no points in the space of states"):
            fitted(method, 2).between(0, 1)
    with pytest.raises(DataError, match="from 0 to 2"):
        ConceptSteering(concepts, {3: torch.ones(6)})
    with pytest.raises(DataError, match="from 0 to 2"):
        concepts.between(0, 3)
    with pytest.raises(DataError, match="no vectors"):
        ConceptSteering(concepts, {})
    with pytest.raises(MismatchError, match="6 wide"):
        ConceptSteering(concepts, {0: torch.ones(7)})
    with pytest.raises(SteeringError, match="nothing to fit"):
        ConceptSteering(concepts, {0: torch.ones(6)}).fit(activations(normal(2, 1, 6), [3], {}, example_id=["a", "b"]))
