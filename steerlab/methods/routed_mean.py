"""The mean contrast vector of each behavior, chosen for an input by a probe."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from jaxtyping import Float
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from torch import Tensor

from steerlab._support.logistic import SerialLogisticRegression
from steerlab.capturing.activations import Activations
from steerlab.errors import DataError
from steerlab.methods.base import check_fitted, check_width
from steerlab.methods.predictor import Layers, VectorPredictor
from steerlab.methods.probe import check_inverse_penalty
from steerlab.methods.regression import Standardizer
from steerlab.methods.serialization import savable
from steerlab.models.sites import Site


@savable
class RoutedMean(VectorPredictor):
    """Steer each input along the mean contrast of the behavior that a probe sees in it.

    It is the strongest simple rival of L2S: it knows which behavior an input wants, and nothing else of the input.

    Example:
        >>> routed = RoutedMean(15, zero_behaviors=["answer"]).fit(acts)
        >>> routed.behaviors_, routed.accuracy_
        (('answer', 'defer', 'refuse'), 0.97)

    Args:
        layer: block whose output is contrasted and steered, 0-based; or a `Site`.
        context_layer: block whose output the probe reads from the plain prompt, or several; None: `layer`.
        context_position: token at which it is read.
        position: which captured contrast rows are averaged; None if there is only one kind.
        label: the index column of the behaviors.
        soft: the means weighted by the probabilities of the probe, instead of the mean of the most probable behavior.
        C: inverse strength of the probe's L2 penalty, as in scikit-learn (contexts are standardized).
        zero_behaviors: behaviors whose vector is zero (their examples need no contrast).

    Attributes:
        behaviors_: their names, sorted.
        means_: `(behavior, hidden)` float32, in units of the residual stream.
        weights_, intercept_: the probe's, `(context, behavior)` and `(behavior,)`, in raw units.
        accuracy_: balanced accuracy of the probe on held-out training inputs (cross-validated).

    Raises:
        DataError: fewer than two behaviors, a behavior of fewer than two examples, or an example without a behavior.
        MismatchError: contexts of another width.

    Warns:
        UserWarning: the probe is at chance.
    """

    def __init__(
        self, layer: int | Site, *, context_layer: Layers = None, context_position: str | int = "last",
        position: str | None = None, label: str = "behavior", soft: bool = False, C: float = 1.0,
        zero_behaviors: Sequence[str] | None = (),
    ) -> None:  # fmt: skip
        self.layer, self.context_layer, self.context_position = layer, context_layer, context_position
        self.position, self.label, self.soft, self.C, self.zero_behaviors = position, label, soft, C, zero_behaviors
        self.site = Site.of(layer)

    def fit_activations(self, acts: Activations) -> None:
        """Average the contrasts of each behavior and fit the probe."""
        check_inverse_penalty(self.C)
        contexts, targets, labels = self.training_pairs(acts)
        counts = {name: labels.count(name) for name in sorted(set(labels))}
        if "" in counts or len(counts) < 2 or min(counts.values()) < 2:
            raise DataError(
                f"the examples have {counts} by {self.label}: RoutedMean needs at least two behaviors of at least two "
                "examples, and one for every example"
            )
        self.behaviors_ = tuple(counts)
        members = [torch.tensor([label == name for label in labels]) for name in counts]
        self.means_ = torch.stack([targets[rows].double().mean(0).float() for rows in members])
        x = contexts.double().numpy()
        probe = make_pipeline(Standardizer(), SerialLogisticRegression(C=self.C, max_iter=5000))
        folds = StratifiedKFold(min(5, *counts.values()), shuffle=True, random_state=0)
        self.accuracy_ = float(cross_val_score(probe, x, labels, scoring="balanced_accuracy", cv=folds).mean())
        self._warn_at_chance(len(labels))
        scaler, regression = probe.fit(x, labels)
        weights, bias = torch.from_numpy(regression.coef_), torch.from_numpy(regression.intercept_)
        if len(counts) == 2:  # scikit-learn has one row for two classes: the logit of the second
            weights, bias = torch.cat([-weights, weights]) / 2, torch.cat([-bias, bias]) / 2
        weights = weights / torch.from_numpy(scaler.scale_)
        self.weights_ = weights.T.float().contiguous()
        self.intercept_ = (bias - weights @ torch.from_numpy(scaler.mean_)).float()

    def _warn_at_chance(self, n: int) -> None:
        chance = 1 / len(self.behaviors_)
        if self.accuracy_ < chance + 2 * (chance * (1 - chance) / n) ** 0.5:
            warnings.warn(
                f"the probe of RoutedMean separates the behaviors {list(self.behaviors_)} with a balanced accuracy of "
                f"{self.accuracy_:.2f} on held-out inputs, where chance is {chance:.2f}: read another layer or token",
                stacklevel=4,
            )

    def probabilities(self, contexts: Float[Tensor, "batch context"]) -> Float[Tensor, "batch behavior"]:
        """The probe's probability of each behavior, in the order of `behaviors_`."""
        check_fitted(self, "weights_")
        states = check_width(contexts, len(self.weights_), f"this {self.name}")
        return torch.softmax(states @ self.weights_ + self.intercept_, dim=-1)

    def predict(self, contexts: Float[Tensor, "batch context"]) -> Float[Tensor, "batch hidden"]:
        """The mean of the most probable behavior, or the mixture of all; `(batch, hidden)`."""
        shares = self.probabilities(contexts)
        return shares @ self.means_ if self.soft else self.means_[shares.argmax(-1)]
