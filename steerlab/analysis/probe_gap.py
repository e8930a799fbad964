"""Accuracy of a linear probe of each layer against the model's own answers, before L2S is trained."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from steerlab._support.logistic import SerialLogisticRegression
from steerlab.capturing.activations import Activations, sorted_by_id
from steerlab.errors import DataError
from steerlab.metrics.bootstrap import paired_bootstrap

INVERSE_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def probe_gap(
    train: Activations, test: Activations, answers: Mapping[str, str], *, label: str | None = None, seed: int = 0
) -> pd.DataFrame:
    """Accuracy of a linear probe of each layer's context state, minus the accuracy of the model's answers.

    The truth is each example's `behavior`. The probe is a logistic regression fitted on `train` alone. L2S reads the
    same states: where the gap is not above 0, the states hold no information that the answers lack, and no predicted
    vector can correct them.

    Example:
        >>> frame = probe_gap(train, test, {"q1": "yes", "q2": "no"})
        >>> frame[["layer", "probe_accuracy", "model_accuracy", "gain", "low", "high"]]

    Args:
        train, test: activations of plain prompts at the layers of interest, one row per example and position.
        answers: the model's answer to each test example, in the words of `behavior`.
        label: an index column to report separately by, for example "split".
        seed: of the probe's validation split and of the bootstrap.

    Returns:
        One row per site, position and group: `probe_accuracy`, `model_accuracy`, `gain` (their difference) with a
        paired 95 % bootstrap interval `low`, `high`, and `n`.

    Raises:
        DataError: one class only, a test example without an answer or with one that is a behavior in other letters
            ("Yes." for "yes"), an example in both, or different sites in `train` and `test`.
    """
    if both := sorted(set(train.index["example_id"]) & set(test.index["example_id"])):
        raise DataError(f"{len(both)} examples are in train and test, first {both[:3]}: test on others")
    if set(train.sites) != set(test.sites):
        raise DataError(f"train has the sites {list(map(str, train.sites))}, test {list(map(str, test.sites))}")
    rows = []
    for site in test.sites:
        for position in dict.fromkeys(test.index.loc[test.index["side"] == "prompt", "position"]):
            ids, x = sorted_by_id(*train.by_example(site, side="prompt", position=position))
            probe = fit_probe(x.double().numpy(), train.labels(ids), seed)
            ids, x = sorted_by_id(*test.by_example(site, side="prompt", position=position))
            truth = np.array(test.labels(ids))
            if missing := [example_id for example_id in ids if example_id not in answers]:
                raise DataError(f"{len(missing)} test examples have no answer, first {missing[:3]}")
            known = set(truth.tolist())
            nearly = {_letters(one) for one in known} - {""}
            if other := {a for i in ids if (a := answers[i]) not in known and _letters(a) in nearly}:
                raise DataError(f"answers {sorted(other)[:3]} are no behaviors, but nearly: use {sorted(known)}")
            by_probe = probe.predict(x.double().numpy()) == truth
            by_model = np.array([answers[example_id] for example_id in ids]) == truth
            groups = np.array(test.labels(ids, label)) if label else np.full(len(ids), "all")
            for name in dict.fromkeys(groups):
                compared = _compared(by_probe[groups == name], by_model[groups == name], seed)
                rows.append({"layer": site.layer, "site": str(site), "position": position, "group": name, **compared})
    return pd.DataFrame(rows)


def fit_probe(x: NDArray[np.float64], truth: Sequence[str], seed: int = 0) -> GridSearchCV:
    """A standardized logistic regression on all rows, its penalty selected on a random fifth of them.

    Raises:
        DataError: only one class.
    """
    if len(set(truth)) < 2:
        raise DataError(f"a probe needs two classes, got {sorted(set(truth))}")
    held_out = np.random.default_rng(seed).permutation(len(truth)) < max(1, len(truth) // 5)
    search = GridSearchCV(
        make_pipeline(StandardScaler(), SerialLogisticRegression(max_iter=2000)),
        {"seriallogisticregression__C": INVERSE_PENALTIES},
        cv=PredefinedSplit(np.where(held_out, 0, -1)),
    )
    return search.fit(x, np.array(truth))


def _letters(text: str) -> str:
    return re.sub(r"\W", "", text).lower()


def _compared(by_probe: NDArray[np.bool_], by_model: NDArray[np.bool_], seed: int) -> dict[str, float]:
    gain = paired_bootstrap(by_probe.astype(float), by_model.astype(float), seed=seed)
    return {
        "probe_accuracy": float(by_probe.mean()), "model_accuracy": float(by_model.mean()),
        "gain": gain.value, "low": gain.low, "high": gain.high, "n": gain.n,
    }  # fmt: skip
