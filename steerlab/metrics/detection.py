"""Detection metrics of a score: ROC AUC and true-positive rates at false-positive rates, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from steerlab._support.checks import as_number
from steerlab.errors import DataError
from steerlab.methods.base import threshold_at
from steerlab.metrics._checks import as_values
from steerlab.metrics.bootstrap import check_resampling


class Rates(NamedTuple):
    """True- and false-positive rate at a threshold; a score above the threshold counts as detected."""

    tpr: float
    fpr: float
    threshold: float


def detection_auc(positive: Any, negative: Any) -> float:
    """The ROC AUC: the probability that a positive input scores above a negative one, with ties counted half.

    Example:
        >>> detection_auc([0.9, 0.5], [0.5, 0.1])
        0.875

    Args:
        positive: scores of the positive inputs.
        negative: scores of the negative inputs.

    Raises:
        DataError: empty, NaN or infinite values.

    Source: Hanley and McNeil (1982), through scikit-learn.
    """
    yes, no = as_values(positive, "detection_auc (positive)"), as_values(negative, "detection_auc (negative)")
    return float(roc_auc_score(np.repeat([1, 0], [yes.size, no.size]), np.concatenate([yes, no])))


def rates_at(positive: Any, negative: Any, *, fpr: float | None = None, threshold: float | None = None) -> Rates:
    """True- and false-positive rate at a given false-positive rate, or at a threshold set on other inputs.

    Example:
        >>> rates_at([0.9, 0.5, 0.3], [0.4, 0.2, 0.1, 0.0], fpr=0.25)
        Rates(tpr=1.0, fpr=0.25, threshold=0.2)

    Args:
        positive, negative: as in `detection_auc`.
        fpr: the maximum share of `negative` that is detected.
        threshold: the alternative to `fpr`, as set by `Detector.calibrate`.

    Raises:
        DataError: both or neither of `fpr` and `threshold`; otherwise as `threshold_at` and `detection_auc`.
    """
    yes, no = as_values(positive, "rates_at (positive)"), as_values(negative, "rates_at (negative)")
    if (fpr is None) == (threshold is None):
        raise DataError(f"fpr={fpr} and threshold={threshold}: give one of the two")
    at = threshold_at(torch.from_numpy(no), fpr) if fpr is not None else as_number("threshold", threshold)
    return Rates(float((yes > at).mean()), float((no > at).mean()), at)


def detection_report(
    positive: Any, negative: Any, *, fpr: Sequence[float] = (0.01, 0.05), n_boot: int = 2000, level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """The AUC and the true-positive rates at some false-positive rates, with intervals from resampling both groups.

    Example:
        >>> detection_report(poisoned, clean, fpr=[0.05])      # metric: "auc", "tpr@0.05"

    Args:
        positive, negative: as in `detection_auc`.
        fpr: false-positive rates; every resample sets another threshold.
        n_boot, level, seed: as in `bootstrap_ci`.

    Returns:
        One row per metric: `metric`, `value`, `low`, `high`, `n` (inputs of both groups).

    Raises:
        DataError: as `rates_at`; `level` or `n_boot` out of range.

    Source: Efron and Tibshirani (1993), two samples; an interval always contains its value.
    """
    yes, no = as_values(positive, "detection_report (positive)"), as_values(negative, "detection_report (negative)")
    check_resampling(level, n_boot, seed)
    values = {"auc": detection_auc(yes, no)} | {f"tpr@{f:g}": rates_at(yes, no, fpr=f).tpr for f in fpr}
    rng, draws = np.random.default_rng(seed), []
    for _ in range(n_boot):
        drawn = yes[rng.integers(yes.size, size=yes.size)], np.sort(no[rng.integers(no.size, size=no.size)])
        draws.append([_auc(*drawn), *((drawn[0] > drawn[1][-1 - int(f * no.size + 1e-9)]).mean() for f in fpr)])
    low, high = np.quantile(np.array(draws), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return pd.DataFrame(
        {"metric": metric, "value": v, "low": min(a, v), "high": max(b, v), "n": yes.size + no.size}
        for (metric, v), a, b in zip(values.items(), low.tolist(), high.tolist(), strict=True)
    )


def _auc(yes: NDArray[np.float64], no: NDArray[np.float64]) -> float:
    """The AUC for `no` in ascending order; about 100 times faster than scikit-learn's in the resampling loop."""
    return float((np.searchsorted(no, yes, "left") + np.searchsorted(no, yes, "right")).mean() / 2 / no.size)
