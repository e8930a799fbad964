"""The triplet probe: architecture, mining, loss, training, storage and errors."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from synthetic_acts import check_saved, drifting, normal, shuffled, two_prompts

from steerlab import Site
from steerlab.errors import ActivationError, DataError, MismatchError
from steerlab.methods import Context, RequiredActivation, TripletProbe
from steerlab.methods.tasktracker import triplet_train
from steerlab.methods.tasktracker.triplet_net import SMALL_SHAPE, TripletNet, TripletShape, make_net, min_width
from steerlab.methods.tasktracker.triplet_train import SMALL_CONFIG, TripletConfig, mine_triplets, triplet_losses
from steerlab.metrics.detection import detection_auc

SHAPE = TripletShape(channels=(4, 8), kernels=(3, 3), pools=(2, 2), embedding=32, dropout=0.1)
RECIPE = TripletConfig(epochs=6, batch_size=100, learning_rate=3e-3, check_every=5)
DATA = drifting(200, 24, 2, offset=2.0, strength=6.0, tasks=5, seed=1)
ACTS = two_prompts(*DATA)
CONTEXT = Context.of(ACTS)
ONE_EPOCH = TripletConfig(epochs=1)


def probe(layers=(0, 1), **options):
    return TripletProbe(layers, **{"shape": SHAPE, "config": RECIPE, "progress": False} | options)


def unit(n, seed):
    return torch.nn.functional.normalize(normal(n, 8, seed=seed), dim=-1)


@pytest.mark.parametrize(("hidden", "features"), [(4096, 275), (3072, 175), (8192, 350)])
def test_published_widths_have_the_published_number_of_features(hidden, features):
    shape = TripletShape()
    assert shape.fit_to(hidden)[0] == (70, 50, 30, 20, 5)
    assert shape.n_features(hidden) == features
    net = TripletNet(2, hidden, shape).eval()
    assert net.linear.in_features == 2 * features
    with torch.no_grad():
        points = net(torch.randn(2, 2, hidden))
    assert points.shape == (2, 1024)
    torch.testing.assert_close(points.norm(dim=-1), torch.ones(2))


@given(st.integers(32, 9000))
def test_every_width_from_32_fits_and_n_features_equals_the_net(hidden):
    shape = TripletShape(embedding=4)
    kernels, pools = shape.fit_to(hidden)
    assert hidden >= min_width(kernels, pools)
    assert (kernels == (70, 50, 30, 20, 5)) == (hidden >= 1557)
    assert shape.n_features(hidden) >= 25
    if hidden < 600:
        net = TripletNet(1, hidden, shape).eval()
        assert net.convolutions(torch.zeros(1, 1, hidden)).numel() == shape.n_features(hidden)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 4)), min_size=1, max_size=4))
def test_min_width_is_minimal(sizes):
    kernels, pools = zip(*sizes, strict=True)
    shape = TripletShape(channels=(1,) * len(sizes), kernels=kernels, pools=pools)
    least = min_width(kernels, pools)
    assert shape.n_features(least) == 1
    with pytest.raises(DataError, match=f"at least {least} "):
        shape.n_features(least - 1)


def test_layers_have_independent_convolutions():
    net = make_net(3, 64, TripletShape(embedding=16), seed=0).eval()
    states = torch.randn(2, 3, 64)
    moved, same = states.clone(), states[:, :1].expand(-1, 3, -1)
    moved[:, 1] += 1
    before, after, of_same = (net.convolutions(x).reshape(2, 3, -1) for x in (states, moved, same))
    changed = after != before
    assert changed[:, 1].any() and not changed[:, [0, 2]].any()
    assert not torch.equal(of_same[:, 0], of_same[:, 1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": ()}, "one number"), ({"kernels": (3, 3)}, "one number"),
        ({"pools": (2, 2, 2, 2, 0)}, "at least 1"), ({"embedding": 0}, "at least 1"),
        ({"channels": (3, 4)}, "give other kernels"),
    ],
)  # fmt: skip
def test_inconsistent_shapes_are_refused(options, message):
    with pytest.raises(DataError, match=message):
        TripletShape(**options)


def test_too_narrow_model_is_refused():
    with pytest.raises(DataError, match=r"width 16.*at least 32 .*published ones 1557"):
        TripletShape().fit_to(16)
    with pytest.raises(DataError, match=r"width 576.*at least 1557"):
        TripletShape(kernels=(70, 50, 30, 20, 5), pools=(3,) * 5).fit_to(576)


@given(st.lists(st.floats(0, 2), min_size=1, max_size=20), st.floats(0.05, 1.0), st.integers(0, 100))
def test_loss_is_zero_beyond_the_margin(near, margin, seed):
    p = torch.tensor(near)
    extra = torch.rand(len(near), generator=torch.Generator().manual_seed(seed))
    assert torch.equal(triplet_losses(p, p + margin + extra + 1e-6, margin), torch.zeros(len(near)))
    torch.testing.assert_close(triplet_losses(p, p, margin), torch.full((len(near),), margin))


@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 1000), st.booleans())
def test_mining_equals_a_double_loop(n, m, seed, hard):
    anchors, positives, negatives = unit(n, seed), unit(n, seed + 1), unit(m, seed + 2)
    expected = []
    for i in range(n):
        for j in range(m):
            loss = float((anchors[i] - positives[i]).norm() - (anchors[i] - negatives[j]).norm() + 0.3)
            if 1e-6 < loss < 0.3 - 1e-6 or (hard and loss > 0.3 + 1e-6):
                expected.append([i, j])
    assert mine_triplets(anchors, positives, negatives, 0.3, hard=hard).tolist() == expected


def test_semi_hard_bounds_are_exclusive():
    # the positive is at distance 1, so that with margin .5 negatives cost 1.5 less their distance
    negatives = torch.tensor([[0.75], [1.0], [1.25], [1.5], [1.75]])  # losses .75, .5, .25, 0, 0
    points = torch.zeros(1, 1), torch.ones(1, 1), negatives
    assert mine_triplets(*points, 0.5).tolist() == [[0, 2]]
    assert mine_triplets(*points, 0.5, hard=True).tolist() == [[0, 0], [0, 2]]


def test_training_generalizes_to_new_inputs_and_tasks():
    primary, full, flags = drifting(200, 24, 2, offset=2.0, strength=6.0, tasks=5, seed=2)
    context, truth = Context.of(two_prompts(primary, full, flags)), torch.tensor(flags)
    fitted = probe(config=TripletConfig(epochs=15, batch_size=100, learning_rate=3e-3, hard_after=0), seed=1).fit(ACTS)
    history, scores = fitted.history_, fitted.score(context)
    assert list(history) == ["step", "loss", "triplets", "val_auc", "lr"]
    assert history["val_auc"].max() > 0.9
    untrained = make_net(2, 24, SHAPE, seed=1).eval()
    before = triplet_train.task_drift(untrained, triplet_train.TripletRows(primary, full, truth))
    assert detection_auc(scores[truth], scores[~truth]) > max(0.85, detection_auc(before[truth], before[~truth]) + 0.05)
    assert scores.min() >= 0 and scores.max() <= 2


def test_small_config_and_shape_learn_from_300_inputs():
    acts = two_prompts(*drifting(300, 64, 1, offset=2.0, strength=6.0, tasks=5))
    small = TripletProbe([0], config=SMALL_CONFIG, shape=SMALL_SHAPE, progress=False).fit(acts)
    assert small.history_["val_auc"].max() > 0.9


def test_score_is_the_distance_of_two_unit_vectors():
    fitted, (first, second, flags) = probe(config=ONE_EPOCH).fit(ACTS), DATA
    primary, full, scores = fitted.embed(first), fitted.embed(second), fitted.score(CONTEXT)
    torch.testing.assert_close(primary.norm(dim=-1), torch.ones(200))
    torch.testing.assert_close(scores, (full - primary).norm(dim=-1))
    same, swapped = (fitted.score(Context.of(two_prompts(x, first, flags))) for x in (first, second))
    assert torch.equal(same, torch.zeros(200)) and torch.equal(swapped, scores)
    assert fitted.required_activations == tuple(
        RequiredActivation(Site(k), "last", side) for k in (0, 1) for side in ("prompt", "task")
    )


def test_equal_seeds_give_equal_nets_without_the_global_generator():
    torch.manual_seed(7)
    state = torch.get_rng_state()
    config, data = TripletConfig(epochs=2, batch_size=64), ((1, ACTS), (1, shuffled(ACTS)), (2, ACTS))
    first, again, other = (probe(config=config, seed=seed).fit(acts) for seed, acts in data)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.net_.parameters(), again.net_.parameters(), strict=True))
    assert not torch.equal(first.net_.linear.weight, other.net_.linear.weight)


def test_validation_inputs_select_the_weights():
    acts = two_prompts(*DATA, splits=["validation" if i < 40 else "train" for i in range(200)])
    fitted = probe().fit(acts)
    scores, truth = fitted.score(Context.of(acts.select(split="validation"))), torch.tensor(DATA[2][:40])
    assert detection_auc(scores[truth], scores[~truth]) == pytest.approx(fitted.history_["val_auc"].max(), abs=1e-9)
    assert probe(validation=0.0).fit(ACTS).history_["val_auc"].isna().all()


def test_hard_negatives_are_used_after_hard_after_steps():
    late = probe(config=TripletConfig(epochs=1, batch_size=200, step_size=10**6)).fit(ACTS)
    soon = probe(config=TripletConfig(epochs=1, batch_size=200, step_size=10**6, hard_after=0)).fit(ACTS)
    assert soon.history_["triplets"].sum() > late.history_["triplets"].sum() > 0


@pytest.mark.parametrize("standardize", [True, False])
def test_saved_probe_is_restored_exactly(standardize, tmp_path):
    acts = two_prompts(*DATA, layers=(3, 5))
    fitted = probe((3, 5), standardize=standardize, config=ONE_EPOCH).fit(acts)
    check_saved(fitted.calibrate(acts.select(behavior="clean"), fpr=0.1), tmp_path / "probe", Context.of(acts))
    assert bool(fitted.net_.offset.any()) == standardize


def test_constant_coordinates_do_not_break_a_standardized_net():
    primary, full = DATA[0].clone(), DATA[1].clone()
    primary[..., 3] = full[..., 3] = 5.0
    acts = two_prompts(primary, full, DATA[2])
    assert torch.isfinite(probe(config=ONE_EPOCH).fit(acts).score(Context.of(acts))).all()
    hardly = primary.clone()
    hardly[..., 3] += 1e-6 * normal(len(primary), 1)
    fitted = probe(config=ONE_EPOCH).fit(two_prompts(hardly, full, DATA[2]))
    moved = hardly.clone()
    moved[..., 3] += 1e-3
    scores = [fitted.score(Context.of(two_prompts(one, full, DATA[2]))) for one in (hardly, moved)]
    torch.testing.assert_close(*scores, atol=0.01, rtol=0.01)


SEPARATED = ["validation" if foreign else "train" for foreign in DATA[2]]


@pytest.mark.parametrize(
    ("made", "error", "message"),
    [
        (lambda: probe(validation=1.0), DataError, "validation=1.0"),
        (lambda: TripletConfig(epochs=0), DataError, "above 0"),
        (lambda: probe(config=TripletConfig(batch_size=1)).fit(ACTS), DataError, "no triplet was found"),
        (lambda: probe(positive=("poisoned",)).fit(ACTS), DataError, "no input has behavior 'poisoned'"),
        (lambda: probe(task="ask").fit(ACTS), ActivationError, "'ask' was not captured"),
        (lambda: probe(shape=TripletShape()).fit(ACTS), DataError, "width 24"),
        (lambda: probe().score(CONTEXT), ActivationError, "not fitted"),
        (lambda: probe().fit(two_prompts(*DATA, splits=SEPARATED)), DataError, "those to train are of one class"),
    ],
)
def test_bad_input_is_refused(made, error, message):
    with pytest.raises(error, match=message):
        made()


def test_states_of_another_width_are_refused():
    fitted = probe(config=ONE_EPOCH).fit(ACTS)
    with pytest.raises(MismatchError, match=r"\(2, 16\).*the net takes \(2, 24\)"):
        fitted.embed(torch.zeros(1, 2, 16))
