"""A condition vector: detect inputs whose state points along a direction (CAST)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from steerlab.capturing.activations import Activations
from steerlab.errors import DataError
from steerlab.methods.base import Context, StateDetector, check_fitted, check_origin, check_width
from steerlab.methods.classes import check_disjoint, select_two_classes
from steerlab.methods.serialization import savable
from steerlab.models.sites import Site


@savable
class ConditionVector(StateDetector):
    """Detect inputs of some behaviors by the cosine of their centered state with one direction.

    The direction is the first principal component of the states of both classes around the midpoint of their means
    (CAST), with the sign of the difference of means, or that difference itself. States are centered before the cosine
    is computed because in a language model all of them share one large direction.

    Example:
        >>> condition = ConditionVector(8, positive=["refuse"], negative=["answer"]).fit(acts)
        >>> Gated(steerer, condition, threshold=0.1)

    Args:
        layer: block whose output is read, 0-based; or a `Site`.
        positive: labels of the inputs to detect.
        negative: labels of the other class; None: every other label.
        position: token of the plain prompt whose state is read.
        label: the index column of the labels.
        direction: "pca" or "means".

    Attributes:
        direction_: `(hidden,)`, of unit length, towards `positive`.
        center_: `(hidden,)`, the midpoint of the two class means.

    Raises:
        DataError: a class of fewer than two inputs, an input in both, equal means, or an unknown `direction`.
        MismatchError: states of another width.

    Source: condition vectors of CAST, arXiv 2409.05907. Centering and `direction="means"` are additions.
    """

    def __init__(
        self, layer: int | Site, *, positive: Sequence[str] = ("refuse",), negative: Sequence[str] | None = None,
        position: str | int = "last", label: str = "behavior", direction: str = "pca",
    ) -> None:  # fmt: skip
        self.layer, self.positive, self.negative = layer, positive, negative
        self.position, self.label, self.direction = position, label, direction

    def fit_activations(self, acts: Activations) -> None:
        """Compute the direction; the order of rows does not matter."""
        if self.direction not in ("pca", "means"):
            raise DataError(f"direction={self.direction!r}; expected 'pca' or 'means'")
        yes, no = select_two_classes(acts, self.required_activations[0], self.positive, self.negative, self.label)
        check_disjoint("positive", *yes, "negative", *no)
        classes = yes[1].double(), no[1].double()
        positive_mean, negative_mean = (states.mean(0) for states in classes)
        direction = difference = positive_mean - negative_mean
        if not bool(difference.any()):
            raise DataError(f"both classes have the same mean state at site {self.site}: there is no direction to use")
        center = (positive_mean + negative_mean) / 2
        if self.direction == "pca":
            # both classes weigh the same, whatever their sizes
            weighted = torch.cat([(states - center) / len(states) ** 0.5 for states in classes])
            component = torch.linalg.svd(weighted, full_matrices=False).Vh[0]
            direction = component * (1.0 if float(component @ difference) >= 0 else -1.0)
        self.direction_ = (direction / direction.norm()).float()
        self.center_ = center.float()

    def score(self, context: Context) -> Float[Tensor, " batch"]:
        """The cosine, from -1 to 1, of the centered state of each input with the direction."""
        check_fitted(self, "direction_")
        check_origin(self, context)
        states = context.get_states(self.required_activations[0])
        centered = check_width(states, len(self.direction_), f"this {self.name}") - self.center_
        return torch.nn.functional.cosine_similarity(centered, self.direction_[None], dim=-1)
