"""A condition vector: inputs whose state points along a direction (CAST)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from steerlab._support.errors import DataError
from steerlab.capture.activations import Activations
from steerlab.methods._codec import savable
from steerlab.methods.base import Context, StateDetector, check_fitted, check_width, provenance
from steerlab.methods.classes import check_disjoint, select_two_classes
from steerlab.models.sites import Site


@savable
class ConditionVector(StateDetector):
    """Tell inputs of some behaviors from the others by the cosine of their state with one direction.

    The direction is the first principal component of both classes' states around their common center (CAST), turned
    towards `positive`, or the difference of their means; states are centered before the cosine is taken, since in a
    language model all of them point along one common direction.

    Example:
        >>> condition = ConditionVector(8, positive=["refuse"], negative=["answer"]).fit(acts)
        >>> Gated(steerer, condition, threshold=0.1)

    Args:
        layer: block whose output is read, 0-based; or a `Site`.
        positive: labels of what is to be detected.
        negative: labels of what is not; None: every other.
        position: where the plain prompt is read.
        label: the index column with the labels.
        direction: "pca" or "means".

    Attributes:
        direction_: `(hidden,)`, of unit length, towards `positive`.
        center_: `(hidden,)`, the middle between the classes' means.

    Raises:
        DataError: a class of fewer than two inputs, one that is in both, equal means, or an unknown `direction`.
        MismatchError: states of another width.

    Source: condition vectors of CAST, arXiv 2409.05907; centering and the difference of means are our own.
    """

    def __init__(
        self,
        layer: int | Site,
        *,
        positive: Sequence[str] = ("refuse",),
        negative: Sequence[str] | None = None,
        position: str | int = "last",
        label: str = "behavior",
        direction: str = "pca",
    ) -> None:
        self.layer, self.positive, self.negative = layer, positive, negative
        self.position, self.label, self.direction = position, label, direction

    def fit(self, acts: Activations) -> ConditionVector:
        """Find the direction; the order of rows does not matter."""
        if self.direction not in ("pca", "means"):
            raise DataError(f"direction={self.direction!r}; expected 'pca' or 'means'")
        (ids, yes), (others, no) = select_two_classes(
            acts, self.required_activations[0], self.positive, self.negative, self.label
        )
        check_disjoint("positive", ids, yes, "negative", others, no)
        means = yes.double().mean(0), no.double().mean(0)
        apart = means[0] - means[1]
        if not bool(apart.any()):
            raise DataError(f"both classes have the same mean state at site {self.site}: no direction tells them apart")
        center = (means[0] + means[1]) / 2
        along = apart
        if self.direction == "pca":
            # a class of more inputs than the other must not move the component
            spread = torch.cat([(x.double() - center) / len(x) ** 0.5 for x in (yes, no)])
            along = torch.linalg.svd(spread, full_matrices=False).Vh[0]
            along = along * (1.0 if float(along @ apart) >= 0 else -1.0)
        self.direction_ = (along / along.norm()).float()
        self.center_ = center.float()
        self.info_ = provenance(acts)
        return self

    def score(self, context: Context) -> Float[Tensor, " batch"]:
        """The cosine, from -1 to 1, of each input's centered state with the direction."""
        check_fitted(self, "direction_")
        states = check_width(context.read(self.required_activations[0]), len(self.direction_), f"this {self.name}")
        h = states - self.center_
        return torch.nn.functional.cosine_similarity(h, self.direction_[None], dim=-1)
