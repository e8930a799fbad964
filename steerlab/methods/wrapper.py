"""The base of steerers that change how another steerer is applied."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from steerlab.capturing.activations import Activations
from steerlab.data.example import Example
from steerlab.errors import SteeringError
from steerlab.methods.base import Context, RequiredActivation, Steerer, steering_sites
from steerlab.models.positions import Positions
from steerlab.models.sites import Site


class Wrapper(Steerer):
    """A steerer that takes its vectors from another one, `steerer`; subclasses override `interventions`."""

    steerer: Steerer

    def _wrap(self, steerer: Steerer) -> None:
        if steerer.changes_prompt:
            raise SteeringError(
                f"{steerer.name} changes the prompt, which is fixed before anything is read: give a method that has "
                "vectors"
            )
        self.steerer = steerer
        self.oracle, self.gates_by_length = steerer.oracle, steerer.gates_by_length
        self.info_ = dict(getattr(steerer, "info_", {}))
        self._set_sites()

    def _set_sites(self) -> None:
        self.sites: tuple[Site, ...] = steering_sites(self.steerer)
        self.__dict__.pop("site", None)  # of a fit before
        if len(self.sites) == 1:
            self.site = self.sites[0]

    @property
    def is_fittable(self) -> bool:  # type: ignore[override]
        """Whether the steerer has anything to learn."""
        return self.steerer.is_fittable

    @property
    def default_positions(self) -> Positions:  # type: ignore[override]
        """The default positions of the steerer."""
        return self.steerer.default_positions

    @property
    def required_activations(self) -> tuple[RequiredActivation, ...]:
        """What the steerer requires."""
        return self.steerer.required_activations

    @property
    def contrasts_read_at(self) -> str | None:
        """Where the steerer reads contrasts."""
        return self.steerer.contrasts_read_at

    def fit_activations(self, acts: Activations) -> None:
        """Fit the steerer."""
        self.steerer.fit(acts)
        self._set_sites()

    def capture_options(self, examples: Sequence[Example]) -> dict[str, Any]:
        """The arguments of `capture` that give what `fit` reads of these examples."""
        return super().capture_options(examples) | ({} if self.sites else {"layers": "all"})

    def vectors(self, context: Context) -> Float[Tensor, "batch hidden"]:
        """The vectors of a steerer with one site."""
        return self.steerer.vectors(context)

    def with_layer(self, layer: int | Site) -> Steerer:
        """The same around the steerer at another layer, which is not fitted."""
        others = {name: getattr(self, name) for name in inspect.signature(type(self)).parameters if name != "steerer"}
        return type(self)(self.steerer.with_layer(layer), **others)  # type: ignore[call-arg]

    def state_dict(self) -> dict[str, Any]:
        """Empty: what is wrapped stores its own fitted values."""
        return {}
