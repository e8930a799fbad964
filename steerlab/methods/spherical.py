"""Spherical steering: turn a state towards the mean direction, only where it points elsewhere, and keep its norm."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from steerlab._support.checks import as_number
from steerlab.capturing.activations import Activations
from steerlab.errors import DataError, SteeringError
from steerlab.methods.base import Context, Intervention
from steerlab.methods.contrasts import ContrastEstimator
from steerlab.methods.layers import Layers
from steerlab.methods.serialization import savable
from steerlab.methods.vector import SteeringVector
from steerlab.models.operators import EditRule, Operator, States, Strengths, rotate, unit
from steerlab.models.sites import Site

#: arguments of `Spherical` in the paper's experiments, and `alpha`, which is given to `generate`: take it out first
PUBLISHED_SPHERICAL: dict[str, dict[str, float]] = {
    "meta-llama/Llama-3.1-8B-Instruct": {"layers": 14, "concentration": 20.0, "threshold": -0.15, "alpha": 0.7},
    "Qwen/Qwen2.5-7B-Instruct": {"layers": 19, "concentration": 20.0, "threshold": 0.4, "alpha": 0.6},
}


@savable
@dataclass(frozen=True)
class RotateWhereAway(Operator):
    """Turns a state towards the vector by a share that grows with how much it points away.

    With x the state's direction, u the vector's and d = tanh(concentration (-x·u)), the share is
    `strength * (d - threshold) / (1 - threshold)`, cut to 0 and 1.
    """

    concentration: float
    threshold: float
    uses = "direction"
    strengths = (0.0, inf)

    def __call__(self, h: States, vector: States, strength: Strengths) -> States:
        """See `Operator`."""
        u = unit(vector)
        away = torch.tanh(-self.concentration * (unit(h) * u).sum(-1, keepdim=True))
        share = strength * (away - self.threshold) / (1 - self.threshold)
        return rotate(h, u.expand_as(h), share.clamp(0, 1))


@savable
class Spherical(ContrastEstimator):
    """Turn each token's state towards the mean contrast's direction, the more the further it points away from it.

    Norms stay; states that point along the direction are left as they are.

    Example:
        >>> spherical = Spherical(15).fit(model, pairs)
        >>> texts = steerlab.generate(model, prompts, steer=spherical, alpha=0.7)

    Args:
        layers, position, behaviors: as in `MeanDifference`.
        concentration: how sharply the direction of a state decides (the paper's kappa).
        threshold: states are turned where `tanh(-concentration * cosine)` is above it, from -1 to below 1 (the paper's
            beta). `PUBLISHED_SPHERICAL` has the paper's settings; the `alpha` among them is an argument of `generate`.

    Source: arXiv 2602.08169, equations of section 3.
    """

    def __init__(
        self, layers: Layers | Literal["all"] = "all", *, position: str | None = None,
        behaviors: Sequence[str] | None = None, concentration: float = 20.0, threshold: float = -0.15,
    ) -> None:  # fmt: skip
        super().__init__(layers, position=position, behaviors=behaviors)
        self.concentration = as_number("concentration", concentration, 0.0)
        self.threshold = as_number("threshold", threshold, -1.0, 0.999)

    def direction(
        self, acts: Activations, site: Site, ids: Sequence[str], contrasts: Float[Tensor, "example hidden"]
    ) -> Float[Tensor, " hidden"]:
        """The direction of the mean contrast, with norm 1."""
        mean = contrasts.double().mean(0)
        if not float(mean.norm()) > 1e-6 * float(contrasts.double().norm(dim=-1).mean()):
            raise DataError(f"the contrasts at site {site} have no common direction: they cancel")
        return mean / mean.norm()

    def _with(self, directions: Mapping[Site, Tensor]) -> SteeringVector:
        """Other directions under the same settings: a part, or the opposite.

        Raises:
            SteeringError: a direction of another length, which would change nothing.
        """
        if any(abs(float(one.norm()) - 1) > 1e-3 for one in directions.values()):
            raise SteeringError("a Spherical has directions, whose length changes nothing: give alpha= instead")
        made = copy.copy(self)
        made.info_ = dict(getattr(self, "info_", {}))  # to be accepted on another model by itself
        made._set_directions(dict(directions))
        return made

    def _combined(self, other: SteeringVector, function: Callable[[Tensor, Tensor], Tensor]) -> SteeringVector:
        raise SteeringError(
            "directions of a Spherical are not added: SteeringVector(spherical.directions) adds vectors"
        )

    def interventions(self, context: Context) -> tuple[Intervention, ...]:
        """Those of a vector per layer, with `RotateWhereAway`."""
        rule: Any = EditRule(RotateWhereAway(self.concentration, self.threshold))
        return tuple(replace(one, rule=rule) for one in super().interventions(context))
