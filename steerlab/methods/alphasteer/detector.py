"""A gate that is shut on the space that benign inputs fill (AlphaSteer's), as a detector."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from steerlab.capture.activations import Activations
from steerlab.methods.alphasteer.null_space import find_null_space, ridge_gate, warn_of_leakage
from steerlab.methods.base import Context, RequiredActivation, StateDetector, check_fitted, check_width, provenance
from steerlab.methods.classes import check_disjoint, select_class
from steerlab.methods.serialization import savable
from steerlab.models.sites import Site


@savable
class NullSpaceGate(StateDetector):
    """Score inputs by a linear gate that is about 1 on harmful ones and about 0 on all that is like the benign ones.

    With no `ratio`, one is chosen from .05, .10, ... .95, as far as there are benign inputs enough to span the
    directions kept out. Every fifth of the inputs of both classes is held out in turn, and the gate fitted to the
    rest. Of the ratios whose leakage there (95th percentile of |gate| on benign inputs) is at most `leakage`, those
    stay whose mean gate on harmful inputs is within 1 % of the best; the one with the least leakage is taken. (The
    largest ratio that is allowed gives the same gate on harmful inputs, and in our tests up to eight times the
    leakage.) Where none is allowed the one with the least leakage is taken, with a warning.

    Example:
        >>> gate = NullSpaceGate(12, harmful=["refuse"], benign=["answer"]).fit(acts)
        >>> gate.score(Context.of(acts))                              # (inputs,)

    Args:
        layer: block whose output is read of the plain prompt, 0-based; or a `Site`.
        harmful, benign: labels of the two classes.
        position: where it is read.
        label: the index column that holds the labels.
        ratio: share p of all directions taken as the null space: those in which benign inputs are smallest; None:
            chosen. The guarantee is only as wide as the benign inputs, and leakage grows with p.
        ridge: penalty on the gate; it is not scaled by the states' norm or the number of inputs.
        leakage: the |gate| that benign inputs may have.

    Attributes:
        w_: `(hidden,)` float32; the gate of a state h is h·w.
        ratio_: the ratio taken.
        leakage_: the largest |gate| of the benign inputs it was fitted to.
        held_out_leakage_: that of held-out ones (95th percentile), where the ratio was chosen; else None.

    Raises:
        DataError: too few benign inputs for the ratio, classes that overlap or have fewer than two inputs, settings
            outside their range.
        MismatchError: states of another width.

    Source: AlphaSteer, arXiv 2506.07022 (null-space projection, ridge regression); its use as a detector and the
        choice of the ratio: own.
    """

    w_: Tensor
    ratio_: float | None
    leakage_: float | None
    held_out_leakage_: float | None

    def __init__(
        self, layer: int | Site, *, harmful: Sequence[str] = ("refuse",), benign: Sequence[str] = ("answer",),
        position: str | int = "last", label: str = "behavior", ratio: float | None = None, ridge: float = 10.0,
        leakage: float = 0.05,
    ) -> None:  # fmt: skip
        self.layer, self.harmful, self.benign, self.position, self.label = layer, harmful, benign, position, label
        self.ratio, self.ridge, self.leakage = ratio, ridge, leakage

    def fit(self, acts: Activations) -> NullSpaceGate:
        """Find the null space of the benign inputs and the gate in it."""
        _, harmful, benign = harmful_and_benign(
            acts, self.required_activations[0], self.harmful, self.benign, self.label
        )
        space = find_null_space(
            benign, harmful, ratio=self.ratio, ridge=self.ridge, leakage=self.leakage, site=self.site
        )
        w = ridge_gate(space.q, harmful, self.ridge)
        self.w_, self.ratio_, self.held_out_leakage_ = w.float(), space.ratio, space.held_out
        self.leakage_ = float((benign.double() @ w).abs().max())
        if self.ratio is not None:
            warn_of_leakage(self.leakage_, self.leakage, self.ratio, self.site)
        self.info_ = provenance(acts)
        return self

    def gate(self, h: Float[Tensor, "batch hidden"]) -> Float[Tensor, " batch"]:
        """The gate of some states, float32: about 1 for harmful inputs and 0 for benign ones; it is not cut off."""
        check_fitted(self, "w_")
        return check_width(h, len(self.w_), "the gate") @ self.w_.to(h.device)

    def score(self, context: Context) -> Float[Tensor, " batch"]:
        """The gate of each input."""
        check_fitted(self, "w_")
        return self.gate(context.get_states(self.required_activations[0]))


def harmful_and_benign(
    acts: Activations, read: RequiredActivation, harmful: Sequence[str], benign: Sequence[str], label: str
) -> tuple[list[str], Float[Tensor, "m hidden"], Float[Tensor, "n hidden"]]:
    """Ids and states of the harmful inputs, and states of the benign ones, all by sorted id.

    Raises:
        DataError: the classes overlap, or one has fewer than two inputs.
    """
    ids, ones = select_class(acts, read, harmful, label=label)
    other_ids, others = select_class(acts, read, benign, label=label)
    check_disjoint("harmful", ids, ones, "benign", other_ids, others)
    return ids, ones, others
