"""A linear probe: which class an input belongs to, read off one state by logistic regression."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from steerlab._support.errors import DataError, MismatchError
from steerlab.capture.activations import Activations
from steerlab.methods._codec import savable
from steerlab.methods.base import Context, Detector, Read, check_fitted, provenance
from steerlab.methods.classes import check_apart, class_rows
from steerlab.models.sites import Site


def fit_logistic_probe(
    positive: Float[Tensor, "n hidden"], negative: Float[Tensor, "m hidden"], c: float = 1.0
) -> tuple[Float[Tensor, " hidden"], float]:
    """Weights and intercept, in raw units, of a logistic regression that was fitted on standardised states.

    Example:
        >>> w, b = fit_logistic_probe(harmful, harmless)
        >>> torch.sigmoid(states @ w + b)                             # (rows,)

    Args:
        positive, negative: `(row, hidden)` states of the two classes.
        c: inverse strength of the L2 penalty, as in scikit-learn.

    Raises:
        DataError: `c` is not positive.

    Source: scikit-learn's `LogisticRegression`.
    """
    if not c > 0:
        raise DataError(f"C={c}: the inverse strength of the penalty must be positive; 1.0 is usual")
    x = torch.cat([positive, negative]).double().numpy()
    y = np.r_[np.ones(len(positive)), np.zeros(len(negative))]
    fitted = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=5000)).fit(x, y)
    scaler, regression = fitted[0], fitted[1]
    w = regression.coef_[0] / scaler.scale_
    b = float(regression.intercept_[0] - w @ scaler.mean_)
    return torch.from_numpy(w).float(), b


@savable
class LinearProbe(Detector):
    """Tell inputs of some behaviours from the others by a logistic regression of one state.

    Example:
        >>> probe = LinearProbe(12, positive=["refuse"], negative=["answer"]).fit(acts)
        >>> probe.calibrate(clean_acts, fpr=0.01).detects(Context.of(new_acts))

    Args:
        layer: block whose output is read, 0-based; or a `Site`.
        positive: labels of what is to be detected.
        negative: labels of what is not; None: every other.
        position: where the plain prompt is read.
        label: the index column with the labels.
        C: inverse strength of the L2 penalty (states are standardised first).

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
        label: str = "behaviour",
        C: float = 1.0,  # as scikit-learn calls it
    ) -> None:
        self.layer, self.positive, self.negative = layer, positive, negative
        self.position, self.label, self.C = position, label, C
        self.site = layer if isinstance(layer, Site) else Site(layer)

    @property
    def reads(self) -> tuple[Read, ...]:
        """One state of the plain prompt."""
        return (Read(self.site, self.position),)

    def fit(self, acts: Activations) -> LinearProbe:
        """Fit the regression; the order of rows does not matter."""
        (ids, yes), (others, no) = two_classes(acts, self.reads[0], self.positive, self.negative, self.label)
        check_apart("positive", ids, yes, "negative", others, no)
        self.w_, self.b_ = fit_logistic_probe(yes, no, self.C)
        self.info_ = provenance(acts)
        return self

    def score(self, context: Context) -> Float[Tensor, " batch"]:
        """The probability of each input."""
        check_fitted(self, "w_")
        h = checked_width(context.read(self.reads[0]), self.w_, self.name)
        return torch.sigmoid(h @ self.w_ + self.b_)


def two_classes(
    acts: Activations, read: Read, positive: Sequence[str], negative: Sequence[str] | None, label: str
) -> tuple[tuple[list[str], Tensor], tuple[list[str], Tensor]]:
    """Ids and states of two classes; without `negative`, of those with one of the labels and of all others."""
    yes = class_rows(acts, read, positive, label=label)
    if negative is not None:
        return yes, class_rows(acts, read, negative, label=label)
    ids, values = class_rows(acts, read, None, label=label)
    mine = set(yes[0])
    keep = [i for i, name in enumerate(ids) if name not in mine]
    if len(keep) < 2:
        raise DataError(
            f"{len(keep)} inputs have another {label} than {list(positive)}, at least 2 are needed to tell them from"
        )
    return yes, ([ids[i] for i in keep], values[keep])


def checked_width(h: Tensor, w: Tensor, name: str) -> Float[Tensor, "batch hidden"]:
    """States as float32, refused where they are not as wide as what was learnt."""
    if h.shape[-1] != len(w):
        raise MismatchError(
            f"the states have width {h.shape[-1]}, this {name} takes {len(w)}: "
            "read them from the model it was learnt on"
        )
    return h.float()
