"""ROC AUC against the share of pairs in order, rates against counts, and their intervals."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from steerlab.errors import DataError
from steerlab.methods.base import threshold_at
from steerlab.metrics.detection import _auc, detection_auc, detection_report, rates_at

# few values, so that there are many ties within and between the groups
few = st.lists(st.integers(0, 6), min_size=1, max_size=30)
many = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30)


@given(st.one_of(few, many), st.one_of(few, many))
def test_auc_equals_the_share_of_pairs_in_order_with_ties_counted_half(positive, negative):
    wins = np.mean([(p > q) + 0.5 * (p == q) for p in positive for q in negative])
    assert detection_auc(positive, negative) == pytest.approx(float(wins), abs=1e-12)
    assert _auc(np.array(positive, float), np.sort(np.array(negative, float))) == pytest.approx(float(wins), abs=1e-12)


@given(few, few, st.floats(0, 0.99))
def test_rates_are_shares_above_the_calibrated_threshold(positive, negative, fpr):
    if 0 < fpr < 1 / len(negative):
        fpr = 0.0
    found = rates_at(positive, negative, fpr=fpr)
    assert found.threshold == threshold_at(torch.tensor(negative, dtype=torch.float64), fpr)
    assert found.fpr == np.mean(np.array(negative) > found.threshold) <= fpr + 1e-9
    assert found.tpr == np.mean(np.array(positive) > found.threshold)
    assert rates_at(positive, negative, threshold=found.threshold) == found


@given(few, few, st.integers(0, 100))
def test_intervals_contain_their_values_and_are_reproducible(positive, negative, seed):
    table = detection_report(positive, negative, fpr=[0.0], n_boot=40, seed=seed)
    assert table["metric"].tolist() == ["auc", "tpr@0"]
    assert table["value"].tolist() == [detection_auc(positive, negative), rates_at(positive, negative, fpr=0.0).tpr]
    assert ((table["low"] <= table["value"]) & (table["value"] <= table["high"])).all()
    assert table["low"].min() >= 0 and table["high"].max() <= 1 and set(table["n"]) == {len(positive) + len(negative)}
    assert table.equals(detection_report(positive, negative, fpr=[0.0], n_boot=40, seed=seed))


def test_interval_of_the_auc_has_delongs_width():
    rng = np.random.default_rng(0)
    yes, no = rng.normal(1.0, 1.0, 400), rng.normal(0.0, 1.0, 400)
    row = detection_report(yes, no, fpr=[0.05], n_boot=500).iloc[0]
    # DeLong's variance, from each score's share of wins
    v = (yes[:, None] > no[None]).mean(1).var(ddof=1) / 400 + (yes[:, None] > no[None]).mean(0).var(ddof=1) / 400
    assert row["high"] - row["low"] == pytest.approx(2 * 1.96 * v**0.5, rel=0.15)
    assert row["low"] < 0.7602 < row["high"]  # of two normals one deviation apart


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: detection_auc([], [1.0]), r"positive\) got shape \(0,\)"),
        (lambda: detection_auc([1.0], [float("nan")]), r"negative\) got 1 NaN"),
        (lambda: rates_at([1.0], [0.0] * 10, fpr=0.01), "10 clean inputs can't tell"),
        (lambda: rates_at([1.0], [0.0], fpr=1.0), "fpr=1.0"),
        (lambda: detection_report([1.0], [0.0], fpr=[0.0], n_boot=0), "n_boot=0"),
        (lambda: detection_report([1.0], [0.0], fpr=[0.0], level=1.0), "level=1.0"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(DataError, match=message):
        call()
