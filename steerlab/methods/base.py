"""The one interface behind which every method lives.

A `Steerer` names what it wants to read (`reads`), learns from `Activations` (`fit`) and, for a batch of
inputs, answers with `Shift`s: at which site to add which vector to which row, how strongly the row is gated,
or, for methods whose vector depends on the state being edited, a function of that state. That covers static,
per-input, gated, multi-layer, in-flight and detector-driven methods, so `capture`, `steer` and every study
need no `if method == ...`.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from steerlab._support.errors import ActivationError, SteeringError
from steerlab.capture.activations import Activations
from steerlab.models.sites import Site


@dataclass(frozen=True)
class Read:
    """One thing a method wants captured of the *plain* prompt: a site and a position name."""

    site: Site
    position: str | int = "last"


@dataclass(frozen=True)
class Context:
    """What a steerer may look at when it is asked for vectors: who the inputs are, and their own activations.

    Attributes:
        samples: the inputs' ids, one per row of the batch.
        activations: rows captured for the steerer's `reads` (side "prompt"), or None if it reads nothing.
    """

    samples: tuple[str, ...]
    activations: Activations | None = None

    def read(self, read: Read) -> Float[Tensor, "batch hidden"]:
        """The activations of one `Read`, in the order of `samples`.

        Raises:
            ActivationError: they were not captured.
        """
        if self.activations is None:
            raise ActivationError(f"this method reads site {read.site} at {read.position!r}; nothing was captured")
        ids, values = self.activations.by_sample(read.site, side="prompt", position=str(read.position))
        row = {sample: i for i, sample in enumerate(ids)}
        missing = [s for s in self.samples if s not in row]
        if missing:
            raise ActivationError(f"no activations were captured for the inputs {missing[:3]}")
        return values[[row[sample] for sample in self.samples]]


InFlight = Callable[[Float[Tensor, "batch hidden"]], Float[Tensor, "batch hidden"]]


@dataclass(frozen=True)
class Shift:
    """What to add at one site: `alpha * gate * vectors`, row by row.

    Attributes:
        site: where.
        vectors: `(batch, hidden)` float32, one per input.
        gate: `(batch,)` in [0, 1], or None for 1.
        in_flight: instead of `vectors`: a function from the state at the last prompt position of this very
            site (before any shift there) to `(batch, hidden)`; it is frozen during decoding (AlphaSteer).
    """

    site: Site
    vectors: Float[Tensor, "batch hidden"] | None = None
    gate: Float[Tensor, " batch"] | None = None
    in_flight: InFlight | None = None


class Learnt:
    """What `steerlab.methods.artefact` needs to store a fitted object; the defaults suit most methods.

    Attributes:
        info_: where the object was learnt (`provenance`): model id and revision, template hash, hidden size.
    """

    info_: dict[str, Any]

    def state_(self) -> dict[str, Any]:
        """What was learnt, by name: tensors and plain values. By default every attribute that ends in `_`."""
        return {k: v for k, v in vars(self).items() if k.endswith("_") and k[0] != "_" and k != "info_"}

    def load_state_(self, state: dict[str, Any]) -> None:
        """Take back what `state_` gave; lists come back as tuples."""
        for key, value in state.items():
            setattr(self, key, value)


class Steerer(Learnt, ABC):
    """Something that can be fitted to activations and then answers with one vector per input.

    Constructors only store their arguments; `fit` returns `self`, annotated with the class's own name (the
    checker of our tests can't read `Self` on a method); what was learnt ends in `_`.
    A steerer with one site implements `vectors`; one with several overrides `shifts`.
    """

    #: where the vector is added; methods with several sites override `shifts`
    site: Site
    #: whether it must be fitted to the very inputs it steers
    oracle: bool = False

    @property
    def name(self) -> str:
        """What tables and figures call this method."""
        return type(self).__name__.lower()

    @property
    def reads(self) -> tuple[Read, ...]:
        """What must be captured of each plain prompt before `vectors` can answer; () for static methods."""
        return ()

    @abstractmethod
    def fit(self, acts: Activations) -> Steerer:
        """Learn from activations; returns self."""

    @abstractmethod
    def vectors(self, context: Context) -> Float[Tensor, "batch hidden"]:
        """One vector per input, `(batch, hidden)` float32, in units of the residual stream."""

    def shifts(self, context: Context) -> tuple[Shift, ...]:
        """Everything this method adds for a batch of inputs."""
        return (Shift(self.site, self.vectors(context)),)

    def transform(self, prompt: str) -> str:
        """The user text this method wants asked instead of `prompt`; only instruction baselines change it."""
        return prompt

    def at(self, layer: int | Site) -> Steerer:
        """A steerer with the same settings for another layer, not fitted.

        Raises:
            SteeringError: this method takes no layer.
        """
        names = inspect.signature(type(self)).parameters
        if "layer" not in names:
            raise SteeringError(f"{type(self).__name__} takes no layer, so there is nothing to sweep over")
        return type(self)(**{name: layer if name == "layer" else getattr(self, name) for name in names})


class Detector(Learnt, ABC):
    """Something that scores inputs from their activations; any detector can gate any steerer."""

    @property
    @abstractmethod
    def reads(self) -> tuple[Read, ...]:
        """What must be captured of each plain prompt."""

    @abstractmethod
    def fit(self, acts: Activations) -> Detector:
        """Learn from activations; returns self."""

    @abstractmethod
    def score(self, context: Context) -> Float[Tensor, " batch"]:
        """One score per input; higher means more of the thing detected."""


def check_fitted(steerer: object, attribute: str) -> None:
    """Refuse a steerer that has not been fitted."""
    if not hasattr(steerer, attribute):
        name = type(steerer).__name__
        raise ActivationError(f"this {name} is not fitted yet: call {name}.fit(activations) first")


def provenance(acts: Activations) -> dict[str, Any]:
    """Where something was learnt, for `info_`: what `capture` noted, and the hidden size."""
    return {**acts.info, "hidden_size": acts.hidden_size}


def static(vector: Float[Tensor, " hidden"], samples: Sequence[str]) -> Float[Tensor, "batch hidden"]:
    """One vector repeated for every input."""
    return vector.expand(len(samples), -1)
