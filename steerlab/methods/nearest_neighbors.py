"""The mean contrast vector of the training inputs that are closest to an input."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from steerlab._support.checks import as_whole
from steerlab.capturing.activations import Activations
from steerlab.errors import DataError
from steerlab.methods.base import check_fitted, check_width
from steerlab.methods.predictor import Layers, VectorPredictor
from steerlab.methods.regression import deviations
from steerlab.methods.serialization import savable
from steerlab.models.sites import Site


@savable
class NearestNeighbors(VectorPredictor):
    """Steer each input along the mean contrast of the k training inputs whose contexts are closest to its own.

    Example:
        >>> neighbors = NearestNeighbors(15, k=10).fit(acts)

    Args:
        layer: block whose output is contrasted and steered, 0-based; or a `Site`.
        k: how many neighbors are averaged; distances are Euclidean, between standardized contexts.
        context_layer: block whose output is read from the plain prompt, or several; None: `layer`.
        context_position: token at which it is read.
        position: which captured contrast rows are averaged; None if there is only one kind.
        zero_behaviors: behaviors whose vector is zero (their examples need no contrast).

    Attributes:
        contexts_, targets_: `(example, context)` standardized, and `(example, hidden)` in units of the residual stream.
        mean_, scale_: of the contexts, `(context,)`.

    Raises:
        DataError: fewer than `k` training examples.
        MismatchError: contexts of another width.
    """

    def __init__(
        self, layer: int | Site, *, k: int = 10, context_layer: Layers = None, context_position: str | int = "last",
        position: str | None = None, zero_behaviors: Sequence[str] | None = (),
    ) -> None:  # fmt: skip
        self.layer, self.k = layer, as_whole("k", k, 1)
        self.context_layer, self.context_position = context_layer, context_position
        self.position, self.zero_behaviors = position, zero_behaviors
        self.site = Site.of(layer)

    def fit_activations(self, acts: Activations) -> None:
        """Keep all training pairs."""
        contexts, self.targets_, _ = self.training_pairs(acts)
        if len(contexts) < self.k:
            raise DataError(f"k={self.k} neighbors of {len(contexts)} examples: give more examples, or a smaller k")
        self.mean_, self.scale_ = contexts.double().mean(0).float(), deviations(contexts).float()
        self.contexts_ = (contexts - self.mean_) / self.scale_

    def predict(self, contexts: Float[Tensor, "batch context"]) -> Float[Tensor, "batch hidden"]:
        """The mean vector of each context's neighbors; `(batch, hidden)`."""
        check_fitted(self, "contexts_")
        states = (check_width(contexts, len(self.mean_), f"this {self.name}") - self.mean_) / self.scale_
        nearest = torch.cdist(states.double(), self.contexts_.double()).topk(self.k, largest=False).indices
        return self.targets_[nearest].mean(1)
