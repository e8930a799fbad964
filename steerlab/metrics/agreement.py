"""How far a detector agrees with people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import cohen_kappa_score

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
        """How many answers were compared."""
        return self.true_positive + self.false_positive + self.false_negative + self.true_negative


def agreement(labels: Sequence[bool], predictions: Sequence[bool]) -> Agreement:
    """Accuracy, Cohen's kappa and the four counts of predictions against human labels.

    Example:
        >>> agreement([True, False, False], [True, True, False]).false_positive
        1

    Args:
        labels: what people said, one truth value per answer.
        predictions: what the detector said, in the same order.

    Raises:
        DataError: nothing to compare, different lengths, or something other than truth values.

    Source: Cohen (1960), through scikit-learn.
    """
    if len(labels) != len(predictions) or len(labels) == 0:
        raise DataError(f"agreement got {len(labels)} labels and {len(predictions)} predictions; expected equally many")
    gold, said = np.asarray(labels), np.asarray(predictions)
    if gold.dtype != bool or said.dtype != bool:
        raise DataError(
            f"agreement got {gold.dtype} labels and {said.dtype} predictions; expected True or False. "
            "Compare class names first, for example [label != '1_full_compliance' for label in labels]."
        )
    constant = len(set(gold.tolist()) | set(said.tolist())) == 1
    return Agreement(
        accuracy=float((gold == said).mean()),
        kappa=float("nan") if constant else float(cohen_kappa_score(gold, said)),
        true_positive=int((gold & said).sum()),
        false_positive=int((~gold & said).sum()),
        false_negative=int((gold & ~said).sum()),
        true_negative=int((~gold & ~said).sum()),
    )
