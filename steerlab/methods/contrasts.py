"""The base of the methods that fit one vector per layer to contrasts, the same for every input."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from steerlab._support.checks import check_option
from steerlab.capturing.activations import Activations
from steerlab.data.example import Example
from steerlab.errors import DataError
from steerlab.methods.classes import as_names, check_contrasts_nonzero, check_labels, contrast_table
from steerlab.methods.layers import Layers
from steerlab.methods.vector import SteeringVector
from steerlab.models.sites import Site


class ContrastEstimator(SteeringVector):
    """The base of the methods that fit one vector per layer to the contrasts of examples.

    Args:
        layers: "all" that were captured, a layer (0-based block), a `Site`, or several.
        position: which captured contrast rows to use; None if there is only one kind.
        behaviors: use the contrasts of these behaviors; None: all.
    """

    is_fittable = True
    contrast_argument = "position"

    def __init__(
        self, layers: Layers | Literal["all"] = "all", *, position: str | None = None,
        behaviors: Sequence[str] | None = None,
    ) -> None:  # fmt: skip
        self.position, self.behaviors = position, behaviors
        if not isinstance(layers, str):
            self._set_layers(layers)
        else:
            check_option("layers", layers, ("all",))
            self.layers = "all"  # type: ignore[assignment]  # until `fit` finds out which there are

    def fit_activations(self, acts: Activations) -> None:
        """Fit the vector of each layer to the contrasts."""
        directions = {}
        for site in acts.sites if self.layers == "all" else self.sites:
            ids, contrasts = self._contrasts(acts, site)
            check_contrasts_nonzero(contrasts, site, acts)
            directions[site] = self.direction(acts, site, ids, contrasts).float()
        self._set_directions(directions)

    def capture_options(self, examples: Sequence[Example]) -> dict[str, Any]:
        """The arguments of `capture` that give what `fit` reads of these examples."""
        return super().capture_options(examples) | ({"layers": "all"} if isinstance(self.layers, str) else {})

    @abstractmethod
    def direction(
        self, acts: Activations, site: Site, ids: Sequence[str], contrasts: Float[Tensor, "example hidden"]
    ) -> Float[Tensor, " hidden"]:
        """The vector at one site, in units of the residual stream, from the contrasts of the examples `ids`."""

    def _contrasts(self, acts: Activations, site: Site) -> tuple[list[str], Float[Tensor, "example hidden"]]:
        ids, contrasts = contrast_table(acts, site, self.position)
        if self.behaviors is None:
            return ids, contrasts
        behaviors, wanted = acts.labels(ids), as_names(self.behaviors)
        if not wanted:
            raise DataError("behaviors=[] leaves no contrast: give names, or None for all")
        keep = [behavior in wanted for behavior in behaviors]
        check_labels("behavior", wanted, behaviors)
        return [one for one, kept in zip(ids, keep, strict=True) if kept], contrasts[torch.tensor(keep)]


def scaled_to_contrasts(
    direction: Float[Tensor, " hidden"], contrasts: Float[Tensor, "example hidden"], site: Site
) -> Float[Tensor, " hidden"]:
    """A direction, turned so that it points from the unwanted to the wanted answers, with the mean contrast's length
    along it: adding it moves a state by what separates the two answers on average.

    Raises:
        DataError: the contrasts have no component along it on average, so that its sign is unknown.
    """
    unit = direction.double() / direction.double().norm()
    along = contrasts.double() @ unit
    if not bool(along.mean().abs() > 1e-9 * along.abs().max()):
        raise DataError(f"the contrasts at site {site} have no common direction: which way is the wanted answer?")
    return unit * along.mean()
