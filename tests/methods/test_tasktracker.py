"""TaskTracker's linear probes: features, fit, scores, storage, errors, and the import of published probes."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from synthetic_acts import check_saved, drifting, normal, shuffled, two_prompts

from steerlab import Site
from steerlab.errors import ActivationError, DataError, LoadError, MismatchError
from steerlab.methods import Context, RequiredActivation, TaskTracker, load_detector
from steerlab.methods.probe import fit_logistic
from steerlab.methods.tasktracker.published import probe_site, read_probes
from steerlab.metrics.detection import detection_auc

TRAIN, TEST = drifting(2000, seed=1), drifting(2000, seed=2)
SMALL = drifting(60, 16, 2)
ACTS = two_prompts(*SMALL)
CONTEXT = Context.of(ACTS)
SMALL_PROBE = TaskTracker([0, 1]).fit(ACTS)


def auc(probe, data):
    scores, flags = probe.score(Context.of(two_prompts(*data))), torch.tensor(data[2])
    return detection_auc(scores[flags], scores[~flags])


def fitted(features="delta", data=SMALL, **options):
    return TaskTracker(range(data[0].shape[1]), features=features, **options).fit(two_prompts(*data))


def test_delta_features_separate_classes_that_full_states_do_not():
    delta, full = (auc(fitted(features, TRAIN), TEST) for features in ("delta", "full"))
    assert delta >= 0.97
    assert 0.55 < full < 0.72  # the specification says about .63


def test_norm_features_detect_changes_of_length():
    primary, full, flags = drifting(400)
    doubled = 1 + torch.tensor(flags)[:, None, None].float()
    for factor in (doubled, 1 / doubled):  # the probe learns the sign
        data = primary, primary + (full - primary) * factor, flags
        assert auc(fitted("norm", data), data) > 0.99


@given(st.integers(0, 10_000), st.floats(0.1, 100.0))
def test_scores_are_independent_of_what_both_states_share(seed, size):
    (primary, full, flags), probe = SMALL, SMALL_PROBE
    extra = size * normal(*primary.shape, seed=seed)
    moved = Context.of(two_prompts(primary + extra, full + extra, flags))
    torch.testing.assert_close(probe.delta(moved), probe.delta(CONTEXT), atol=2e-5 * (1 + size), rtol=0)
    torch.testing.assert_close(probe.scores(moved), probe.scores(CONTEXT), atol=1e-3 * (1 + size), rtol=1e-3)


def test_swapped_prompts_negate_the_delta():
    (primary, full, flags), probe = SMALL, SMALL_PROBE
    swapped, offset = Context.of(two_prompts(full, primary, flags)), probe.intercept_.float()
    assert torch.equal(probe.delta(swapped), -probe.delta(CONTEXT))
    torch.testing.assert_close(probe.scores(swapped) - offset, offset - probe.scores(CONTEXT), atol=1e-4, rtol=1e-4)


def test_bfloat16_states_are_subtracted_in_float32():
    primary, full, flags = (x.bfloat16() if isinstance(x, torch.Tensor) else x for x in drifting(40, 16, offset=100.0))
    delta = TaskTracker(0).delta(Context.of(two_prompts(primary, full, flags)))
    assert delta.dtype == torch.float32
    assert torch.equal(delta, full.float() - primary.float())
    assert not torch.equal(delta, (full - primary).float())


def test_scores_are_log_odds_and_their_mean_ranks_inputs():
    probe = SMALL_PROBE
    by_hand = ((probe.delta(CONTEXT).double() * probe.coef_).sum(-1) + probe.intercept_).float()
    torch.testing.assert_close(probe.scores(CONTEXT), by_hand)
    torch.testing.assert_close(probe.score(CONTEXT), by_hand.mean(1))
    torch.testing.assert_close(probe.probabilities(CONTEXT), by_hand.sigmoid())
    assert probe.coef_.shape == (2, 16) and probe.intercept_.shape == (2,)
    sure = TaskTracker(0)
    sure.coef_, sure.intercept_ = torch.full((1, 16), 50.0).double(), torch.zeros(1).double()
    full = torch.tensor([1.0, 2, 3])[:, None, None].expand(3, 1, 16)
    certain = sure.score(Context.of(two_prompts(torch.zeros(3, 1, 16), full, [1, 1, 1]))).tolist()
    assert certain == sorted(set(certain))  # probabilities would all round to 1


@pytest.mark.parametrize("C", [0.01, 1.0])
def test_raw_fit_equals_scikit_learn(C):
    primary, full, flags = drifting(200, 16)
    expected = LogisticRegression(C=C, tol=1e-10, max_iter=5000).fit((full - primary)[:, 0].double().numpy(), flags)
    probe = fitted(data=(primary, full, flags), standardize=False, C=C)
    np.testing.assert_allclose(probe.coef_[0].numpy(), expected.coef_[0], atol=2e-3)
    np.testing.assert_allclose(float(probe.intercept_[0]), expected.intercept_[0], atol=2e-3)


@given(st.integers(0, 1000), st.floats(0.01, 100.0))
def test_standardized_fit_is_independent_of_units(seed, unit):
    x = np.random.default_rng(seed).normal(size=(60, 5))
    truth = (x[:, 0] + 0.5 * x[:, 1] > 0).astype(np.int64)
    (w, b), (v, c) = fit_logistic(x, truth), fit_logistic(unit * x + 7, truth)
    np.testing.assert_allclose((unit * x + 7) @ v + c, x @ w + b, atol=1e-2)


def test_fit_without_convergence_is_logged(caplog):
    with caplog.at_level(logging.WARNING):
        fitted(max_iter=1)
    assert "did not converge in 1 iterations" in caplog.text


def test_fit_is_independent_of_row_order():
    assert torch.equal(SMALL_PROBE.coef_, TaskTracker([0, 1]).fit(shuffled(ACTS)).coef_)
    assert torch.equal(SMALL_PROBE.coef_, TaskTracker([0, 1], negative=("clean",)).fit(ACTS).coef_)


def test_required_activations_and_names_by_features():
    assert TaskTracker([1, 4], task="ask", position=-2).required_activations == tuple(
        RequiredActivation(Site(layer), -2, side) for layer in (1, 4) for side in ("prompt", "ask")
    )
    assert TaskTracker(3, features="full").required_activations == (RequiredActivation(Site(3)),)
    names = [TaskTracker(0, features=f).name for f in ("delta", "norm", "full")]
    assert names == ["tasktracker", "tasktracker-norm", "tasktracker-full"]


@pytest.mark.parametrize("features", ["delta", "norm", "full"])
def test_saved_probe_is_restored_exactly(features, tmp_path):
    acts = two_prompts(*SMALL, model="tiny", layers=(3, 5))
    probe = TaskTracker((3, 5), features=features, position="last").fit(acts).calibrate(acts, fpr=0.1)
    check_saved(probe, tmp_path / "probe", Context.of(acts))
    with pytest.raises(MismatchError, match=r"hidden_size 16.*8"):
        load_detector(tmp_path / "probe", SimpleNamespace(id="tiny", hidden_size=8, n_layers=12))
    with pytest.raises(MismatchError, match=r"layers \[5\].*4 layers"):
        load_detector(tmp_path / "probe", SimpleNamespace(id="tiny", hidden_size=16, n_layers=4))


LONE = ACTS.rows(~((ACTS.index["example_id"] == "s0004") & (ACTS.index["side"] == "task")))
NARROW = Context.of(two_prompts(*drifting(6, 8, 2)))


@pytest.mark.parametrize(
    ("made", "error", "message"),
    [
        (lambda: TaskTracker([]), DataError, "at least one layer"),
        (lambda: TaskTracker([1, Site(1)]), DataError, "each once"),
        (lambda: TaskTracker(0, features="sum"), DataError, "'sum'.*delta, norm, full"),
        (lambda: TaskTracker(0, positive=("poisoned",)).fit(ACTS), DataError, "no input has behavior 'poisoned'"),
        (lambda: TaskTracker(0, negative=("injected",)).fit(ACTS), DataError, "30 inputs are both"),
        (lambda: TaskTracker(0, positive=("injected", "clean")).fit(ACTS), DataError, "0 inputs have another"),
        (lambda: TaskTracker(0, label="kind").fit(ACTS), ActivationError, "no label 'kind'"),
        (lambda: TaskTracker(7).fit(ACTS), ActivationError, "site 7 was not captured"),
        (lambda: TaskTracker(0, task="ask").fit(ACTS), ActivationError, "'ask' was not captured.*extra_prompts="),
        (lambda: TaskTracker(0).fit(LONE), ActivationError, "s0004"),
        (lambda: TaskTracker(0).score(CONTEXT), ActivationError, "not fitted"),
        (lambda: SMALL_PROBE.score(NARROW), MismatchError, "width 8, this TaskTracker takes 16"),
        (lambda: fitted(data=(SMALL[0], SMALL[0], SMALL[2])), DataError, "same state"),
    ],
)
def test_bad_input_is_refused(made, error, message):
    with pytest.raises(error, match=message):
        made()


PRIMARY, FULL, FLAGS = drifting(6, 16, 4)
FOUR_BLOCKS_ACTS = two_prompts(PRIMARY, FULL, FLAGS)
FOUR_BLOCKS = Context.of(FOUR_BLOCKS_ACTS)


@pytest.fixture
def published(tmp_path):
    """A file with probes of the layers 0, 2 and 3, for a model of four blocks and width 16."""
    probes = {f"layer{n}.coef": normal(16, seed=n) for n in (0, 2, 3)}
    probes |= {f"layer{n}.intercept": torch.tensor([n / 10]) for n in (0, 2, 3)}
    save_file(probes, tmp_path / "probes.safetensors")
    return tmp_path / "probes.safetensors"


def test_file_numbers_are_block_outputs_and_the_last_block_is_left_out(published, caplog):
    with caplog.at_level(logging.WARNING):
        probe = TaskTracker.from_published(published, 4)
    assert probe.sites == (Site(0), Site(2)) and "layer 3" in caplog.text and "final_norm" in caplog.text
    expected = (FULL - PRIMARY)[:, 2] @ load_file(published)["layer2.coef"] + 0.2
    torch.testing.assert_close(probe.scores(FOUR_BLOCKS)[:, 1], expected, atol=1e-5, rtol=1e-5)


def test_hidden_states_convention_is_one_block_lower(published):
    probe = TaskTracker.from_published(published, 4, convention="hidden_states")
    assert probe.sites == (Site(0, "block_in"), Site(1), Site(2))
    assert [probe_site(4, 4, "hidden_states"), probe_site(3, 4, "block")] == [Site(3), Site(3)]


def test_final_norm_is_applied_to_the_last_block(published):
    weight = torch.linspace(0.5, 2, 16)
    probe = TaskTracker.from_published(published, 4, final_norm=(weight, 1e-5))
    assert probe.sites == (Site(0), Site(2), Site(3))
    primary, full = (torch.nn.functional.rms_norm(x[:, 3], (16,), weight, 1e-5) for x in (PRIMARY, FULL))
    delta = probe.delta(FOUR_BLOCKS)
    torch.testing.assert_close(delta[:, 2], full - primary, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(delta[:, 1], FULL[:, 2] - PRIMARY[:, 2])
    expected = delta[:, 2] @ load_file(published)["layer3.coef"] + 0.3
    torch.testing.assert_close(probe.scores(FOUR_BLOCKS)[:, 2], expected, atol=1e-5, rtol=1e-5)


def test_a_new_fit_forgets_the_norm_of_published_probes(published):
    probe = TaskTracker.from_published(published, 4, final_norm=(torch.ones(16), 1e-5)).fit(FOUR_BLOCKS_ACTS)
    assert torch.equal(probe.scores(FOUR_BLOCKS), TaskTracker([0, 2, 3]).fit(FOUR_BLOCKS_ACTS).scores(FOUR_BLOCKS))


def test_saved_published_probe_keeps_its_final_norm(published, tmp_path):
    probe = TaskTracker.from_published(published, 4, final_norm=(torch.linspace(0.5, 2, 16), 1e-5))
    check_saved(probe, tmp_path / "probe", FOUR_BLOCKS, SimpleNamespace(id="any", hidden_size=16, n_layers=4))
    with pytest.raises(MismatchError, match=r"n_layers 4.*6"):
        load_detector(tmp_path / "probe", SimpleNamespace(id="any", hidden_size=16, n_layers=6))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n_layers": 3}, MismatchError, r"layer 3 .*3 blocks has 0 to 2.*hidden_states"),
        ({"n_layers": 2, "convention": "hidden_states"}, MismatchError, r"layer 3 .*2 blocks has 0 to 2"),
        ({"n_layers": 4, "layers": [3]}, MismatchError, "layer 3 was fitted on states after the final norm"),
        ({"n_layers": 3, "convention": "hidden_states", "layers": [3]}, MismatchError, "after the final norm"),
        ({"n_layers": 4, "layers": [1]}, MismatchError, r"no probes of layers \[1\]; it has \[0, 2, 3\]"),
        ({"n_layers": 4, "convention": "index"}, DataError, "'index'"),
        ({"n_layers": 4, "final_norm": (torch.ones(8), 1e-5)}, MismatchError, r"shape \(8,\).*width 16"),
    ],
)
def test_from_published_refuses_layers_that_do_not_fit(published, options, error, message):
    with pytest.raises(error, match=message):
        TaskTracker.from_published(published, **options)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"weight": torch.ones(4)}, "holds .'weight'.*expected layer<n>.coef"),
        ({"layer1.coef": torch.ones(4)}, "lacks .'layer1.intercept'"),
        ({"layer1.coef": torch.ones(2, 4), "layer1.intercept": torch.ones(1)}, "different shapes"),
    ],
)
def test_other_files_are_refused(tensors, message, tmp_path):
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(MismatchError, match=message):
        read_probes(tmp_path / "x.safetensors")


def test_pickles_are_not_opened(tmp_path):
    (tmp_path / "model.pickle").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(LoadError, match="not opened"):
        read_probes(tmp_path / "model.pickle")
    with pytest.raises(LoadError, match="missing"):
        read_probes(tmp_path / "missing.safetensors")


@pytest.mark.data
def test_published_phi3_probes_can_be_used(tensors):
    path = tensors / "tasktracker_phi3_linear_probes.safetensors"
    probe = TaskTracker.from_published(path, 32)
    assert probe.sites == tuple(map(Site, (0, 7, 15, 23))) and probe.coef_.shape == (4, 3072)
    primary, full, flags = drifting(4, 3072, 24)
    context = Context.of(two_prompts(primary, full, flags))
    expected = (full - primary)[:, 15] @ load_file(path)["layer15.coef"] + load_file(path)["layer15.intercept"]
    torch.testing.assert_close(probe.scores(context)[:, 2], expected, atol=1e-3, rtol=1e-4)
    assert TaskTracker.from_published(path, 32, final_norm=(torch.ones(3072), 1e-5)).sites[-1] == Site(31)
    with pytest.raises(MismatchError, match="28 blocks"):
        TaskTracker.from_published(path, 28)
