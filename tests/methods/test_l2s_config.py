"""Losses, schedules, first decoders and scales against formulas written out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.extmath import svd_flip

from steerlab._support.errors import DataError
from steerlab.methods import L2S_PAPER, L2S_RELEASED_POPE, L2S_RELEASED_SAFETY, SteeringNet, TrainingConfig, train_net
from steerlab.methods.l2s.config import balanced_mean, example_losses
from steerlab.methods.l2s.data import equalize_norms
from steerlab.methods.l2s.init import Scales, decoder_columns, start_decoder
from steerlab.methods.l2s.net import seeded_net


def rows(n, hidden, seed=0):
    return torch.randn(n, hidden, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("hidden_size", "count"), [(4096, 819_300), (3584, 716_900)])
def test_a_net_has_the_published_number_of_parameters(hidden_size, count):
    assert sum(p.numel() for p in SteeringNet(hidden_size, 100).parameters()) == count


def test_the_presets_are_those_of_the_paper_and_the_released_code():
    assert L2S_PAPER.loss == "mse" and L2S_PAPER.keep == "best" and L2S_PAPER.plateau_patience is not None
    safety, pope = L2S_RELEASED_SAFETY, L2S_RELEASED_POPE
    assert (safety.learning_rate, safety.batch_size, safety.epochs) == (1e-4, 64, 100)
    assert (safety.cosine_at(0), safety.cosine_at(99)) == (0.1, 0.1)
    assert (safety.decoder_init, safety.keep, safety.schedule) == ("dictionary", "last", "constant")
    assert safety.equalize_norms and not safety.standardize and safety.for_rows(5) == safety
    assert [pope.cosine_at(e) for e in (0, 50, 100, 150)] == pytest.approx([0, 0.05, 0.1, 0.1])
    assert (pope.learning_rate, pope.warmup, pope.decoder_init) == (5e-5, 0.5, "svd")
    assert pope.class_balanced and pope.keep == "best" and pope.validation_cosine_weight == 0.05


def test_a_small_data_set_is_trained_for_as_many_steps_as_a_large_one():
    recipe = TrainingConfig(epochs=10, batch_size=10, min_steps=100, plateau_patience=3)
    assert recipe.for_rows(1000) == recipe
    assert (recipe.for_rows(20).epochs, recipe.for_rows(20).plateau_patience) == (50, 15)


@given(st.integers(1, 6), st.integers(1, 9), st.floats(0, 1), st.integers(0, 999))
def test_the_released_loss_is_the_formula_written_out(n, hidden, weight, seed):
    predicted, target = rows(n, hidden, seed), rows(n, hidden, seed + 1)
    measured = example_losses(predicted, target, "mse_l1_cos", weight)
    for p, z, loss in zip(predicted.double().numpy(), target.double().numpy(), measured, strict=True):
        cosine = p @ z / math.sqrt(p @ p) / math.sqrt(z @ z)
        by_hand = np.mean((p - z) ** 2) + np.mean(np.abs(p - z)) - weight * cosine
        assert float(loss) == pytest.approx(by_hand, abs=1e-5)


def test_the_papers_loss_is_the_mean_squared_error():
    predicted, target = rows(4, 5), rows(4, 5, 1)
    expected = ((predicted - target) ** 2).mean(1)
    torch.testing.assert_close(example_losses(predicted, target, "mse", 0.5), expected)


def test_a_class_missing_from_the_batch_counts_zero():
    losses = torch.tensor([1.0, 3.0, 10.0])
    assert float(balanced_mean(losses, torch.tensor([0, 0, 1]), 2)) == pytest.approx((2 + 10) / 2)
    assert float(balanced_mean(losses[:2], torch.tensor([0, 0]), 2)) == pytest.approx((2 + 0) / 2)
    assert float(balanced_mean(losses[:2], torch.tensor([1, 1]), 2)) == pytest.approx((0 + 2) / 2)


def test_warm_up_rises_linearly_from_zero_and_the_cosine_falls_to_zero():
    recipe = TrainingConfig(learning_rate=2.0, schedule="warmup_cosine", warmup=0.5)
    rates = [recipe.rate_at(step, 8) for step in range(9)]
    falling = [1 + math.cos(math.pi * k / 4) for k in range(5)]
    assert rates == pytest.approx([0, 0.5, 1.0, 1.5, *falling])
    assert TrainingConfig(learning_rate=2.0).rate_at(7, 8) == 2.0
    assert replace(recipe, warmup=0.0).rate_at(0, 8) == 2.0


def test_the_history_shows_the_schedule_stepped_per_batch():
    recipe = TrainingConfig(epochs=4, batch_size=5, schedule="warmup_cosine", warmup=0.5, learning_rate=1.0)
    history = train_net(SteeringNet(3, 2), rows(10, 3), rows(10, 3), recipe)
    assert history["lr"].tolist() == pytest.approx([recipe.rate_at(s, 8) for s in (1, 3, 5, 7)])
    assert history["epoch"].tolist() == [0, 1, 2, 3]
    assert history["val_loss"].isna().all()


def test_a_plateau_lowers_the_rate():
    recipe = TrainingConfig(epochs=12, learning_rate=1e-12, plateau_patience=2, plateau_factor=0.1)
    history = train_net(SteeringNet(3, 2), rows(8, 3), rows(8, 3), recipe, validation=(rows(3, 3), rows(3, 3)))
    assert history["lr"].iloc[0] == pytest.approx(1e-12)
    assert history["lr"].iloc[-1] < 2e-14


def test_the_best_epoch_is_kept():
    # so large a rate that training gets worse: the best epoch is not the last
    recipe = TrainingConfig(epochs=15, learning_rate=0.5, keep="best")
    net, validation = seeded_net(6, 4, "tanh", 0), (rows(20, 6, 3), rows(20, 6, 4))
    history = train_net(net, rows(30, 6, 1), rows(30, 6, 2), recipe, validation=validation)
    assert history["val_loss"].idxmin() != 14
    with torch.no_grad():
        kept = float((net(validation[0]) - validation[1]).square().mean())
    assert kept == pytest.approx(history["val_loss"].min(), rel=1e-5)


@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=4), st.integers(0, 999))
def test_equalising_gives_every_group_the_first_groups_norm_and_keeps_directions(sizes, seed):
    groups = [f"g{i}" for i in range(len(sizes)) for _ in range(5)]
    z = rows(len(groups), 8, seed) * torch.tensor([sizes[int(g[1])] for g in groups])[:, None]
    scaled = equalize_norms(z, groups, sorted(set(groups)))
    means = scaled.norm(dim=-1).reshape(-1, 5).mean(1)
    torch.testing.assert_close(means, means[:1].expand_as(means), rtol=1e-5, atol=0)
    assert torch.equal(scaled[:5], z[:5])
    torch.testing.assert_close(torch.cosine_similarity(scaled, z), torch.ones(len(z)))


def test_equalising_leaves_unnamed_and_zero_groups_alone():
    z = torch.cat([rows(3, 4), torch.zeros(3, 4), 5 * rows(3, 4, 1)])
    groups = ["a"] * 3 + ["zero"] * 3 + ["other"] * 3
    assert torch.equal(equalize_norms(z, groups, ["a", "zero"]), z)
    with pytest.raises(DataError, match="zero targets only"):
        equalize_norms(z, groups, ["zero", "a"])
    with pytest.raises(DataError, match="nobody"):
        equalize_norms(z, groups, ["a", "nobody"])


def test_the_svd_start_is_the_leading_right_singular_vectors_of_the_centered_targets():
    z = rows(40, 12) * torch.linspace(5, 0.1, 12) + 3
    columns = decoder_columns(z, 4, TrainingConfig(decoder_init="svd"), 0)
    centered = (z - z.mean(0)).double().numpy()
    expected = svd_flip(*np.linalg.svd(centered, full_matrices=False)[::2])[1][:4]
    np.testing.assert_allclose(np.abs((columns.numpy() * expected).sum(1)), 1, atol=1e-4)


def test_columns_beyond_the_rank_keep_the_default_start():
    z = rows(40, 2) @ rows(2, 12, 1)
    net = seeded_net(12, 6, "tanh", 0)
    before = net.decoder.weight.detach().clone()
    start_decoder(net, z, TrainingConfig(decoder_init="svd"), 0)
    after = net.decoder.weight.detach()
    assert torch.equal(after[:, 2:], before[:, 2:])
    torch.testing.assert_close(after[:, :2].norm(dim=0), torch.ones(2))


@pytest.mark.parametrize("kind", ["full", "minibatch"])
def test_the_dictionary_start_gives_one_unit_atom_per_column(kind):
    recipe = TrainingConfig(decoder_init="dictionary", dictionary=kind, dictionary_iterations=20)
    columns = decoder_columns(5 * rows(30, 8), 4, recipe, 0)
    assert columns.shape == (4, 8) and bool((columns.norm(dim=1) <= 1 + 1e-4).all())


def test_a_constant_target_has_no_svd_start():
    assert len(decoder_columns(rows(1, 8).expand(20, 8), 4, TrainingConfig(decoder_init="svd"), 0)) == 0


def test_folding_the_scales_changes_no_prediction():
    contexts, targets = 50 + 20 * rows(60, 32), 0.01 * rows(60, 32, 1)
    contexts[:, 3] = 7.0
    scales, net = Scales.of(contexts, targets), seeded_net(32, 6, "tanh", 0)
    with torch.no_grad():
        expected = scales.size * net(scales.standard(contexts))
        scales.fold(net)
        assert (net(contexts) - expected).abs().max() < 1e-5 * max(1.0, float(expected.abs().max()))


def test_training_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    net = seeded_net(6, 3, "tanh", 4)
    train_net(net, rows(20, 6), rows(20, 6), replace(L2S_PAPER, epochs=2, keep="last"))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "change", [{"loss": "l2"}, {"epochs": 0}, {"learning_rate": -1.0}, {"warmup": 1.5}, {"keep": "first"}]
)
def test_an_impossible_recipe_is_refused(change):
    with pytest.raises(DataError, match=next(iter(change))):
        replace(L2S_PAPER, **change)


def test_what_a_recipe_needs_is_asked_for():
    with pytest.raises(DataError, match="validation"):
        train_net(SteeringNet(3, 2), rows(4, 3), rows(4, 3), TrainingConfig(keep="best"))
    with pytest.raises(DataError, match="group"):
        train_net(SteeringNet(3, 2), rows(4, 3), rows(4, 3), TrainingConfig(class_balanced=True))
