"""Conditional steering: a detector decides, input by input, whether a steerer writes at all."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor

from steerlab._support.errors import MismatchError, SteeringError
from steerlab.capture.activations import Activations
from steerlab.methods._codec import savable
from steerlab.methods.base import Context, Detector, Intervention, RequiredActivation, Steerer, steering_sites
from steerlab.models.positions import Positions
from steerlab.models.sites import Site


@savable
class Gated(Steerer):
    """Let a steerer write to those inputs alone that a detector detects, each row of a batch for itself.

    Both look at the *unsteered* input; rows that are not detected come out as without steering, to the bit.

    Example:
        >>> probe = LinearProbe(12, positive=["refuse"]).fit(acts).calibrate(clean, fpr=0.01)
        >>> guarded = Gated(MeanDifference(15).fit(acts), probe)
        >>> steerlab.generate(model, prompts, steer=guarded)

    Args:
        steerer: any steerer; what it reads, and where it writes, stays its own business.
        detector: any detector.
        threshold: steer where the score is above it; None: the detector's own `threshold_`.
        when: "detected", or "not detected".
        soft: multiply the vector by the score itself, cut to [0, 1], instead of by 0 or 1.

    Raises:
        SteeringError: an instruction baseline can't be gated, or `soft` is given a threshold too.
        ActivationError: there is no threshold, neither here nor at the detector.
        MismatchError: the two were learned on different models.

    Source: selective steering, KL-then-steer, arXiv 2406.15518, and conditional steering, CAST, arXiv 2409.05907.
    """

    def __init__(
        self,
        steerer: Steerer,
        detector: Detector,
        *,
        threshold: float | None = None,
        when: str = "detected",
        soft: bool = False,
    ) -> None:
        self.steerer, self.detector, self.threshold, self.when, self.soft = steerer, detector, threshold, when, soft
        if when not in ("detected", "not detected"):
            raise SteeringError(f"when={when!r}; expected 'detected' or 'not detected'")
        if soft and threshold is not None:
            raise SteeringError("soft=True multiplies by the score itself: leave the threshold out, or soft=False")
        if type(steerer).transform_prompt is not Steerer.transform_prompt:
            raise SteeringError(
                f"{steerer.name} asks another prompt, and what is asked is settled before anything is detected: gate a "
                "method that adds vectors"
            )
        self.sites: tuple[Site, ...] = steering_sites(steerer)
        if len(self.sites) == 1:
            self.site = self.sites[0]
        self.oracle = steerer.oracle
        self.info_ = self._origin()

    @property
    def name(self) -> str:
        """For tables: "gated mean" and the like."""
        return f"gated {self.steerer.name}"

    @property
    def default_positions(self) -> Positions:  # type: ignore[override]
        """Where the steerer inside is made for."""
        return self.steerer.default_positions

    @property
    def required_activations(self) -> tuple[RequiredActivation, ...]:
        """What either of the two reads."""
        return tuple(dict.fromkeys((*self.detector.required_activations, *self.steerer.required_activations)))

    def fit(self, acts: Activations) -> Gated:
        """Fit both to the same activations; a threshold is set by the detector's `calibrate`."""
        self.detector.fit(acts)
        self.steerer.fit(acts)
        self.info_ = self._origin()
        return self

    def gate(self, context: Context) -> Float[Tensor, " batch"]:
        """How strongly each input is steered: 0 or 1, or with `soft` anything between."""
        if self.soft:
            score = self.detector.score(context).float().clamp(0, 1)
            return score if self.when == "detected" else 1 - score
        found = (
            self.detector.detect(context) if self.threshold is None else self.detector.score(context) > self.threshold
        )
        return (found if self.when == "detected" else ~found).float()

    def vectors(self, context: Context) -> Float[Tensor, "batch hidden"]:
        """The vectors of a steerer with one site, zero for inputs that are let pass."""
        return self.gate(context)[:, None] * self.steerer.vectors(context)

    def interventions(self, context: Context) -> tuple[Intervention, ...]:
        """Everything the steerer inside would add, each row multiplied by its gate."""
        gate = self.gate(context)
        return tuple(intervention.gated(gate) for intervention in self.steerer.interventions(context))

    def at(self, layer: int | Site) -> Gated:
        """The steerer at another layer, behind the same detector."""
        inner = self.steerer.at(layer)
        return Gated(inner, self.detector, threshold=self.threshold, when=self.when, soft=self.soft)

    def state_dict(self) -> dict[str, Any]:
        """Nothing of its own: both parts keep what they learned."""
        return {}

    def _origin(self) -> dict[str, Any]:
        """Where the two were learned, refused if that is not one place."""
        ours, theirs = (getattr(part, "info_", {}) for part in (self.steerer, self.detector))
        for name in ("model", "hidden_size", "template"):
            one, other = ours.get(name), theirs.get(name)
            if one is not None and other is not None and one != other:
                raise MismatchError(
                    f"{self.steerer.name} was learned on a model with {name} {one!r}, {self.detector.name} on one with "
                    f"{other!r}: fit both on the same model"
                )
        return {**theirs, **ours}
