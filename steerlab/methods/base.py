"""The one interface behind which every method lives.

A `Steerer` names what it wants to read (`required_activations`), learns from `Activations` (`fit`) and, for a batch of
inputs, answers with `Intervention`s: at which site to add which vector to which row, how strongly the row is gated,
or, for methods whose vector depends on the state being edited, a function of that state. That covers static,
per-input, gated, multi-layer, in-flight and detector-driven methods, so `capture`, `steer` and every study
need no `if method == ...`.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from steerlab._support.errors import ActivationError, DataError, MismatchError, SteeringError
from steerlab.capture.activations import Activations
from steerlab.models.positions import Positions
from steerlab.models.sites import Site


@dataclass(frozen=True)
class RequiredActivation:
    """One thing a method wants captured of each input before it can answer.

    Attributes:
        site: where.
        position: at which token, by name or number.
        capture: "prompt" for the plain prompt, or the name of one of the example's own `extra_prompts`.
    """

    site: Site
    position: str | int = "last"
    capture: str = "prompt"


@dataclass(frozen=True)
class Context:
    """What a steerer may look at when it is asked for vectors: who the inputs are, and their own activations.

    Attributes:
        example_ids: the inputs' ids, one per row of the batch.
        activations: rows captured for the steerer's `required_activations`, or None if it reads nothing.
    """

    example_ids: tuple[str, ...]
    activations: Activations | None = None

    @classmethod
    def of(cls, acts: Activations) -> Context:
        """The context of everything that was captured, each input once: to ask a method without a model."""
        return cls(tuple(dict.fromkeys(acts.index["example_id"])), acts)

    def read(self, read: RequiredActivation) -> Float[Tensor, "batch hidden"]:
        """The activations of one `RequiredActivation`, in the order of `example_ids`.

        Raises:
            ActivationError: they were not captured.
        """
        if self.activations is None:
            raise ActivationError(f"this method reads site {read.site} at {read.position!r}; nothing was captured")
        if read.capture not in set(self.activations.index["side"]):
            raise ActivationError(
                f"this method compares captures, and {read.capture!r} was not captured: give each input "
                f"Example(captures={{{read.capture!r}: ...}}), the text to be read under that name"
            )
        ids, values = self.activations.by_example(read.site, side=read.capture, position=str(read.position))
        row = {example_id: i for i, example_id in enumerate(ids)}
        missing = [s for s in self.example_ids if s not in row]
        if missing:
            raise ActivationError(f"no activations were captured for the inputs {missing[:3]}")
        return values[[row[example_id] for example_id in self.example_ids]]


VectorFn = Callable[[Float[Tensor, "batch hidden"]], Float[Tensor, "batch hidden"]]


@dataclass(frozen=True)
class Intervention:
    """What to add at one site: `alpha * gate * vectors`, row by row.

    Attributes:
        site: where.
        vectors: `(batch, hidden)` float32, one per input.
        gate: `(batch,)`, usually in [0, 1], or None for 1.
        vector_fn: instead of `vectors`: a function from the state at the last prompt position of this very
            site (before any shift there) to `(batch, hidden)`; it is frozen during decoding (AlphaSteer). It may be
            sent to a server: a plain function, with tensors and modules bound to it.
        positions: where this very shift is written, whatever was asked for (a span's k-th vector belongs to its k-th
            token); rows in which these tokens do not exist are left alone. None: where the request says.
        read_site: `vector_fn` takes the state at this site of the unsteered prompt instead
            (`Steerer.remote_interventions`).
    """

    site: Site
    vectors: Float[Tensor, "batch hidden"] | None = None
    gate: Float[Tensor, " batch"] | None = None
    vector_fn: VectorFn | None = None
    positions: Positions | None = None
    read_site: Site | None = None

    def where(self, asked: Positions) -> Positions:
        """Where to write, when `asked` is what the request says."""
        return asked if self.positions is None else self.positions

    def gated(self, gate: Float[Tensor, " batch"]) -> Intervention:
        """The same, each row multiplied by one more gate."""
        return replace(self, gate=gate if self.gate is None else self.gate * gate.to(self.gate.device))


class FittedMixin:
    """What `steerlab.methods.serialization` needs to store a fitted object; the defaults suit most methods.

    Attributes:
        info_: where the object was learned (`provenance`): model id and revision, template hash, hidden size.
    """

    info_: dict[str, Any]

    def state_dict(self) -> dict[str, Any]:
        """What was learned, by name: tensors and plain values. By default every attribute that ends in `_`."""
        return {k: v for k, v in vars(self).items() if k.endswith("_") and k[0] != "_" and k != "info_"}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave; lists come back as tuples."""
        for key, value in state.items():
            setattr(self, key, value)


