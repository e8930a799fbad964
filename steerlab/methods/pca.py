"""The first principal component of the contrasts: one vector for every input."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from steerlab.capturing.activations import Activations
from steerlab.methods.contrasts import ContrastEstimator, scaled_to_contrasts
from steerlab.methods.serialization import savable
from steerlab.models.sites import Site


@savable
class PCA(ContrastEstimator):
    """Steer every input along the direction in which the two answers of the examples differ most.

    The contrasts are not centered, so their mean counts. The vector has the sign and the length of the mean contrast
    along the component, so alpha means the same as with `MeanDifference`; `unit()` gives the component itself.

    Example:
        >>> pca = PCA("all").fit(model, pairs)
        >>> pca.unit().at(15)                                         # (hidden,), norm 1

    Args:
        layers, position, behaviors: as in `MeanDifference`.

    Attributes:
        directions_: by site, `(hidden,)` float32, in units of the residual stream.

    Raises:
        DataError: as `MeanDifference`, or the contrasts have no component along it on average.

    Source: representation engineering, arXiv 2310.01405, section 3.1 (LAT with pairs).
    """

    def direction(
        self, acts: Activations, site: Site, ids: Sequence[str], contrasts: Float[Tensor, "example hidden"]
    ) -> Float[Tensor, " hidden"]:
        """The first right singular vector of the contrasts."""
        return scaled_to_contrasts(torch.linalg.svd(contrasts.double(), full_matrices=False).Vh[0], contrasts, site)
