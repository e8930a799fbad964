"""Thresholds, linear probes and condition vectors against their definitions."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler
from synthetic_acts import check_saved, make_acts, shuffled

from steerlab import Activations, SteeringVector, load_steerer
from steerlab.errors import ActivationError, DataError, MismatchError
from steerlab.methods import ConditionVector, Context, LinearProbe, load_detector, threshold_at
from steerlab.methods.serialization import save

D, N = 24, 60
GENERATOR = torch.Generator().manual_seed(3)
AXIS = torch.nn.functional.normalize(torch.randn(D, generator=GENERATOR), dim=0)
STATES = torch.randn(N, D, generator=GENERATOR) + 40.0  # all states share one large direction, as in language models
LABELS = ["refuse" if i % 3 == 0 else "answer" for i in range(N)]
POSITIVE = torch.tensor([label == "refuse" for label in LABELS])
STATES[POSITIVE] += 4 * AXIS
ACTS = make_acts(STATES, None, behaviors=LABELS)


@given(st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=50), st.just(0.0) | st.floats(0.001, 0.99))
def test_threshold_is_the_lowest_with_the_allowed_false_positive_rate(scores, fpr) -> None:
    if 0 < fpr < 1 / len(scores):
        with pytest.raises(DataError, match="give at least"):
            threshold_at(torch.tensor(scores), fpr)
        return
    threshold, values = threshold_at(torch.tensor(scores), fpr), np.array(scores)
    assert threshold in values and (values > threshold).mean() <= fpr + 1e-9
    below = values[values < threshold]
    if len(below):
        assert (values > below.max()).mean() > fpr - 1e-9


def test_threshold_refuses_invalid_rates_and_no_scores() -> None:
    for fpr in (-0.1, 1.0, float("nan")):
        with pytest.raises(DataError, match="share of false alarms"):
            threshold_at(torch.zeros(3), fpr)
    with pytest.raises(DataError, match="0 clean inputs"):
        threshold_at(torch.zeros(0), 0.1)


@pytest.mark.parametrize("detector", [LinearProbe(3), ConditionVector(3), ConditionVector(3, direction="means")])
def test_detectors_separate_the_classes_for_any_row_order(detector) -> None:
    scores = detector.fit(ACTS).score(Context.of(ACTS))
    assert roc_auc_score(POSITIVE.numpy(), scores.numpy()) > 0.98
    assert torch.equal(detector.fit(shuffled(ACTS)).score(Context.of(ACTS)), scores)
    detected = detector.calibrate(ACTS.select(behavior="answer"), fpr=0.05).detect(Context.of(ACTS))
    assert detected[~POSITIVE].float().mean() <= 0.05 and detected[POSITIVE].float().mean() > 0.8


def test_probe_equals_scikit_learn_on_standardized_states() -> None:
    x = STATES.double().numpy()
    scaler = StandardScaler().fit(x)
    expected = LogisticRegression(max_iter=5000).fit(scaler.transform(x), POSITIVE.numpy())
    scores = LinearProbe(3).fit(ACTS).score(Context.of(ACTS))
    np.testing.assert_allclose(scores, expected.predict_proba(scaler.transform(x))[:, 1], atol=1e-4)


def test_a_probe_separates_inputs_of_which_it_is_very_sure() -> None:
    probe = LinearProbe(3).fit(ACTS)
    probe.w_, probe.b_ = AXIS, 0.0
    clean, harmful = ([Context.of(make_acts(k * AXIS[None], None)) for k in some] for some in ((-9, 30), (33,)))
    assert probe.calibrate(clean[1], fpr=0.0).detect(harmful[0]).all() and not probe.detect(clean[0]).any()
    with pytest.raises(DataError, match="sure that clean inputs are"):
        probe.calibrate(Context.of(make_acts(60 * AXIS[None], None)), fpr=0.0)


def test_labels_are_numbers_or_texts_and_a_misspelled_one_is_refused() -> None:
    numbers = ACTS.index["example_id"].str[1:].astype(int) % 3
    of_numbers, of_names = (
        Activations(ACTS.values, ACTS.index.assign(kind=kinds), ACTS.sites, ACTS.info)
        for kinds in (numbers.map({0: 0, 1: "k1", 2: 2}), numbers.map("k{}".format))
    )
    one = LinearProbe(3, positive=["k1"], label="kind").fit(of_numbers)
    assert torch.equal(one.w_, LinearProbe(3, positive=["k1"], label="kind").fit(of_names).w_), "0 is a label too"
    with pytest.raises(DataError, match="no input has behavior 'answr'"):
        ConditionVector(3, negative=["answer", "answr"]).fit(ACTS)


def test_condition_score_is_the_cosine_of_the_centered_state() -> None:
    condition = ConditionVector(3, direction="means").fit(ACTS)
    means = STATES[POSITIVE].mean(0), STATES[~POSITIVE].mean(0)
    axis = (means[0] - means[1]) / (means[0] - means[1]).norm()
    centered = STATES - (means[0] + means[1]) / 2
    expected = (centered @ axis) / centered.norm(dim=1)
    torch.testing.assert_close(condition.score(Context.of(ACTS)), expected, atol=1e-4, rtol=0)
    pca = ConditionVector(3).fit(make_acts(STATES + 100.0, None, behaviors=LABELS))
    assert torch.nn.functional.cosine_similarity(pca.direction_, AXIS, dim=0) > 0.8


def test_negative_none_means_all_other_labels_and_another_column_can_hold_them() -> None:
    acts = make_acts(STATES, None, behaviors=[*LABELS[:30], *["defer"] * 30])
    named = LinearProbe(3, negative=("answer", "defer")).fit(acts)
    assert torch.equal(named.w_, LinearProbe(3).fit(acts).w_)
    assert not torch.equal(named.w_, LinearProbe(3, negative=("answer",)).fit(acts).w_)
    index = ACTS.index.assign(outcome=["no" if flag else "yes" for flag in POSITIVE], behavior="b")
    acts = Activations(ACTS.values, index, ACTS.sites)
    assert torch.equal(LinearProbe(3, positive="no", label="outcome").fit(acts).w_, LinearProbe(3).fit(ACTS).w_)


SAME_MEANS = torch.stack([AXIS, -AXIS, AXIS.flip(0), -AXIS.flip(0)])
BOTH = (LinearProbe, ConditionVector)


@pytest.mark.parametrize(
    ("methods", "acts", "options", "error", "message"),
    [
        (BOTH, make_acts(STATES, None, behaviors=["refuse", *["answer"] * (N - 1)]), {}, DataError,
         r"1 inputs have behavior in \['refuse'\].*at least 2"),
        (BOTH, ACTS.select(behavior="refuse"), {}, DataError, "0 inputs have another behavior"),
        (BOTH, make_acts(torch.cat([STATES, STATES[:1]]), None, behaviors=[*LABELS, "answer"]), {}, DataError,
         r"1 negative inputs have the same state as a positive one, first 's0060'"),
        (BOTH, ACTS, {"negative": ("refuse", "answer")}, DataError, "20 inputs are both"),
        (BOTH, ACTS, {"label": "outcome"}, ActivationError, "no label 'outcome'"),
        (BOTH[:1], ACTS, {"C": 0.0}, DataError, r"C=0\.0"),
        (BOTH[1:], ACTS, {"direction": "mean"}, DataError, "expected 'pca' or 'means'"),
        (BOTH[1:], make_acts(SAME_MEANS, None, behaviors=["refuse", "refuse", "answer", "answer"]), {}, DataError,
         "same mean state"),
    ],
)  # fmt: skip
def test_fit_refuses_invalid_classes_and_settings(methods, acts, options, error, message) -> None:
    for method in methods:
        with pytest.raises(error, match=message):
            method(3, **options).fit(acts)


@pytest.mark.parametrize("method", BOTH)
def test_scores_need_a_fit_and_the_same_width_and_detection_a_threshold(method) -> None:
    with pytest.raises(ActivationError, match="not fitted"):
        method(3).score(Context.of(ACTS))
    with pytest.raises(ActivationError, match="no threshold"):
        method(3).fit(ACTS).detect(Context.of(ACTS))
    fitted, read_by = method(3).fit(ACTS), {"model": "m", "weights": "w"}
    fitted.info_ = {"model": "n", "weights": "v"}
    clean = Activations(ACTS.values, ACTS.index, ACTS.sites, read_by)
    for read in (clean, Context.of(clean)):
        with pytest.raises(MismatchError, match="use the same model for both"):
            fitted.calibrate(read, fpr=0.1)
    with pytest.raises(MismatchError, match=r"width 5.*takes 24"):
        method(3).fit(ACTS).score(Context.of(make_acts(STATES[:, :5], None, behaviors=LABELS)))


def test_loaded_detectors_score_the_same_and_are_not_steerers(tmp_path: Path) -> None:
    for detector in (LinearProbe(3), ConditionVector(3)):
        detector.fit(ACTS).calibrate(ACTS.select(behavior="answer"), fpr=0.1)
        check_saved(detector, tmp_path / detector.name, Context.of(ACTS))
        with pytest.raises(
            MismatchError, match=rf"expected a Steerer: read it with {type(detector).__name__}\.from_pretrained"
        ):
            load_steerer(tmp_path / detector.name)
    save(SteeringVector({1: AXIS}), tmp_path / "mean")
    with pytest.raises(MismatchError, match=r"holds a SteeringVector, expected a Detector"):
        load_detector(tmp_path / "mean")
    with pytest.raises(ActivationError, match="not fitted"):
        save(LinearProbe(1), tmp_path / "bare")


def test_context_of_activations_lists_every_input_once() -> None:
    index = pd.concat([ACTS.index, ACTS.index.assign(position="user")], ignore_index=True)
    acts = Activations(torch.cat([ACTS.values, ACTS.values]), index, ACTS.sites)
    assert Context.of(acts).example_ids == tuple(ACTS.index["example_id"])
