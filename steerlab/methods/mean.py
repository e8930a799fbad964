"""Difference of means: one vector for every input."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from steerlab._support.errors import DataError, MismatchError
from steerlab.capture.activations import Activations
from steerlab.methods._codec import savable
from steerlab.methods.base import Context, Steerer, check_fitted, provenance, repeat_vector
from steerlab.methods.p2s import check_contrasts_nonzero, contrast_table, names
from steerlab.models.sites import Site


@savable
class MeanDifference(Steerer):
    """Steer every input along the mean contrast of the training samples (Mean-S, CAA, difference in means).

    Example:
        >>> mean = MeanDifference(layer=15).fit(acts)
        >>> mean.vector_                                              # (hidden,)
        >>> MeanDifference.from_tensor(15, torch.randn(4096))         # a vector from elsewhere

    Args:
        layer: block whose output is contrasted and steered, 0-based; or a `Site`.
        position: which captured contrast rows to average; None where there is only one kind.
        behaviors: average these behaviors only; None averages all.

    Attributes:
        vector_: `(hidden,)` float32, in units of the residual stream (summed in float64).

    Raises:
        DataError: no sample has one of `behaviors`; every contrast is exactly zero; a handmade vector is not one
            finite row.
        MismatchError: the inputs' activations have another width than the vector.

    Source: arXiv 2508.12815, section 4 (Mean-S); arXiv 2312.06681, equation 1 (CAA).
    """

    def __init__(
        self, layer: int | Site, *, position: str | None = None, behaviors: Sequence[str] | None = None
    ) -> None:
        self.layer, self.position, self.behaviors = layer, position, behaviors
        self.site = Site.of(layer)

    def fit(self, acts: Activations) -> MeanDifference:
        """Average the contrasts."""
        ids, z = contrast_table(acts, self.site, self.position)
        if self.behaviors is not None:
            labels = acts.labels(ids)
            keep = [label in names(self.behaviors) for label in labels]
            if not any(keep):
                have = sorted(set(labels))
                raise DataError(f"no contrast is of {names(self.behaviors)}; the behaviors are {have}")
            z = z[torch.tensor(keep)]
        check_contrasts_nonzero(z, self.site)
        self.vector_ = z.double().mean(0).float()
        self.info_ = provenance(acts)
        return self

    @classmethod
    def from_tensor(cls, layer: int | Site, vector: Tensor) -> MeanDifference:
        """A steerer from a vector made elsewhere, `(hidden,)`; its sign and norm are kept.

        Raises:
            DataError: the vector is not one row, is empty, or holds NaN or infinity.
        """
        if vector.ndim != 1 or vector.numel() == 0:
            raise DataError(f"a steering vector has shape (hidden,), got {tuple(vector.shape)}; pass one row")
        if not bool(torch.isfinite(vector).all()):
            raise DataError(
                f"{int((~torch.isfinite(vector)).sum())} of the vector's {len(vector)} entries are NaN or "
                "infinite; compute it again in float32"
            )
        made = cls(layer)
        made.vector_ = vector.detach().to("cpu", torch.float32, copy=True)
        made.info_ = {"hidden_size": len(vector)}
        return made

    def vectors(self, context: Context) -> Float[Tensor, "batch hidden"]:
        """The same vector for every input."""
        check_fitted(self, "vector_")
        if context.activations is not None and context.activations.hidden_size != len(self.vector_):
            raise MismatchError(
                f"the vector has width {len(self.vector_)}, the inputs' activations "
                f"{context.activations.hidden_size}; use a vector of this very model"
            )
        return repeat_vector(self.vector_, context.example_ids)
