"""Conditional steering: a detector decides for each input whether a steerer is applied."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from steerlab._support.checks import as_number, check_type
from steerlab.capturing.activations import Activations
from steerlab.data.example import Example
from steerlab.errors import MismatchError, SteeringError
from steerlab.methods.base import Context, Detector, Intervention, RequiredActivation, Steerer, steering_sites
from steerlab.methods.serialization import savable
from steerlab.methods.vector import Vectors, as_steerer
from steerlab.models.fingerprint import describe_origin, same_model
from steerlab.models.positions import Positions
from steerlab.models.sites import Site


@savable
class Gated(Steerer):
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
        self,
        steerer: Steerer | Vectors,
        detector: Detector,
        *,
        threshold: float | None = None,
        when: str = "detected",
        soft: bool = False,
    ) -> None:
        steerer = as_steerer(steerer)
        check_type("detector", detector, Detector, "a fitted Detector", SteeringError)
        if threshold is not None:
            as_number("threshold", threshold, error=SteeringError)
        self.steerer, self.detector, self.threshold, self.when, self.soft = steerer, detector, threshold, when, soft
        if when not in ("detected", "not detected"):
            raise SteeringError(f"when={when!r}; expected 'detected' or 'not detected'")
        if soft and threshold is not None:
            raise SteeringError("soft=True multiplies by the score itself: leave the threshold out, or soft=False")
        if type(steerer).transform_prompt is not Steerer.transform_prompt:
            raise SteeringError(
                f"{steerer.name} changes the prompt, which is fixed before the detector runs: gate a method that adds "
                "vectors"
            )
        self._set_sites()
        self.oracle = steerer.oracle
        self.info_ = self._shared_info()

    @property
    def name(self) -> str:
        """Its name in tables and figures: "gated mean" and the like."""
        return f"gated {self.steerer.name}"

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
        """What the detector or the steerer requires."""
        return tuple(dict.fromkeys((*self.detector.required_activations, *self.steerer.required_activations)))

    def fit_activations(self, acts: Activations) -> None:
        """Fit both to the same activations; `detector.calibrate` sets a threshold."""
        self.detector.fit(acts)
        if self.is_fittable:
            self.steerer.fit(acts)
        self._shared_info()  # refuses a vector made on another model
        self._set_sites()

    def capture_options(self, examples: Sequence[Example]) -> dict[str, Any]:
        """The arguments of `capture` that give what `fit` reads of these examples."""
        return super().capture_options(examples) | ({} if self.sites else {"layers": "all"})

    def _set_sites(self) -> None:
        self.sites: tuple[Site, ...] = steering_sites(self.steerer)
        if len(self.sites) == 1:
            self.site = self.sites[0]

    def gate(self, context: Context) -> Float[Tensor, " batch"]:
        """The factor of each input: 0 or 1, or with `soft` a number between."""
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

    def with_layer(self, layer: int | Site) -> Gated:
        """The steerer at another layer, not fitted, with the same detector."""
        steerer = self.steerer.with_layer(layer)
        return Gated(steerer, self.detector, threshold=self.threshold, when=self.when, soft=self.soft)

    def state_dict(self) -> dict[str, Any]:
        """Empty: the steerer and the detector store their fitted values."""
        return {}

    def _shared_info(self) -> dict[str, Any]:
        """The info of both parts, which must come from one model."""
        first, second = (getattr(part, "info_", {}) for part in (self.steerer, self.detector))
        compared = [(name, first.get(name), second.get(name)) for name in ("hidden_size", "template")]
        if not same_model(first, second):
            compared.append(("name", describe_origin(first), describe_origin(second)))
        for name, one, other in compared:
            if None not in (one, other) and one != other:
                raise MismatchError(
                    f"{self.steerer.name} was fitted on a model with {name} {one}, {self.detector.name} on one with "
                    f"{other}: fit both on the same model"
                )
        return {**second, **first}
