"""Losses, schedules, initial decoders and scales against formulas written out by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.extmath import svd_flip
from synthetic_acts import normal

from steerlab.errors import DataError
from steerlab.methods import L2S_PAPER, L2S_RELEASED_POPE, L2S_RELEASED_SAFETY, SteeringNet, TrainingConfig, train_net
from steerlab.methods.l2s.data import equalize_norms
from steerlab.methods.l2s.net import seeded_net
from steerlab.methods.l2s.train import Scales, balanced_mean, decoder_columns, example_losses, initialize_decoder


@pytest.mark.parametrize(("hidden_size", "count"), [(4096, 819_300), (3584, 716_900)])
def test_net_has_the_published_number_of_parameters(hidden_size, count):
    assert sum(p.numel() for p in SteeringNet(hidden_size, 100).parameters()) == count


@pytest.mark.parametrize("sizes", [(0, 2), (2, 0)])
def test_net_without_units_or_width_is_refused(sizes):
    assert SteeringNet(1, 1)(normal(2, 1)).shape == (2, 1)
    with pytest.raises(DataError, match="sizes must be at least 1"):
        SteeringNet(*sizes)


def test_presets_are_those_of_the_paper_and_the_released_code():
    assert L2S_PAPER.loss == "mse" and L2S_PAPER.keep == "best" and L2S_PAPER.plateau_patience is not None
    safety, pope = L2S_RELEASED_SAFETY, L2S_RELEASED_POPE
    assert (safety.learning_rate, safety.batch_size, safety.epochs) == (1e-4, 64, 100)
    assert (safety.cosine_weight_at(0), safety.cosine_weight_at(99)) == (0.1, 0.1)
    assert (safety.decoder_init, safety.keep, safety.schedule) == ("dictionary", "last", "constant")
    assert safety.equalize_norms and not safety.standardize and safety.extend(5) == safety
    assert [pope.cosine_weight_at(e) for e in (0, 50, 100, 150)] == pytest.approx([0, 0.05, 0.1, 0.1])
    assert (pope.learning_rate, pope.warmup, pope.decoder_init) == (5e-5, 0.5, "svd")
    assert pope.class_balanced and pope.keep == "best" and pope.validation_cosine_weight == 0.05


def test_min_steps_extends_the_training_on_small_data_sets():
    config = TrainingConfig(epochs=10, batch_size=10, min_steps=100, plateau_patience=3)
    assert config.extend(1000) == config
    assert (config.extend(20).epochs, config.extend(20).plateau_patience) == (50, 15)


@given(st.integers(1, 6), st.integers(1, 9), st.floats(0, 1), st.integers(0, 999))
def test_losses_equal_the_formulas_of_the_paper_and_the_released_code(n, hidden, weight, seed):
    predicted, target = normal(n, hidden, seed=seed), normal(n, hidden, seed=seed + 1)
    torch.testing.assert_close(example_losses(predicted, target, "mse", weight), ((predicted - target) ** 2).mean(1))
    measured = example_losses(predicted, target, "mse_l1_cos", weight)
    for p, z, loss in zip(predicted.double().numpy(), target.double().numpy(), measured, strict=True):
        cosine = p @ z / math.sqrt(p @ p) / math.sqrt(z @ z)
        expected = np.mean((p - z) ** 2) + np.mean(np.abs(p - z)) - weight * cosine
        assert float(loss) == pytest.approx(expected, abs=1e-5)


def test_group_missing_from_the_batch_counts_as_zero():
    losses = torch.tensor([1.0, 3.0, 10.0])
    assert float(balanced_mean(losses, torch.tensor([0, 0, 1]), 2)) == pytest.approx((2 + 10) / 2)
    assert float(balanced_mean(losses[:2], torch.tensor([0, 0]), 2)) == pytest.approx((2 + 0) / 2)
    assert float(balanced_mean(losses[:2], torch.tensor([1, 1]), 2)) == pytest.approx((0 + 2) / 2)


def test_warm_up_is_linear_from_zero_and_the_cosine_falls_to_zero():
    config = TrainingConfig(learning_rate=2.0, schedule="warmup_cosine", warmup=0.5)
    falling = [1 + math.cos(math.pi * k / 4) for k in range(5)]
    assert [config.learning_rate_at(step, 8) for step in range(9)] == pytest.approx([0, 0.5, 1.0, 1.5, *falling])
    assert TrainingConfig(learning_rate=2.0).learning_rate_at(7, 8) == 2.0
    assert replace(config, warmup=0.0).learning_rate_at(0, 8) == 2.0


def test_history_shows_the_schedule_and_the_reduction_on_a_plateau():
    config = TrainingConfig(epochs=4, batch_size=5, schedule="warmup_cosine", warmup=0.5, learning_rate=1.0)
    history = train_net(SteeringNet(3, 2), normal(10, 3), normal(10, 3), config)
    assert history["lr"].tolist() == pytest.approx([config.learning_rate_at(s, 8) for s in (1, 3, 5, 7)])
    assert history["epoch"].tolist() == [0, 1, 2, 3] and history["val_loss"].isna().all()
    config, pairs = TrainingConfig(epochs=12, learning_rate=1e-12, plateau_patience=2, plateau_factor=0.1), normal(8, 3)
    history = train_net(SteeringNet(3, 2), pairs, pairs, config, validation=(normal(3, 3), normal(3, 3)))
    assert history["lr"].iloc[0] == pytest.approx(1e-12) and history["lr"].iloc[-1] < 2e-14


def test_history_shows_the_mean_loss_of_all_examples_also_where_batches_differ_in_size():
    net, contexts, targets = seeded_net(3, 2, "tanh", 0), normal(12, 3), normal(12, 3, seed=1)
    expected = (net(contexts) - targets).square().mean().item()
    config = TrainingConfig(epochs=2, batch_size=5, learning_rate=1e-12)
    assert train_net(net, contexts, targets, config)["loss"].tolist() == pytest.approx([expected] * 2, rel=1e-5)


@pytest.mark.parametrize("hidden", [4, 16, 400])
def test_standardized_contexts_have_a_norm_of_at_most_four(hidden):
    contexts = 50 + 20 * normal(300, hidden)
    norms = Scales.of(contexts, contexts).standardize(contexts).square().sum(1)
    assert float(norms.mean().sqrt()) == pytest.approx(min(4, math.sqrt(hidden)), rel=1e-4)


def test_contexts_that_were_constant_in_training_keep_their_unit():
    constant = torch.full((5, 4), 7.0)
    assert torch.equal(Scales.of(constant, constant).standardize(constant + 2), torch.full((5, 4), 2.0))


def test_best_epoch_is_kept():
    # at so high a learning rate training gets worse: the best epoch is not the last
    config = TrainingConfig(epochs=15, learning_rate=0.5, keep="best")
    net, validation = seeded_net(6, 4, "tanh", 0), (normal(20, 6, seed=3), normal(20, 6, seed=4))
    history = train_net(net, normal(30, 6, seed=1), normal(30, 6, seed=2), config, validation=validation)
    assert history["val_loss"].idxmin() != 14
    with torch.no_grad():
        kept = float((net(validation[0]) - validation[1]).square().mean())
    assert kept == pytest.approx(history["val_loss"].min(), rel=1e-5)


@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=4), st.integers(0, 999))
def test_equalize_norms_gives_every_group_the_norm_of_the_first_and_keeps_directions(sizes, seed):
    groups = [f"g{i}" for i in range(len(sizes)) for _ in range(5)]
    z = normal(len(groups), 8, seed=seed) * torch.tensor([sizes[int(g[1])] for g in groups])[:, None]
    scaled = equalize_norms(z, groups, sorted(set(groups)))
    means = scaled.norm(dim=-1).reshape(-1, 5).mean(1)
    torch.testing.assert_close(means, means[:1].expand_as(means), rtol=1e-5, atol=0)
    assert torch.equal(scaled[:5], z[:5])
    torch.testing.assert_close(torch.cosine_similarity(scaled, z), torch.ones(len(z)))


def test_equalize_norms_does_not_change_unnamed_and_zero_groups():
    z = torch.cat([normal(3, 4), torch.zeros(3, 4), 5 * normal(3, 4, seed=1)])
    groups = ["a"] * 3 + ["zero"] * 3 + ["other"] * 3
    assert torch.equal(equalize_norms(z, groups, ["a", "zero"]), z)
    with pytest.raises(DataError, match="zero targets only"):
        equalize_norms(z, groups, ["zero", "a"])
    with pytest.raises(DataError, match="nobody"):
        equalize_norms(z, groups, ["a", "nobody"])


def test_svd_columns_are_the_leading_right_singular_vectors_of_the_centered_targets():
    z = normal(40, 12) * torch.linspace(5, 0.1, 12) + 3
    columns = decoder_columns(z, 4, TrainingConfig(decoder_init="svd"), 0)
    expected = svd_flip(*np.linalg.svd((z - z.mean(0)).double().numpy(), full_matrices=False)[::2])[1][:4]
    np.testing.assert_allclose(np.abs((columns.numpy() * expected).sum(1)), 1, atol=1e-4)
    assert len(decoder_columns(normal(1, 8).expand(20, 8), 4, TrainingConfig(decoder_init="svd"), 0)) == 0


@pytest.mark.parametrize(("decoder_init", "rank"), [("svd", 2), ("default", 0)])
def test_columns_beyond_the_rank_keep_the_default_initialization(decoder_init, rank):
    z = normal(40, 2) @ normal(2, 12, seed=1)
    net = seeded_net(12, 6, "tanh", 0)
    before = net.decoder.weight.detach().clone()
    initialize_decoder(net, z, TrainingConfig(decoder_init=decoder_init), 0)
    after = net.decoder.weight.detach()
    assert torch.equal(after[:, rank:], before[:, rank:])
    torch.testing.assert_close(after[:, :rank].norm(dim=0), torch.ones(rank))


@pytest.mark.parametrize(("kind", "iterations"), [("full", 20), ("full", 1), ("minibatch", 20)])
def test_dictionary_columns_are_unit_atoms_also_before_they_converge(kind, iterations):
    config = TrainingConfig(decoder_init="dictionary", dictionary=kind, dictionary_iterations=iterations)
    columns = decoder_columns(5 * normal(30, 8), 4, config, 0)
    assert columns.shape == (4, 8) and bool((columns.norm(dim=1) <= 1 + 1e-4).all())


def test_folding_the_scales_changes_no_prediction():
    contexts, targets = 50 + 20 * normal(60, 32), 0.01 * normal(60, 32, seed=1)
    contexts[:, 3] = 7.0
    scales, net = Scales.of(contexts, targets), seeded_net(32, 6, "tanh", 0)
    with torch.no_grad():
        expected = scales.target_scale * net(scales.standardize(contexts))
        scales.fold_into(net)
        assert (net(contexts) - expected).abs().max() < 1e-5 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize(
    "change", [{"loss": "l2"}, {"epochs": 0}, {"learning_rate": -1.0}, {"warmup": 1.5}, {"keep": "first"}]
)
def test_invalid_config_is_refused(change):
    with pytest.raises(DataError, match=next(iter(change))):
        replace(L2S_PAPER, **change)


def test_config_without_the_data_it_needs_is_refused():
    for option, needed in (({"keep": "best"}, "validation"), ({"class_balanced": True}, "group")):
        with pytest.raises(DataError, match=needed):
            train_net(SteeringNet(3, 2), normal(4, 3), normal(4, 3), TrainingConfig(**option))
