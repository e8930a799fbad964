"""`Operation`: another operator than addition for a steerer's vectors, and which tokens it is applied to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from steerlab._support.checks import as_number, as_whole, check_option, check_type
from steerlab._support.files import fingerprint
from steerlab.errors import ActivationError, SteeringError
from steerlab.methods.base import Context, Intervention, Steerer, check_fitted
from steerlab.methods.layers import Layers, unique_sites
from steerlab.methods.probe import LinearProbe
from steerlab.methods.serialization import savable
from steerlab.methods.vector import Vectors, as_steerer
from steerlab.methods.wrapper import Wrapper
from steerlab.models.operators import OPERATORS, Add, Clamp, EditRule, Operator, ProjectOut, Replace, Rotate, Scale
from steerlab.models.sites import Site

for _operator in (Add, Clamp, ProjectOut, Replace, Rotate, Scale):
    savable(_operator)


@savable
class Operation(Wrapper):
    """A steerer whose vectors are not added but used by another operator, at every token that is steered.

    The operator sees the state of each token as it is in the running model, in the prompt and while decoding. Several
    operations at a site are applied in the order in which they are given.

    Example:
        >>> refusal = MeanDifference(15).fit(model, pairs)
        >>> texts = steerlab.generate(model, prompts, steer=Operation(refusal, "project_out"))
        >>> capped = Operation(refusal, Clamp(high=2.0))
        >>> short = Operation(l2s, first=12, decay=0.9)            # added, less and less, to 12 generated tokens
        >>> no_head = Operation(Site(15, "heads"), Scale(0.0), heads=[3])

    Args:
        steerer: a fitted steerer, or vectors by layer; for an operator without a vector, layers or Sites.
        operator: "add", "project_out", "replace", "rotate", or an operator of `steerlab.models.operators`. Alpha is its
            strength; 0 leaves the model as it is.
        heads: of a site "heads", the heads to change, each with its part of the vector; None: all as one state.
        first: of the generated tokens, only so many are steered; None: all. The prompt is steered as `positions` say.
        decay: the strength of the k-th generated token (from 0) is multiplied by `decay ** k`.
        gate: decides for each token, from its own state before the edit: a fitted `LinearProbe` with a threshold, or a
            function of `(rows, tokens, width)` that gives a factor for each token, `(rows, tokens)`.

    Raises:
        SteeringError: an unknown operator, a vector where none is used, or settings out of range.
        ActivationError: a probe that is not fitted or has no threshold.

    Source: directional ablation, arXiv 2406.11717 (`ProjectOut`); spherical steering, arXiv 2602.08169 (`Rotate`).
    """

    def __init__(
        self,
        steerer: Steerer | Vectors | Layers,
        operator: str | Operator = "add",
        *,
        heads: Sequence[int] | None = None,
        first: int | None = None,
        decay: float = 1.0,
        gate: LinearProbe | Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if isinstance(operator, str):
            check_option("operator", operator, tuple(OPERATORS), SteeringError)
        check_type("operator", operator, (str, Operator), "a name or an Operator", SteeringError)
        self.operator: str | Operator = operator
        self.heads = None if heads is None else _as_heads(heads)
        self.first = None if first is None else as_whole("first", first)
        self.decay, self.gate = as_number("decay", decay, 0.0, 1.0), gate
        self._rule = EditRule(
            OPERATORS[operator] if isinstance(operator, str) else operator,
            self.heads, None, self.first, self.decay, _as_gate(gate),
        )  # fmt: skip
        if self._rule.operator.uses == "nothing":
            if isinstance(steerer, Steerer) and not isinstance(steerer, _Places):
                raise SteeringError(f"{type(operator).__name__} uses no vector: give the layers, not a {steerer.name}")
            self._wrap(steerer if isinstance(steerer, _Places) else _Places(steerer))  # type: ignore[arg-type]
        else:
            self._wrap(as_steerer(steerer))

    @property
    def name(self) -> str:
        """Its name in tables and figures: "mean, project_out" and the like."""
        operator = self.operator if isinstance(self.operator, str) else type(self.operator).__name__.lower()
        return f"{self.steerer.name}, {operator}"

    def interventions(self, context: Context) -> tuple[Intervention, ...]:
        """Those of the steerer, with the operator."""
        return self._with_rule(self.steerer.interventions(context))

    def remote_interventions(self) -> tuple[Intervention, ...] | None:
        """Those of the steerer, with the operator."""
        found = self.steerer.remote_interventions()
        return None if found is None else self._with_rule(found)

    def _with_rule(self, interventions: Sequence[Intervention]) -> tuple[Intervention, ...]:
        if any(one.rule != EditRule() for one in interventions):
            raise SteeringError(f"{self.steerer.name} has an operator already: give all settings to one Operation")
        return tuple(replace(one, rule=self._rule) for one in interventions)


@savable
class _Places(Steerer):
    """The sites of an operator that uses no vector."""

    is_fittable = False

    def __init__(self, layers: Layers) -> None:
        self.layers, self.sites = layers, unique_sites(layers)
        if len(self.sites) == 1:
            self.site = self.sites[0]

    @property
    def name(self) -> str:
        return f"layer {', '.join(map(str, self.sites))}"

    def fit_activations(self, acts: Any) -> None:
        raise SteeringError("an operator without a vector has nothing to fit")

    def vectors(self, context: Context) -> Float[Tensor, "batch hidden"]:
        raise SteeringError("an operator without a vector has none")

    def interventions(self, context: Context) -> tuple[Intervention, ...]:
        return tuple(Intervention(site) for site in self.sites)

    def remote_interventions(self) -> tuple[Intervention, ...] | None:
        return self.interventions(Context(()))

    def with_layer(self, layer: int | Site) -> Steerer:
        return _Places(layer)


@dataclass(frozen=True, eq=False)
class _ProbeGate:
    """1 for the states that a probe detects, else 0."""

    w: Tensor
    b: float
    threshold: float

    def __call__(self, h: Tensor) -> Tensor:
        return (torch.sigmoid(h @ self.w.to(h.device) + self.b) > self.threshold).float()

    def __repr__(self) -> str:  # the same for the same probe: a sweep's folder knows it by this
        return f"_ProbeGate({fingerprint([self.w.tolist(), self.b, self.threshold])})"


def _as_gate(gate: LinearProbe | Callable[[Tensor], Tensor] | None) -> Callable[[Tensor], Tensor] | None:
    if not isinstance(gate, LinearProbe):
        if gate is not None and not callable(gate):
            raise SteeringError("gate is neither a LinearProbe nor a function of states")
        return gate
    check_fitted(gate, "w_")
    if not hasattr(gate, "threshold_"):
        raise ActivationError("the probe of gate= has no threshold: call calibrate(clean, fpr=...)")
    return _ProbeGate(gate.w_, gate.b_, gate.threshold_)


def _as_heads(heads: Sequence[int]) -> tuple[int, ...]:
    found = tuple(as_whole("heads: one", head, 0) for head in heads)
    if not found or len(set(found)) < len(found):
        raise SteeringError(f"heads={list(heads)}: give at least one head, each once")
    return found
