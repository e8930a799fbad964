"""Difference of means: one vector for every input."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from steerlab._support.checks import check_type
from steerlab._support.errors import DataError, MismatchError
from steerlab.capturing.activations import Activations
from steerlab.methods.base import Context, Steerer, check_fitted, provenance, repeat_vector
from steerlab.methods.classes import as_names, check_contrasts_nonzero, contrast_table
from steerlab.methods.serialization import savable
from steerlab.models.sites import Site


@savable
class MeanDifference(Steerer):
    """Steer every input along the mean contrast of the training examples (Mean-S, CAA, difference in means).

    Example:
        >>> mean = MeanDifference(layer=15).fit(acts)
        >>> mean.vector_                                              # (hidden,)
        >>> MeanDifference.from_tensor(15, torch.randn(4096))         # an existing vector

    Args:
        layer: block whose output is contrasted and steered, 0-based; or a `Site`.
        position: which captured contrast rows to average; None if there is only one kind.
        behaviors: average the contrasts of these behaviors; None averages all.

    Attributes:
        vector_: `(hidden,)` float32, in units of the residual stream (summed in float64).

    Raises:
        DataError: no example has one of `behaviors`, or every contrast is exactly zero.
        MismatchError: the activations of the inputs have another width than the vector.

    Source: arXiv 2508.12815, section 4 (Mean-S); arXiv 2312.06681, equation 1 (CAA).
    """

    def __init__(
        self, layer: int | Site, *, position: str | None = None, behaviors: Sequence[str] | None = None
    ) -> None:
        self.layer, self.position, self.behaviors = layer, position, behaviors
        self.site = Site.of(layer)

    def fit(self, acts: Activations) -> MeanDifference:
        """Average the contrasts."""
        ids, contrasts = contrast_table(acts, self.site, self.position)
        if self.behaviors is not None:
            behaviors, wanted = acts.labels(ids), as_names(self.behaviors)
            keep = torch.tensor([behavior in wanted for behavior in behaviors])
            if not keep.any():
                raise DataError(f"no contrast is of {wanted}; the behaviors are {sorted(set(behaviors))}")
            contrasts = contrasts[keep]
        check_contrasts_nonzero(contrasts, self.site)
        self.vector_ = contrasts.double().mean(0).float()
        self.info_ = provenance(acts)
        return self

    @classmethod
    def from_tensor(cls, layer: int | Site, vector: Tensor) -> MeanDifference:
        """A steerer that adds a given vector, `(hidden,)`, with its sign and norm.

        Raises:
            DataError: the vector is not one row, is empty, or holds NaN or infinity.
        """
        check_type("the vector", vector, Tensor, "a tensor (hidden,)")
        dense = vector.layout == torch.strided and not vector.is_meta
        if not dense or vector.is_complex() or vector.dtype == torch.bool:
            kind = f"{vector.dtype} {vector.layout} tensor on {vector.device}"
            raise DataError(f"the vector is a {kind}: expected a dense tensor of real numbers")
        if vector.ndim != 1 or vector.numel() == 0:
            raise DataError(f"a steering vector has shape (hidden,), got {tuple(vector.shape)}; pass one row")
        steerer = cls(layer)
        steerer.vector_ = vector.detach().to("cpu", torch.float32, copy=True)
        if not bool(torch.isfinite(steerer.vector_).all()):
            raise DataError("the vector holds NaN or infinity; compute it again in float32")
        steerer.info_ = {"hidden_size": len(vector)}
        return steerer

    def vectors(self, context: Context) -> Float[Tensor, "batch hidden"]:
        """The same vector for every input."""
        check_fitted(self, "vector_")
        acts = context.activations
        if acts is not None and acts.hidden_size != len(self.vector_):
            raise MismatchError(f"the vector has width {len(self.vector_)}, the activations {acts.hidden_size}")
        return repeat_vector(self.vector_, context.example_ids)
