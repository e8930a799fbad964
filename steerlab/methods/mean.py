"""Difference of means: one vector for every input."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from steerlab.capturing.activations import Activations
from steerlab.methods.contrasts import ContrastEstimator
from steerlab.methods.serialization import savable
from steerlab.models.sites import Site


@savable
class MeanDifference(ContrastEstimator):
    """Steer every input along the mean contrast of the training examples (Mean-S, CAA, difference in means).

    Example:
        >>> mean = MeanDifference(15).fit(acts)
        >>> mean.vector_                                              # (hidden,)
        >>> every = MeanDifference("all").fit(model, pairs)           # a vector for each layer
        >>> every.at(15)

    Args:
        layers: block whose output is contrasted and steered, 0-based; or a `Site`; several; or "all" that are captured.
        position: which captured contrast rows to average; None if there is only one kind.
        behaviors: average the contrasts of these behaviors; None averages all.

    Attributes:
        directions_: by site, `(hidden,)` float32, in units of the residual stream (summed in float64).

    Raises:
        DataError: no example has one of `behaviors`, or every contrast is exactly zero.
        MismatchError: the activations of the inputs have another width than the vector.

    Source: arXiv 2508.12815, section 4 (Mean-S); arXiv 2312.06681, equation 1 (CAA).
    """

    def direction(
        self, acts: Activations, site: Site, ids: Sequence[str], contrasts: Float[Tensor, "example hidden"]
    ) -> Float[Tensor, " hidden"]:
        """The mean of the contrasts."""
        return contrasts.double().mean(0)
