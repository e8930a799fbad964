"""L2S on data with known answers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from synthetic_acts import clusters, make_acts, normal, shuffled

from steerlab import Contrast, Example, Site, capture
from steerlab.errors import ActivationError, DataError, MismatchError
from steerlab.methods import L2S, L2S_PAPER, P2S, Context, MeanDifference, RequiredActivation
from steerlab.methods.l2s.config import PRESETS
from steerlab.methods.l2s.net import seeded_net

QUICK = replace(L2S_PAPER, epochs=8, min_steps=0)


def l2s(**options):
    return L2S(3, progress=False, **{"hidden_units": 16, "config": QUICK} | options)


@pytest.mark.parametrize(("width", "hidden_units"), [(24, 16), pytest.param(512, 100, marks=pytest.mark.nightly)])
def test_constant_target_gives_the_mean_vector_for_seen_and_unseen_inputs(width, hidden_units):
    target = 3 * normal(1, width)
    acts = make_acts(normal(200, width, seed=1), target.expand(200, width))
    with pytest.warns(UserWarning, match=r"MeanDifference\(3\)"):
        fitted = l2s(config="paper", hidden_units=hidden_units).fit(acts)
    for contexts in (normal(200, width, seed=1), normal(100, width, seed=2)):
        predicted = fitted.predict(contexts)
        assert torch.cosine_similarity(predicted, target).min() > 0.99
        assert (predicted - target).norm(dim=-1).max() < 0.15 * target.norm()


def test_clusters_with_orthogonal_targets_are_recovered_and_the_mean_follows_its_closed_form():
    contexts, targets, clusters_of = clusters(400, 48, 4, seed=1)
    unseen, expected, unseen_clusters = clusters(100, 48, 4, seed=2)
    acts = make_acts(contexts, targets)
    assert torch.cosine_similarity(l2s(config="paper").fit(acts).predict(unseen), expected).min() > 0.95
    mean = MeanDifference(3).fit(acts).vector_[None]
    shares = np.bincount(clusters_of, minlength=4) / 400
    cosines = torch.tensor(shares / np.sqrt(shares @ shares), dtype=torch.float32)[unseen_clusters]
    torch.testing.assert_close(torch.cosine_similarity(mean, expected), cosines, rtol=0, atol=1e-5)


def test_prediction_error_is_bounded_by_the_best_low_rank_approximation():
    contexts, z = normal(60, 32, seed=1), normal(60, 32) * torch.linspace(3, 1, 32)
    config = replace(L2S_PAPER, epochs=150, learning_rate=1e-2, weight_decay=0.0, keep="last")
    predicted = l2s(hidden_units=6, config=config, validation=0.0).fit(make_acts(contexts, z)).predict(contexts)
    error = float((predicted - z).double().square().sum())
    best = float(torch.linalg.svdvals(z.double())[6:].square().sum())
    assert best * (1 - 1e-6) <= error < float(z.double().square().sum())
    assert torch.linalg.matrix_rank(predicted) == 6


def test_zero_behaviors_get_small_vectors_and_the_others_keep_theirs():
    contexts, targets, clusters_of = clusters(300, 32, 3, seed=1)
    behaviors = ["harmless" if k == 0 else f"b{k}" for k in clusters_of.tolist()]
    bare = [f"s{i:04d}" for i, behavior in enumerate(behaviors) if behavior == "harmless"]
    acts = make_acts(contexts, targets, behaviors=behaviors, bare=bare)
    fitted = l2s(config="paper", activation="relu", zero_behaviors=("harmless",)).fit(acts)
    unseen, expected, unseen_clusters = clusters(90, 32, 3, seed=2)
    predicted = fitted.predict(unseen)
    assert predicted[unseen_clusters == 0].norm(dim=-1).mean() < 0.1
    assert torch.cosine_similarity(predicted, expected)[unseen_clusters != 0].min() > 0.95
    assert fitted.target_norm_ == pytest.approx(1.0, abs=1e-4)


X, Z = normal(20, 8), normal(20, 8, seed=1)
BEHAVIORS = ["refuse"] * 12 + ["answer"] * 8
COMPLETE, ZEROS = make_acts(X, Z), make_acts(X, 0 * Z, behaviors=BEHAVIORS)
NO_CONTEXT = COMPLETE.rows(~((COMPLETE.index["example_id"] == "s0011") & (COMPLETE.index["side"] == "prompt")))


@pytest.mark.parametrize(
    ("acts", "options", "message"),
    [
        (make_acts(X, Z, behaviors=["x"] * 20, bare=["s0004", "s0007"]), {}, r"2 examples.*s0004.*\['x'\].*zero_behav"),
        (NO_CONTEXT, {}, r"no context.*s0011"),
        (ZEROS, {"zero_behaviors": ["answer"]}, r"same state in all 12 contrasts.*positions='answer'"),
        (ZEROS, {}, "all 20 contrasts"),
        (make_acts(X[:1], Z[:1]), {}, "validation"),
        (COMPLETE, {"config": "fast"}, r"fast.*paper"),
    ],
)
def test_incomplete_data_and_unknown_configs_are_refused(acts, options, message):
    with pytest.raises(DataError, match=message):
        l2s(**options).fit(acts)


def test_all_targets_may_be_zero_by_request():
    assert l2s(zero_behaviors=["answer", "refuse"]).fit(ZEROS).target_norm_ == 0


def test_contrasts_captured_before_the_answers_differ_are_refused(lm):
    pairs = [
        Example(p, id=str(i), behavior="b", contrast=Contrast("No, never.", "Yes, why?"))
        for i, p in enumerate(["Hi", "Hello there"])
    ]
    acts = capture(lm(), pairs, layers=[2], positions="user", progress=False)
    for method in (MeanDifference(2), L2S(2, progress=False, config=QUICK)):
        with pytest.raises(DataError, match="before the two answers differ"):
            method.fit(acts)


def test_predict_refuses_other_widths_and_unfitted_steerers():
    with pytest.raises(MismatchError, match=r"width 9.*takes 8"):
        l2s().fit(COMPLETE).predict(normal(2, 9))
    with pytest.raises(ActivationError, match="not fitted"):
        l2s().predict(X)


def test_fit_depends_on_the_seed_alone_and_not_on_row_order_or_the_global_generator():
    acts, contexts = make_acts(normal(40, 8), normal(40, 8, seed=1), behaviors=["a", "b"] * 20), normal(5, 8, seed=9)
    predicted = l2s(seed=1).fit(acts).predict(contexts)
    torch.rand(3)
    state = torch.get_rng_state()
    assert torch.equal(l2s(seed=1).fit(shuffled(acts)).predict(contexts), predicted)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(l2s(seed=2).fit(acts).predict(contexts), predicted)


def test_vectors_are_the_predictions_for_contexts_that_may_come_from_another_layer():
    contexts, z = normal(30, 8), normal(30, 8, seed=1)
    steered, read = make_acts(contexts, z), make_acts(-contexts, z)
    both = type(steered)(torch.cat([steered.values, read.values], 1), steered.index, (Site(3), Site(9)))
    fitted = l2s(context_layer=9).fit(both)
    assert fitted.required_activations == (RequiredActivation(Site(9), "last"),) and fitted.site == Site(3)
    assert torch.equal(fitted.predict(-contexts), l2s().fit(read).predict(-contexts))
    vectors = fitted.vectors(Context(("s0007", "s0002"), shuffled(both)))
    torch.testing.assert_close(vectors, fitted.predict(-contexts[[7, 2]]))


def test_max_norm_shortens_long_vectors_only():
    acts, contexts = make_acts(normal(40, 8), normal(40, 8, seed=1)), 10 * normal(30, 8, seed=9)
    unlimited, fitted = l2s().fit(acts).predict(contexts), l2s(max_norm=0.5).fit(acts)
    limited = fitted.predict(contexts)
    torch.testing.assert_close(limited.norm(dim=-1), unlimited.norm(dim=-1).clamp(max=0.5 * fitted.target_norm_))
    torch.testing.assert_close(torch.cosine_similarity(limited, unlimited), torch.ones(30))
    assert fitted.target_norm_ == pytest.approx(float(P2S(3).fit(acts).table_.norm(dim=-1).mean()), rel=1e-5)


@pytest.mark.parametrize("config", ["released_safety", "released_pope", "paper"])
def test_every_preset_reduces_the_loss(config):
    contexts, targets, clusters_of = clusters(120, 24, 2, seed=1)
    acts = make_acts(contexts, 3 * targets, behaviors=["yes" if k else "no" for k in clusters_of])
    history = l2s(hidden_units=4, config=config).fit(acts).history_
    assert PRESETS["released"] is PRESETS["released_safety"]
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]
    assert history["val_loss"].isna().all() == (config == "released_safety")
    assert list(history) == ["epoch", "loss", "val_loss", "val_cos", "lr"]


def test_equalized_norms_reach_the_training_targets():
    z = torch.cat([normal(20, 8), 10 * normal(20, 8, seed=1)])
    acts = make_acts(normal(40, 8, seed=2), z, behaviors=["small"] * 20 + ["large"] * 20)
    for equalize, reference in ((True, z[:20]), (("large", "small"), z[20:])):
        fitted = l2s(config=replace(QUICK, equalize_norms=equalize)).fit(acts)
        assert fitted.target_norm_ == pytest.approx(float(reference.norm(dim=-1).mean()), rel=1e-4)


def test_label_column_may_be_finer_than_the_behaviors_and_leave_examples_out():
    """Harmful, legal and financial, health, and scenario 13, which belongs to no group of the released code."""
    classes = ["harmful"] * 12 + ["expert"] * 9 + ["health"] * 6 + [None] * 5
    behaviors = ["refuse"] * 12 + ["defer"] * 15 + [""] * 5
    z = normal(32, 8) * torch.tensor([1.0] * 12 + [5.0] * 9 + [0.2] * 6 + [3.0] * 5)[:, None]
    acts = make_acts(normal(32, 8, seed=2), z, behaviors=behaviors)
    acts.index["class"] = np.repeat(np.array(classes, dtype=object), 3)  # prompt, positive and negative of each
    config = replace(QUICK, equalize_norms=True)
    grouped = l2s(config=config, label="class")
    _, targets, groups = grouped.training_pairs(acts)
    assert groups == [name or "" for name in classes]
    z = P2S(3).fit(acts).table_
    reference = z[:12].norm(dim=-1).mean()
    for start, end in ((0, 12), (12, 21), (21, 27)):
        torch.testing.assert_close(targets[start:end].norm(dim=-1).mean(), reference)
    torch.testing.assert_close(torch.cosine_similarity(targets, z), torch.ones(32))
    assert torch.equal(targets[27:], z[27:]), "examples without a group are not rescaled"
    assert grouped.fit(acts).target_norm_ == pytest.approx(float(targets.norm(dim=-1).mean()), rel=1e-4)
    by_behavior = l2s(config=config).fit(acts).target_norm_
    assert by_behavior == pytest.approx(float((27 * reference + 5 * z[27:].norm(dim=-1).mean()) / 32), rel=1e-4)
    with pytest.raises(ActivationError, match="no label 'topic'"):
        l2s(config=config, label="topic").fit(acts)


def test_published_weights_are_read_plain_or_nested(tmp_path):
    net, contexts = seeded_net(8, 4, "tanh", 0), normal(3, 8)
    torch.save(net.state_dict(), tmp_path / "plain.pt")
    torch.save({"steering_model": net.state_dict()}, tmp_path / "nested.pt")
    torch.save({"steering_model": {"other": torch.ones(1)}}, tmp_path / "other.pt")
    torch.save(net.state_dict() | {"encoder.bias": torch.ones(3)}, tmp_path / "shapes.pt")
    for name in ("plain.pt", "nested.pt"):
        fitted = L2S.from_published(tmp_path / name, 15, context_layer=30)
        assert torch.equal(fitted.predict(contexts), net(contexts).detach())
        assert fitted.required_activations[0].site == Site(30)
    for name, message in (("other.pt", "other"), ("shapes.pt", "shapes")):
        with pytest.raises(MismatchError, match=message):
            L2S.from_published(tmp_path / name, 15)
    with pytest.raises(DataError, match="max_norm"):
        L2S.from_published(tmp_path / "plain.pt", 15, max_norm=2.0).predict(contexts)
