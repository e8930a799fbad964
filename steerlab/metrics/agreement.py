"""Agreement of a detector with human labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import cohen_kappa_score, confusion_matrix

from steerlab._support.errors import DataError


@dataclass(frozen=True)
class Agreement:
    """Shares and counts of a yes/no comparison; `kappa` is NaN where both sides are the same constant."""

    accuracy: float
    kappa: float
    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int

    @property
    def n(self) -> int:
        """Number of compared answers."""
        return self.true_positive + self.false_positive + self.false_negative + self.true_negative


def agreement(labels: Sequence[bool], predictions: Sequence[bool]) -> Agreement:
    """Accuracy, Cohen's kappa and the four counts of predictions against human labels.

    Example:
        >>> agreement([True, False, False], [True, True, False]).false_positive
        1

    Args:
        labels: human labels, one truth value per answer.
        predictions: the detector's, in the same order.

    Raises:
        DataError: nothing to compare, different lengths, or something other than truth values.

    Source: Cohen (1960), through scikit-learn.
    """
    if len(labels) != len(predictions) or len(labels) == 0:
        raise DataError(f"agreement got {len(labels)} labels and {len(predictions)} predictions; expected equally many")
    truth, predicted = np.asarray(labels), np.asarray(predictions)
    if truth.dtype != bool or predicted.dtype != bool:
        raise DataError(
            f"agreement got {truth.dtype} labels and {predicted.dtype} predictions; expected True or False. "
            "Compare class names first, for example [label != '1_full_compliance' for label in labels]."
        )
    (tn, fp), (fn, tp) = confusion_matrix(truth, predicted, labels=[False, True]).tolist()
    constant = len(np.unique([truth, predicted])) == 1
    kappa = float("nan") if constant else float(cohen_kappa_score(truth, predicted))
    return Agreement((tp + tn) / len(truth), kappa, tp, fp, fn, tn)
