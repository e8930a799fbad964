"""A linear probe: which class an input belongs to, read off one state by logistic regression."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from steerlab._support.errors import DataError
from steerlab.capture.activations import Activations
from steerlab.methods._codec import savable
from steerlab.methods.base import Context, StateDetector, check_fitted, check_width, provenance
from steerlab.methods.classes import check_disjoint, select_two_classes
from steerlab.models.sites import Site


def fit_logistic(
    x: NDArray[np.float64], truth: NDArray[np.int64], C: float = 1.0, *, standardize: bool = True, max_iter: int = 5000
) -> tuple[NDArray[np.float64], float]:
    """Weights and intercept of a logistic regression in the units of `x`, whichever units they were penalized in.

    Example:
        >>> w, b = fit_logistic(states.double().numpy(), is_harmful)
        >>> 1 / (1 + np.exp(-(x @ w + b)))                            # (rows,), probabilities

    Args:
        x: `(row, feature)`.
        truth: 1 for rows that have the thing, 0 for the others.
        C: inverse strength of the L2 penalty, as in scikit-learn.
        standardize: penalize weights of standardized features.
        max_iter: iterations of the solver at most; scikit-learn warns where they do not suffice.

    Raises:
        DataError: `C` is not positive.

    Source: scikit-learn's `LogisticRegression`.
    """
    if not C > 0:
        raise DataError(f"C={C}: the inverse strength of the penalty must be positive; 1.0 is usual")
    mean, scale = np.zeros(x.shape[1]), np.ones(x.shape[1])
    if standardize:
        scaler = StandardScaler().fit(x)
        mean, scale = scaler.mean_, scaler.scale_
    regression = LogisticRegression(C=C, max_iter=max_iter).fit((x - mean) / scale, truth)
    weights = regression.coef_[0] / scale
    return weights, float(regression.intercept_[0] - weights @ mean)


@savable
class LinearProbe(StateDetector):
    """Tell inputs of some behaviors from the others by a logistic regression of one state.

    Example:
        >>> probe = LinearProbe(12, positive=["refuse"], negative=["answer"]).fit(acts)
        >>> probe.calibrate(clean_acts, fpr=0.01).detect(Context.of(new_acts))

    Args:
        layer: block whose output is read, 0-based; or a `Site`.
        positive: labels of what is to be detected.
        negative: labels of what is not; None: every other.
        position: where the plain prompt is read.
        label: the index column with the labels.
        C: inverse strength of the L2 penalty (states are standardized first).

    Attributes:
        w_, b_: `(hidden,)` and a number, in raw units: the probability is `sigmoid(h · w_ + b_)`.

    Raises:
        DataError: a class of fewer than two inputs, or one that is in both classes.
        MismatchError: states of another width.

    Source: probes of selective steering, KL-then-steer, arXiv 2406.15518.
    """

    def __init__(
        self,
        layer: int | Site,
        *,
        positive: Sequence[str] = ("refuse",),
        negative: Sequence[str] | None = None,
        position: str | int = "last",
        label: str = "behavior",
        C: float = 1.0,  # as scikit-learn calls it
    ) -> None:
        self.layer, self.positive, self.negative = layer, positive, negative
        self.position, self.label, self.C = position, label, C

    def fit(self, acts: Activations) -> LinearProbe:
        """Fit the regression; the order of rows does not matter."""
        (ids, yes), (others, no) = select_two_classes(
            acts, self.required_activations[0], self.positive, self.negative, self.label
        )
        check_disjoint("positive", ids, yes, "negative", others, no)
        truth = np.repeat([1, 0], [len(yes), len(no)])
        w, self.b_ = fit_logistic(torch.cat([yes, no]).double().numpy(), truth, self.C)
        self.w_ = torch.from_numpy(w).float()
        self.info_ = provenance(acts)
        return self

    def score(self, context: Context) -> Float[Tensor, " batch"]:
        """The probability of each input."""
        check_fitted(self, "w_")
        h = check_width(context.read(self.required_activations[0]), len(self.w_), f"this {self.name}")
        return torch.sigmoid(h @ self.w_ + self.b_)
