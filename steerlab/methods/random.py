"""Random directions with the norm of the real vectors: what any shift of that size would do."""

from __future__ import annotations

import hashlib

import torch
from jaxtyping import Float
from torch import Tensor

from steerlab.capture.activations import Activations
from steerlab.methods._codec import savable
from steerlab.methods.base import Context, Steerer, check_fitted, provenance, repeat_vector
from steerlab.methods.p2s import check_contrasts_nonzero, contrast_table
from steerlab.models.sites import Site


def random_unit(hidden: int, *key: object) -> Float[Tensor, " hidden"]:
    """A direction uniform on the sphere, float64, that depends on `key` and nothing else."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    direction = torch.randn(hidden, generator=generator, dtype=torch.float64)
    return direction / direction.norm()


@savable
class RandomDirection(Steerer):
    """Steer along a random direction as long as the contrast vectors (Norm-Rnd, the control for size alone).

    Example:
        >>> control = RandomDirection(layer=15, seed=3).fit(acts)
        >>> control.vectors(context).norm(dim=-1)   # mean norm of the training contrasts

    Args:
        layer: block whose output is steered, 0-based; or a `Site`.
        seed: which direction; report several.
        per_example: one direction per sample id instead of one for all, as long as that sample's own contrast
            where it was seen in `fit`, else as the mean.

    Attributes:
        norm_: mean norm of the training contrasts, in units of the residual stream.
        vector_: `(hidden,)` float32, the direction shared by all inputs.
        norms_: own norm by sample id.

    Raises:
        ActivationError: there is no contrast to take the norm from.
        DataError: every contrast is exactly zero.

    Source: arXiv 2508.12815, section 4 (Norm-Rnd). The paper does not say whether a direction is drawn per
    seed or per input; per seed is the default.
    """

    def __init__(self, layer: int | Site, *, seed: int = 0, per_example: bool = False) -> None:
        self.layer, self.seed, self.per_example = layer, seed, per_example
        self.site = Site.of(layer)

    def fit(self, acts: Activations) -> RandomDirection:
        """Measure the norms and draw the direction."""
        ids, z = contrast_table(acts, self.site)
        check_contrasts_nonzero(z, self.site)
        norms = z.double().norm(dim=-1)
        self.norm_ = float(norms.mean())
        self.norms_ = dict(zip(ids, norms.tolist(), strict=True))
        self.vector_ = (self.norm_ * random_unit(acts.hidden_size, self.seed)).float()
        self.info_ = provenance(acts)
        return self

    def vectors(self, context: Context) -> Float[Tensor, "batch hidden"]:
        """One direction for all inputs, or one per sample id."""
        check_fitted(self, "vector_")
        if not self.per_example:
            return repeat_vector(self.vector_, context.example_ids)
        hidden = len(self.vector_)
        rows = [self.norms_.get(s, self.norm_) * random_unit(hidden, self.seed, s) for s in context.example_ids]
        return torch.stack(rows).float() if rows else self.vector_.new_zeros(0, hidden)
