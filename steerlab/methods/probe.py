"""A linear probe: the class of an input, predicted from one state by logistic regression."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from steerlab._support.checks import as_number
from steerlab._support.logistic import SerialLogisticRegression
from steerlab.capturing.activations import Activations
from steerlab.errors import DataError
from steerlab.methods.base import Context, Detector, StateDetector, check_fitted, check_origin, check_width
from steerlab.methods.classes import check_disjoint, select_two_classes
from steerlab.methods.regression import Standardizer
from steerlab.methods.serialization import savable
from steerlab.models.sites import Site


def check_inverse_penalty(C: float) -> None:
    """Refuse an inverse strength of the penalty that is not positive.

    Raises:
        DataError: `C` is not positive.
    """
    if not as_number("C", C) > 0:
        raise DataError(f"C={C}: the inverse strength of the penalty must be positive; 1.0 is usual")


def fit_logistic(
    x: NDArray[np.float64], truth: NDArray[np.int64], C: float = 1.0, *, standardize: bool = True, max_iter: int = 5000
) -> tuple[NDArray[np.float64], float]:
    """Weights and intercept of a logistic regression, in the units of `x`.

    Example:
        >>> w, b = fit_logistic(states.double().numpy(), is_harmful)
        >>> 1 / (1 + np.exp(-(x @ w + b)))                            # (rows,), probabilities

    Args:
        x: `(row, feature)`.
        truth: 1 for rows of the positive class, 0 for the others.
        C: inverse strength of the L2 penalty, as in scikit-learn.
        standardize: penalize the weights of standardized features.
        max_iter: largest number of solver iterations; scikit-learn warns if they do not suffice.

    Raises:
        DataError: `C` is not positive.
    """
    check_inverse_penalty(C)
    mean, scale = np.zeros(x.shape[1]), np.ones(x.shape[1])
    if standardize:
        scaler = Standardizer().fit(x)
        mean, scale = scaler.mean_, scaler.scale_
    regression = SerialLogisticRegression(C=C, max_iter=max_iter).fit((x - mean) / scale, truth)
    weights = regression.coef_[0] / scale
    return weights, float(regression.intercept_[0] - weights @ mean)


@savable
class LinearProbe(StateDetector):
    """Detect inputs of some behaviors by a logistic regression on one state.

    Example:
        >>> probe = LinearProbe(12, positive=["refuse"], negative=["answer"]).fit(acts)
        >>> probe.calibrate(clean_acts, fpr=0.01).detect(Context.of(new_acts))

    Args:
        layer: block whose output is read, 0-based; or a `Site`.
        positive: labels of the inputs to detect.
        negative: labels of the other class; None: every other label.
        position: token of the plain prompt whose state is read.
        label: the index column of the labels.
        C: inverse strength of the L2 penalty (states are standardized first).

    Attributes:
        w_, b_: `(hidden,)` and a number, in raw units: the probability is `sigmoid(h · w_ + b_)`.

    Raises:
        DataError: a class of fewer than two inputs, or an input in both classes.
        MismatchError: states of another width.

    Source: probes of selective steering, KL-then-steer, arXiv 2406.15518.
    """

    def __init__(
        self, layer: int | Site, *, positive: Sequence[str] = ("refuse",), negative: Sequence[str] | None = None,
        position: str | int = "last", label: str = "behavior", C: float = 1.0,
    ) -> None:  # fmt: skip
        self.layer, self.positive, self.negative = layer, positive, negative
        self.position, self.label, self.C = position, label, C

    def fit_activations(self, acts: Activations) -> None:
        """Fit the regression; the order of rows does not matter."""
        yes, no = select_two_classes(acts, self.required_activations[0], self.positive, self.negative, self.label)
        check_disjoint("positive", *yes, "negative", *no)
        truth = np.repeat([1, 0], [len(yes[0]), len(no[0])])
        w, self.b_ = fit_logistic(torch.cat([yes[1], no[1]]).double().numpy(), truth, self.C)
        self.w_ = torch.from_numpy(w).float()

    def score(self, context: Context) -> Float[Tensor, " batch"]:
        """The probability of the positive class for each input."""
        check_fitted(self, "w_")
        check_origin(self, context)
        states = check_width(context.get_states(self.required_activations[0]), len(self.w_), f"this {self.name}")
        return torch.sigmoid(states.double() @ self.w_.double() + self.b_)  # in float32 it is 1 from 17 on

    def calibrate(self, clean: Activations | Context, *, fpr: float = 0.01) -> Detector:
        """As `Detector.calibrate`; refused where clean inputs have probability 1, above which nothing is detected."""
        super().calibrate(clean, fpr=fpr)
        if self.threshold_ == 1:
            del self.threshold_
            raise DataError(f"the probe is sure that clean inputs are {self.positive}: fit it with a smaller C")
        return self