class Steerer(FittedMixin, ABC):
    """Something that can be fitted to activations and then answers with one vector per input.

    Constructors only store their arguments; `fit` returns `self`, annotated with the class's own name (the
    checker of our tests can't read `Self` on a method); what was learned ends in `_`.
    A steerer with one site implements `vectors`; one with several overrides `interventions`.
    """

    #: where the vector is added
    site: Site
    #: where vectors are added, in a method with several sites, which overrides `interventions`
    sites: tuple[Site, ...]
    #: whether it must be fitted to the very inputs it steers
    oracle: bool = False
    #: where it is written when no positions are given
    default_positions: Positions = "all"

    @property
    def name(self) -> str:
        """What tables and figures call this method."""
        return type(self).__name__.lower()

    @property
    def required_activations(self) -> tuple[RequiredActivation, ...]:
        """What must be captured of each input before `vectors` can answer; () for static methods."""
        return ()

    @abstractmethod
    def fit(self, acts: Activations) -> Steerer:
        """Learn from activations; returns self."""

    @abstractmethod
    def vectors(self, context: Context) -> Float[Tensor, "batch hidden"]:
        """One vector per input, `(batch, hidden)` float32, in units of the residual stream."""

    def interventions(self, context: Context) -> tuple[Intervention, ...]:
        """Everything this method adds for a batch of inputs."""
        return (Intervention(self.site, self.vectors(context)),)

    def remote_interventions(self) -> tuple[Intervention, ...] | None:
        """What `interventions` would give, computed where the model runs from one state each; None if unsupported.

        On a server this saves the way there and back: nothing is captured beforehand.
        """
        return None

    def transform_prompt(self, prompt: str) -> str:
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


class Detector(FittedMixin, ABC):
    """Something that scores inputs from their activations; any detector can gate any steerer (`Gated`).

    Attributes:
        threshold_: an input is detected when its score is above it; `calibrate` sets it.
    """

    threshold_: float

    @property
    def name(self) -> str:
        """What tables and figures call this detector."""
        return type(self).__name__.lower()

    @property
    @abstractmethod
    def required_activations(self) -> tuple[RequiredActivation, ...]:
        """What must be captured of each input."""

    @abstractmethod
    def fit(self, acts: Activations) -> Detector:
        """Learn from activations; returns self."""

    @abstractmethod
    def score(self, context: Context) -> Float[Tensor, " batch"]:
        """One score per input; higher means more of the thing detected."""

    def calibrate(self, clean: Activations | Context, *, fpr: float = 0.01) -> Detector:
        """Set `threshold_` so that at most a share `fpr` of inputs without the thing is detected; returns self.

        Example:
            >>> probe.calibrate(acts.select(behavior="answer"), fpr=0.05).threshold_

        Args:
            clean: inputs that do not have the thing, preferably none that the detector was fitted on.
            fpr: the share of false alarms that is allowed, 0 <= fpr < 1.

        Raises:
            DataError: no such share, or too few inputs for it: n inputs can't tell shares below 1 / n apart.

        Source: own.
        """
        context = clean if isinstance(clean, Context) else Context.of(clean)
        self.threshold_ = threshold_at(self.score(context), fpr)
        return self

    def detect(self, context: Context) -> Bool[Tensor, " batch"]:
        """Which inputs score above `threshold_`.

        Raises:
            ActivationError: there is no threshold yet.
        """
        if not hasattr(self, "threshold_"):
            raise ActivationError(
                f"this {type(self).__name__} has no threshold: call calibrate(clean, fpr=...), or give a threshold"
            )
        return self.score(context) > self.threshold_


class StateDetector(Detector):
    """A detector that looks at one state of the plain prompt; its constructor stores `layer` and `position`."""

    layer: int | Site
    position: str | int

    @property
    def site(self) -> Site:
        """Where it is read."""
        return Site.of(self.layer)

    @property
    def required_activations(self) -> tuple[RequiredActivation, ...]:
        """One state of the plain prompt."""
        return (RequiredActivation(self.site, self.position),)


def threshold_at(clean: Float[Tensor, " n"], fpr: float) -> float:
    """The lowest threshold above which at most a share `fpr` of the clean scores lies.

    Example:
        >>> threshold_at(torch.tensor([0.1, 0.2, 0.3, 0.9]), 0.25)     # one of four may lie above
        0.3

    Raises:
        DataError: `fpr` is no share below 1, there are no scores, or too few to tell such a share from none.

    Source: own.
    """
    if not 0 <= fpr < 1:
        raise DataError(f"fpr={fpr}: give the share of false alarms that is allowed, from 0 to below 1")
    if not len(clean) or 0 < fpr < 1 / len(clean):
        raise DataError(
            f"{len(clean)} clean inputs can't tell a false-positive rate of {fpr} from 0: give at least "
            f"{1 if fpr == 0 else ceil(min(1 / fpr, 1e9))}"
        )
    allowed = int(fpr * len(clean) + 1e-9)
    return float(clean.double().sort(descending=True).values[allowed])


def check_fitted(steerer: object, attribute: str) -> None:
    """Refuse a steerer that has not been fitted."""
    if not hasattr(steerer, attribute):
        name = type(steerer).__name__
        raise ActivationError(f"this {name} is not fitted yet: call {name}.fit(activations) first")


def steering_sites(steerer: Steerer) -> tuple[Site, ...]:
    """Everywhere a steerer may write; () for instruction baselines."""
    return tuple(getattr(steerer, "sites", ())) or ((steerer.site,) if hasattr(steerer, "site") else ())


def check_width(h: Tensor, width: int, name: str) -> Float[Tensor, "batch hidden"]:
    """States as float32, refused where they are not as wide as what `name` was learned from.

    Raises:
        MismatchError: names both widths.
    """
    if h.shape[-1] != width:
        raise MismatchError(
            f"the states have width {h.shape[-1]}, {name} takes {width}: read them from the model it was learned on"
        )
    return h.float()


def provenance(acts: Activations) -> dict[str, Any]:
    """Where something was learned, for `info_`: what `capture` noted, and the hidden size."""
    return {**acts.info, "hidden_size": acts.hidden_size}


def repeat_vector(vector: Float[Tensor, " hidden"], example_ids: Sequence[str]) -> Float[Tensor, "batch hidden"]:
    """One vector repeated for every input."""
    return vector.expand(len(example_ids), -1)
