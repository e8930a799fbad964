"""Conditional steering: a detector decides for each input whether a steerer is applied."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor

from steerlab._support.checks import as_number, check_type
from steerlab.capturing.activations import Activations
from steerlab.errors import MismatchError, SteeringError
from steerlab.methods.base import (
    Context,
    Detector,
    Intervention,
    RequiredActivation,
    Steerer,
    check_origin,
    steering_sites,
)
from steerlab.methods.serialization import savable
from steerlab.methods.vector import Vectors, as_steerer
from steerlab.methods.wrapper import Wrapper
from steerlab.models.fingerprint import describe_origin, same_model


@savable
class Gated(Wrapper):
    """Apply a steerer to the inputs that a detector detects, row by row within a batch.

    Both use activations of the *unsteered* input. Rows that are not detected are bit-identical to no steering.

    Example:
        >>> probe = LinearProbe(12, positive=["refuse"]).fit(acts).calibrate(clean, fpr=0.01)
        >>> guarded = Gated(MeanDifference(15).fit(acts), probe)
        >>> steerlab.generate(model, prompts, steer=guarded)

    Args:
        steerer: any steerer that adds vectors, or vectors by layer.
        detector: any detector.
        threshold: steer if the score is above it; None: the `threshold_` of the detector.
        when: "detected" or "not detected".
        soft: multiply the vector by the score, clamped to [0, 1], instead of by 0 or 1.

    Raises:
        SteeringError: the steerer changes the prompt, or both `soft` and `threshold` are given.
        ActivationError: there is no threshold.
        MismatchError: the two were fitted on different models.

    Source: selective steering, KL-then-steer, arXiv 2406.15518, and conditional steering, CAST, arXiv 2409.05907.
    """

    def __init__(
        self, steerer: Steerer | Vectors, detector: Detector, *, threshold: float | None = None, when: str = "detected",
        soft: bool = False,
    ) -> None:  # fmt: skip
        steerer = as_steerer(steerer)
        check_type("detector", detector, Detector, "a fitted Detector", SteeringError)
        if threshold is not None:
            as_number("threshold", threshold, error=SteeringError)
        self.detector, self.threshold, self.when, self.soft = detector, threshold, when, soft
        if when not in ("detected", "not detected"):
            raise SteeringError(f"when={when!r}; expected 'detected' or 'not detected'")
        if soft and threshold is not None:
            raise SteeringError("soft=True multiplies by the score itself: leave the threshold out, or soft=False")
        self._wrap(steerer)
        self.info_ = self._shared_info()

    @property
    def name(self) -> str:
        """Its name in tables and figures: "gated mean" and the like."""
        return f"gated {self.steerer.name}"

    @property
    def required_activations(self) -> tuple[RequiredActivation, ...]:
        """What the detector or the steerer requires."""
        return tuple(dict.fromkeys((*self.detector.required_activations, *self.steerer.required_activations)))

    def fit_activations(self, acts: Activations) -> None:
        """Fit the steerer, and a detector that is not fitted yet; `detector.calibrate` sets a threshold."""
        if not getattr(self.detector, "info_", None):
            self.detector.fit(acts)
        if self.is_fittable:
            self.steerer.fit(acts)
        self._shared_info()  # refuses a vector made on another model
        self._set_sites()

    def gate(self, context: Context) -> Float[Tensor, " batch"]:
        """The factor of each input: 0 or 1, or with `soft` a number between."""
        check_origin(self.detector, context)
        if self.soft:
            gate = self.detector.score(context).float().clamp(0, 1)
        elif self.threshold is None:
            gate = self.detector.detect(context).float()
        else:
            gate = (self.detector.score(context) > self.threshold).float()
        return gate if self.when == "detected" else 1 - gate

    def vectors(self, context: Context) -> Float[Tensor, "batch hidden"]:
        """The vectors of a steerer with one site, multiplied by the gate."""
        return self.gate(context)[:, None] * self.steerer.vectors(context)

    def interventions(self, context: Context) -> tuple[Intervention, ...]:
        """The interventions of the steerer, each row multiplied by its gate."""
        gate = self.gate(context)
        return tuple(intervention.with_gate(gate) for intervention in self.steerer.interventions(context))

    def _shared_info(self) -> dict[str, Any]:
        """The info of both parts, which must come from one model."""
        first, second = (getattr(part, "info_", {}) for part in (self.steerer, self.detector))
        names = ["template"]
        if all(site.part == "text" and site.point != "heads" for site in steering_sites(self.steerer)):
            names.append("hidden_size")  # states of heads and images have widths of their own
        compared = [(name, first.get(name), second.get(name)) for name in names]
        if not same_model(first, second):
            compared.append(("name", describe_origin(first), describe_origin(second)))
        for name, one, other in compared:
            if None not in (one, other) and one != other:
                raise MismatchError(
                    f"{self.steerer.name} was fitted on a model with {name} {one}, {self.detector.name} on one with "
                    f"{other}: fit both on the same model"
                )
        return {**second, **first}
