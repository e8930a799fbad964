"""The weights of a logistic regression between the two answers: one vector for every input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from steerlab.capturing.activations import Activations
from steerlab.methods.contrasts import ContrastEstimator, scaled_to_contrasts
from steerlab.methods.layers import Layers
from steerlab.methods.probe import fit_logistic
from steerlab.methods.serialization import savable
from steerlab.models.sites import Site


@savable
class LogisticDirection(ContrastEstimator):
    """Steer every input along the weights that tell states of the wanted answers from those of the unwanted ones.

    The vector has the mean contrast's length along the weights, so alpha means the same as with `MeanDifference`.

    Example:
        >>> logistic = LogisticDirection([14, 15]).fit(model, pairs)

    Args:
        layers, position, behaviors: as in `MeanDifference`.
        C: inverse strength of the L2 penalty, as in scikit-learn (states are standardized first).

    Attributes:
        directions_: by site, `(hidden,)` float32, in units of the residual stream.

    Raises:
        DataError: as `MeanDifference`, or `C` is not positive.

    Source: probe directions as steering vectors, arXiv 2306.03341, section 3.2.
    """

    def __init__(
        self, layers: Layers | Literal["all"] = "all", *, position: str | None = None,
        behaviors: Sequence[str] | None = None, C: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__(layers, position=position, behaviors=behaviors)
        self.C = C

    def direction(
        self, acts: Activations, site: Site, ids: Sequence[str], contrasts: Float[Tensor, "example hidden"]
    ) -> Float[Tensor, " hidden"]:
        """The weights of the regression, in the units of the states."""
        known, positive = acts.by_example(site, side="positive", position=self.position)
        row_of = {example_id: row for row, example_id in enumerate(known)}
        wanted = positive[[row_of[example_id] for example_id in ids]].double()
        both = torch.cat([wanted, wanted - contrasts.double()])
        weights, _ = fit_logistic(both.numpy(), np.repeat([1, 0], len(ids)), self.C)
        return scaled_to_contrasts(torch.from_numpy(weights), contrasts, site)
