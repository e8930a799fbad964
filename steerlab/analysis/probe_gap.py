"""Can L2S help here? Only where a model's state knows better than its answer does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from steerlab._support.errors import DataError
from steerlab.capture.activations import Activations
from steerlab.metrics.bootstrap import bootstrap_ci

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def probe_gap(
    train: Activations,
    test: Activations,
    answers: Mapping[str, str],
    *,
    group: str | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """What a linear probe reads off each layer's context state, against what the model answers itself.

    The truth is each sample's `behavior`. The probe is a logistic regression fitted on `train` alone, its penalty
    chosen on a fifth of it. L2S reads the same states: where the probe is no better than the answers, the error lies
    before the state (the model can't see), and no predicted vector will mend it.

    Example:
        >>> probe_gap(train, test, {"q1": "yes", "q2": "no"})[["layer", "probe", "own", "gain", "low", "high"]]

    Args:
        train, test: activations of plain prompts at the layers of interest, one row per sample and position.
        answers: what the model answered to each test sample, in the words of `behavior`.
        group: a label of the index to report separately by, for example "split".
        seed: decides the fifth and the bootstrap.

    Returns:
        One row per site, position and group: `probe` and `own` (accuracy), `gain` (their difference) with a paired
        95 % bootstrap interval `low`, `high`, and `n`.

    Raises:
        DataError: one class only, a test sample without an answer, or layers that were not captured in both.

    Source: own; the ceiling of what a context state tells is that of linear probing.
    """
    if set(train.sites) != set(test.sites):
        raise DataError(f"train has the sites {list(map(str, train.sites))}, test {list(map(str, test.sites))}")
    rows = []
    for site in test.sites:
        for position in dict.fromkeys(test.index.loc[test.index["side"] == "prompt", "position"]):
            ids, x = train.by_example(site, side="prompt", position=position)
            probe = fit_probe(x.double().numpy(), train.labels(ids), seed)
            ids, x = test.by_example(site, side="prompt", position=position)
            truth = np.array(test.labels(ids))
            missing = [example_id for example_id in ids if example_id not in answers]
            if missing:
                raise DataError(f"{len(missing)} test samples have no answer, first {missing[:3]}")
            right = probe.predict(x.double().numpy()) == truth
            own = np.array([answers[example_id] for example_id in ids]) == truth
            groups = np.array(test.labels(ids, group)) if group else np.full(len(ids), "all")
            for name in dict.fromkeys(groups):
                told = _compared(right[groups == name], own[groups == name], seed)
                rows.append({"layer": site.layer, "site": str(site), "position": position, "group": name, **told})
    return pd.DataFrame(rows)


def fit_probe(x: NDArray[np.float64], truth: Sequence[str], seed: int = 0) -> Pipeline:
    """A standardized logistic regression, its penalty chosen on a fifth of the rows.

    Raises:
        DataError: only one class.
    """
    y = np.array(truth)
    if len(set(truth)) < 2:
        raise DataError(f"a probe needs two classes, got {sorted(set(truth))}")
    held = np.random.default_rng(seed).permutation(len(y)) < len(y) // 5

    def made(strength: float) -> Pipeline:
        return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000))

    scores = [made(c).fit(x[~held], y[~held]).score(x[held], y[held]) for c in STRENGTHS]
    return made(STRENGTHS[int(np.argmax(scores))]).fit(x, y)


def _compared(right: NDArray[np.bool_], own: NDArray[np.bool_], seed: int) -> dict[str, float]:
    gain = right.astype(float) - own.astype(float)
    found = bootstrap_ci(gain.tolist(), seed=seed)
    return {
        "probe_accuracy": float(right.mean()), "model_accuracy": float(own.mean()), "gain": float(gain.mean()),
        "low": found.low, "high": found.high, "n": len(gain),
    }  # fmt: skip
