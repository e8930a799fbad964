"""L2S on data whose right answer is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from synthetic_acts import clusters, make_acts, shuffled

from steerlab import Contrast, Example, capture
from steerlab._support.errors import ActivationError, DataError, MismatchError
from steerlab.methods import L2S, L2S_PAPER, P2S, Context, MeanDifference, RequiredActivation
from steerlab.methods.l2s.config import PRESETS
from steerlab.methods.l2s.data import training_pairs
from steerlab.methods.l2s.net import seeded_net
from steerlab.models.sites import Site

QUICK = replace(L2S_PAPER, epochs=8, min_steps=0)


def rows(n, hidden_units, seed=0):
    return torch.randn(n, hidden_units, generator=torch.Generator().manual_seed(seed))


def l2s(**options):
    return L2S(3, progress=False, **{"hidden_units": 16, "config": QUICK} | options)


@pytest.mark.parametrize(("width", "hidden_units"), [(24, 16), pytest.param(512, 100, marks=pytest.mark.slow)])
def test_a_constant_target_collapses_to_the_mean_vector_for_seen_and_unseen_inputs(width, hidden_units):
    target = 3 * rows(1, width)
    acts = make_acts(rows(200, width, 1), target.expand(200, width))
    fitted = l2s(config="paper", hidden_units=hidden_units).fit(acts)
    for contexts in (rows(200, width, 1), rows(100, width, 2)):
        predicted = fitted.predict(contexts)
        assert torch.cosine_similarity(predicted, target).min() > 0.99
        assert (predicted - target).norm(dim=-1).max() < 0.15 * target.norm()


def test_clusters_with_orthogonal_targets_are_recovered_while_the_mean_follows_its_closed_form():
    contexts, targets, which = clusters(400, 48, 4, seed=1)
    unseen, wanted, its = clusters(100, 48, 4, seed=2)
    acts = make_acts(contexts, targets)
    predicted = l2s(config="paper").fit(acts).predict(unseen)
    assert torch.cosine_similarity(predicted, wanted).min() > 0.95
    mean = MeanDifference(3).fit(acts).vector_[None]
    shares = np.bincount(which, minlength=4) / 400
    expected = torch.tensor(shares / np.sqrt(shares @ shares), dtype=torch.float32)[its]
    torch.testing.assert_close(torch.cosine_similarity(mean, wanted), expected, rtol=0, atol=1e-5)


def test_a_target_of_higher_rank_is_not_fitted_beyond_its_best_low_rank_approximation():
    contexts, z = rows(60, 32, 1), rows(60, 32) * torch.linspace(3, 1, 32)
    recipe = replace(L2S_PAPER, epochs=150, learning_rate=1e-2, weight_decay=0.0, keep="last")
    fitted = l2s(hidden_units=6, config=recipe, validation=0.0).fit(make_acts(contexts, z))
    error = float((fitted.predict(contexts) - z).double().square().sum())
    best = float(torch.linalg.svdvals(z.double())[6:].square().sum())
    assert best * (1 - 1e-6) <= error < float(z.double().square().sum())
    assert torch.linalg.matrix_rank(fitted.predict(contexts)) == 6


def test_a_zero_target_group_gets_small_vectors_and_the_others_keep_theirs():
    contexts, targets, which = clusters(300, 32, 3, seed=1)
    names = ["harmless" if k == 0 else f"b{k}" for k in which.tolist()]
    ids = [f"s{i:04d}" for i in range(300)]
    bare = [s for s, name in zip(ids, names, strict=True) if name == "harmless"]
    acts = make_acts(contexts, targets, behaviors=names, bare=bare)
    fitted = l2s(config="paper", activation="relu", zero_behaviors=("harmless",)).fit(acts)
    unseen, wanted, its = clusters(90, 32, 3, seed=2)
    predicted = fitted.predict(unseen)
    assert predicted[its == 0].norm(dim=-1).mean() < 0.1
    assert torch.cosine_similarity(predicted, wanted)[its != 0].min() > 0.95
    assert fitted.target_norm_ == pytest.approx(1.0, abs=1e-4)


def test_samples_without_contrast_are_named_unless_their_target_is_zero():
    acts = make_acts(rows(20, 8), rows(20, 8), behaviors=["x"] * 20, bare=["s0004", "s0007"])
    with pytest.raises(DataError, match=r"2 samples.*s0004.*\['x'\].*zero="):
        l2s().fit(acts)


def test_samples_without_a_context_are_named():
    acts = make_acts(rows(20, 8), rows(20, 8))
    keep = ~((acts.index["example_id"] == "s0011") & (acts.index["side"] == "prompt"))
    with pytest.raises(DataError, match=r"no context.*s0011"):
        l2s().fit(acts.rows(keep))


def test_contrasts_that_are_all_zero_are_refused_whatever_the_zero_targets_are():
    names = ["refuse"] * 12 + ["answer"] * 8
    acts = make_acts(rows(20, 8), torch.zeros(20, 8), behaviors=names)
    with pytest.raises(DataError, match=r"same state in all 12 contrasts.*positions='answer'"):
        l2s(zero_behaviors=["answer"]).fit(acts)
    with pytest.raises(DataError, match="all 20 contrasts"):
        l2s().fit(acts)
    assert l2s(zero_behaviors=["answer", "refuse"]).fit(acts).target_norm_ == 0, (
        "nothing but zero targets was asked for"
    )


def test_contrasts_read_before_their_sides_differ_are_refused(lm):
    pairs = [Example(str(i), p, "b", Contrast("No, never.", "Yes, why?")) for i, p in enumerate(["Hi", "Hello there"])]
    at_the_question = capture(lm(), pairs, layers=[2], positions="user", progress=False)
    for method in (MeanDifference(2), L2S(2, progress=False, config=QUICK)):
        with pytest.raises(DataError, match="before their answers part"):
            method.fit(at_the_question)


def test_nan_and_other_widths_are_refused():
    contexts = rows(20, 8)
    contexts[3, 3] = float("nan")
    with pytest.raises(ActivationError, match="s0003"):
        l2s().fit(make_acts(contexts, rows(20, 8)))
    with pytest.raises(MismatchError, match=r"width 9.*takes 8"):
        l2s().fit(make_acts(rows(20, 8), rows(20, 8))).predict(rows(2, 9))


def test_shuffled_rows_give_the_same_net_bit_for_bit():
    acts = make_acts(rows(40, 8), rows(40, 8, 1), behaviors=["a", "b"] * 20)
    one, two = l2s().fit(acts), l2s().fit(shuffled(acts))
    assert torch.equal(one.predict(rows(5, 8, 9)), two.predict(rows(5, 8, 9)))


def test_the_seed_decides_the_net_and_nothing_else_does():
    acts, probe = make_acts(rows(40, 8), rows(40, 8, 1)), rows(5, 8, 9)
    one = l2s(seed=1).fit(acts).predict(probe)
    before = torch.get_rng_state()
    torch.rand(3)
    state = torch.get_rng_state()
    assert torch.equal(l2s(seed=1).fit(acts).predict(probe), one)
    assert torch.equal(torch.get_rng_state(), state) and not torch.equal(state, before)
    assert not torch.equal(l2s(seed=2).fit(acts).predict(probe), one)


def test_vectors_are_the_predictions_for_the_inputs_own_contexts():
    contexts = rows(30, 8)
    acts = make_acts(contexts, rows(30, 8, 1))
    fitted = l2s().fit(acts)
    asked = fitted.vectors(Context(("s0007", "s0002"), shuffled(acts)))
    torch.testing.assert_close(asked, fitted.predict(contexts[[7, 2]]))


def test_the_context_may_come_from_another_layer():
    contexts, z = rows(30, 8), rows(30, 8, 1)
    here, there = make_acts(contexts, z), make_acts(-contexts, z)
    values = torch.cat([here.values, there.values], 1)
    both = type(here)(values, here.index, (Site(3), Site(9)))
    fitted = l2s(context_layer=9).fit(both)
    assert fitted.required_activations == (RequiredActivation(Site(9), "last"),) and fitted.site == Site(3)
    assert torch.equal(fitted.predict(-contexts), l2s().fit(there).predict(-contexts))


def test_the_norm_cap_shortens_long_vectors_only():
    acts, probe = make_acts(rows(40, 8), rows(40, 8, 1)), 10 * rows(30, 8, 9)
    free, capped = l2s().fit(acts).predict(probe), l2s(max_norm=0.5).fit(acts)
    limit = 0.5 * capped.target_norm_
    torch.testing.assert_close(capped.predict(probe).norm(dim=-1), free.norm(dim=-1).clamp(max=limit))
    torch.testing.assert_close(torch.cosine_similarity(capped.predict(probe), free), torch.ones(30))
    assert capped.target_norm_ == pytest.approx(float(P2S(3).fit(acts).table_.norm(dim=-1).mean()), rel=1e-5)


@pytest.mark.parametrize("config", ["released_safety", "released_pope", "paper"])
def test_every_preset_trains_and_learns(config):
    contexts, targets, which = clusters(120, 24, 2, seed=1)
    acts = make_acts(contexts, 3 * targets, behaviors=["yes" if k else "no" for k in which])
    fitted = l2s(hidden_units=4, config=config).fit(acts)
    assert fitted.history_["loss"].iloc[-1] < fitted.history_["loss"].iloc[0]
    assert fitted.history_["val_loss"].isna().all() == (config == "released_safety")
    assert list(fitted.history_) == ["epoch", "loss", "val_loss", "val_cos", "lr"]


def test_equalised_norms_reach_the_training_targets():
    z = torch.cat([rows(20, 8), 10 * rows(20, 8, 1)])
    acts = make_acts(rows(40, 8, 2), z, behaviors=["small"] * 20 + ["large"] * 20)
    small, large = z[:20].norm(dim=-1).mean(), z[20:].norm(dim=-1).mean()
    by_order = l2s(config=replace(QUICK, equalize_norms=True)).fit(acts)
    by_name = l2s(config=replace(QUICK, equalize_norms=("large", "small"))).fit(acts)
    assert by_order.target_norm_ == pytest.approx(float(small), rel=1e-4)
    assert by_name.target_norm_ == pytest.approx(float(large), rel=1e-4)


def test_the_published_groups_are_finer_than_the_behaviors_and_leave_rows_out():
    """Harmful, legal and financial, health, and scenario 13, which belongs to no group of the released code."""
    classes = ["harmful"] * 12 + ["expert"] * 9 + ["health"] * 6 + [None] * 5
    behaviors = ["refuse"] * 12 + ["defer"] * 15 + [""] * 5
    z = rows(32, 8) * torch.tensor([1.0] * 12 + [5.0] * 9 + [0.2] * 6 + [3.0] * 5)[:, None]
    acts = make_acts(rows(32, 8, 2), z, behaviors=behaviors)
    acts.index["class"] = acts.index["example_id"].map(
        dict(zip(acts.index["example_id"].unique(), classes, strict=True))
    )
    recipe = replace(QUICK, equalize_norms=True)
    _, targets, groups = training_pairs(acts, RequiredActivation(Site(3)), Site(3), None, (), recipe, "class")
    assert groups == [name or "" for name in classes]
    z = P2S(3).fit(acts).table_
    reference = z[:12].norm(dim=-1).mean()
    for start, end in ((0, 12), (12, 21), (21, 27)):
        torch.testing.assert_close(targets[start:end].norm(dim=-1).mean(), reference)
        torch.testing.assert_close(torch.cosine_similarity(targets, z), torch.ones(32))
    assert torch.equal(targets[27:], z[27:]), "outside the groups nothing is rescaled"
    fitted = l2s(config=recipe, groups="class").fit(acts)
    assert fitted.target_norm_ == pytest.approx(float(targets.norm(dim=-1).mean()), rel=1e-4)
    pooled = l2s(config=recipe).fit(acts).target_norm_
    assert pooled == pytest.approx(float((27 * reference + 5 * z[27:].norm(dim=-1).mean()) / 32), rel=1e-4)
    with pytest.raises(ActivationError, match="no label 'topic'"):
        l2s(config=recipe, groups="topic").fit(acts)


def test_released_is_the_released_code_for_safety():
    assert PRESETS["released"] is PRESETS["released_safety"]
    acts = make_acts(rows(9, 8), rows(9, 8, 1), behaviors=["a"] * 5 + ["b"] * 4)
    one, two = (l2s(hidden_units=2, config=name).fit(acts) for name in ("released", "released_safety"))
    assert torch.equal(one.predict(rows(3, 8)), two.predict(rows(3, 8)))


def test_a_published_state_dict_is_read_plain_or_nested(tmp_path):
    net = seeded_net(8, 4, "tanh", 0)
    torch.save(net.state_dict(), tmp_path / "plain.pt")
    torch.save({"steering_model": net.state_dict()}, tmp_path / "nested.pt")
    torch.save({"steering_model": {"other": torch.ones(1)}}, tmp_path / "other.pt")
    for name in ("plain.pt", "nested.pt"):
        read = L2S.from_published(tmp_path / name, 15, context_layer=30)
        assert torch.equal(read.predict(rows(3, 8)), net(rows(3, 8)).detach())
        assert read.required_activations[0].site == Site(30)
    with pytest.raises(MismatchError, match="other"):
        L2S.from_published(tmp_path / "other.pt", 15)
    with pytest.raises(DataError, match="max_norm"):
        L2S.from_published(tmp_path / "plain.pt", 15, max_norm=2.0).predict(rows(3, 8))


def test_too_few_samples_to_hold_any_out_are_refused():
    with pytest.raises(DataError, match="validation"):
        l2s().fit(make_acts(rows(1, 8), rows(1, 8)))


def test_an_unknown_preset_is_refused_and_an_unfitted_l2s_says_so():
    with pytest.raises(DataError, match=r"fast.*paper"):
        L2S(3, config="fast").fit(make_acts(rows(9, 8), rows(9, 8)))
    with pytest.raises(ActivationError, match="not fitted"):
        l2s().predict(rows(1, 8))
