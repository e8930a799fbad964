"""Random directions with the norm of the contrast vectors: a control for the effect of size alone."""

from __future__ import annotations

import hashlib
from typing import SupportsIndex

import torch
from jaxtyping import Float
from torch import Tensor

from steerlab._support.checks import as_whole
from steerlab.capturing.activations import Activations
from steerlab.methods.base import Context, Steerer, check_fitted, repeat_vector
from steerlab.methods.classes import check_contrasts_nonzero, contrast_table
from steerlab.methods.serialization import savable
from steerlab.models.sites import Site


@savable
class RandomDirection(Steerer):
    """Steer along a random direction with the norm of the contrast vectors (Norm-Rnd).

    Example:
        >>> control = RandomDirection(layer=15, seed=3).fit(acts)
        >>> control.vectors(context).norm(dim=-1)   # mean norm of the training contrasts

    Args:
        layer: block whose output is steered, 0-based; or a `Site`.
        seed: which direction; report several.
        per_example: one direction per example id instead of one for all, with the norm of the contrast of that example
            if `fit` saw it, else with the mean norm.

    Attributes:
        norm_: mean norm of the training contrasts, in units of the residual stream.
        vector_: `(hidden,)` float32, the direction for all inputs.
        norms_: norm of the contrast by example id.

    Raises:
        ActivationError: there is no contrast to take the norm from.
        DataError: every contrast is exactly zero.

    Source: arXiv 2508.12815, section 4 (Norm-Rnd). The paper does not say whether a direction is drawn per
    seed or per input; per seed is the default.
    """

    def __init__(self, layer: int | Site, *, seed: SupportsIndex = 0, per_example: bool = False) -> None:
        self.layer, self.seed, self.per_example = layer, seed, per_example
        self.site = Site.of(layer)

    def fit_activations(self, acts: Activations) -> None:
        """Measure the norms and draw the direction."""
        self.seed = as_whole("seed", self.seed, None)  # 3 of NumPy draws what 3 draws
        ids, contrasts = contrast_table(acts, self.site)
        check_contrasts_nonzero(contrasts, self.site, acts)
        norms = contrasts.double().norm(dim=-1)
        self.norm_ = float(norms.mean())
        self.norms_ = dict(zip(ids, norms.tolist(), strict=True))
        self.vector_ = (self.norm_ * _random_unit(acts.hidden_size, self.seed)).float()

    def vectors(self, context: Context) -> Float[Tensor, "batch hidden"]:
        """One direction for all inputs, or one per example id."""
        check_fitted(self, "vector_")
        if not self.per_example:
            return repeat_vector(self.vector_, context.example_ids)
        hidden = len(self.vector_)
        rows = [self.norms_.get(i, self.norm_) * _random_unit(hidden, self.seed, str(i)) for i in context.example_ids]
        return torch.stack(rows).float() if rows else self.vector_.new_zeros(0, hidden)


def _random_unit(hidden: int, *key: object) -> Float[Tensor, " hidden"]:
    """A direction drawn uniformly from the sphere, float64; a function of `key` alone."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    direction = torch.randn(hidden, generator=generator, dtype=torch.float64)
    return direction / direction.norm()
