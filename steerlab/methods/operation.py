"""`Operation`: another operator than addition for a steerer's vectors, and which tokens it is applied to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Float
from torch import Tensor

from steerlab._support.checks import as_number, as_whole, check_option, check_type, show
from steerlab.errors import ActivationError, SteeringError
from steerlab.methods.base import Context, Intervention, Steerer, check_fitted
from steerlab.methods.layers import Layers, MultiSiteSteerer
from steerlab.methods.probe import LinearProbe
from steerlab.methods.serialization import savable
from steerlab.methods.vector import Vectors, as_steerer
from steerlab.methods.wrapper import Wrapper
from steerlab.models.fingerprint import check_same_model
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
        >>> short = Operation(l2s, first=12, decay=0.9)   # added to the prompt and, less and less, to 12 new tokens
        >>> no_head = Operation(Site(15, "heads"), Scale(0.0), heads=[3])

    Args:
        steerer: a fitted steerer, or vectors by layer; for an operator without a vector, layers or Sites.
        operator: "add", "project_out", "replace", "rotate", or an operator of `steerlab.models.operators`. Alpha is its
            strength; 0 leaves the model as it is.
        heads: of a site "heads", the heads to change, each with its part of the vector; None: all as one state.
        first: of the generated tokens, only so many are steered; None: all. The prompt is steered as `positions` say.
        decay: the strength of the k-th generated token (from 0) is multiplied by `decay ** k`.
        gate: decides for each token, from its own state before the edit: a `LinearProbe` fitted at that layer, with a
            threshold, or a function of `(rows, tokens, width)` that gives a factor from 0 to 1 for each token,
            `(rows, tokens)`.

    An operator that uses a direction ignores the length of a vector: where L2S predicts a short one, since an input
    should be left alone, put `Gated` around the Operation.

    Raises:
        SteeringError: an unknown operator, a vector where none is used, a direction operator around AlphaSteer or
            AdaSteer, whose vectors say by their length how much to steer, or a probe of another layer.
        DataError: a number out of range. MismatchError: a probe of another model.
        ActivationError: a probe that is not fitted or has no threshold.

    Source: directional ablation, arXiv 2406.11717 (`ProjectOut`); spherical steering, arXiv 2602.08169 (`Rotate`).
    """

    def __init__(
        self, steerer: Steerer | Vectors | Layers, operator: str | Operator = "add", *,
        heads: int | Sequence[int] | None = None, first: int | None = None, decay: float = 1.0,
        gate: LinearProbe | Callable[[Tensor], Tensor] | None = None,
    ) -> None:  # fmt: skip
        if operator in ("clamp", "scale") or isinstance(operator, type):
            raise SteeringError(
                f"operator={show(operator)}: give it with its numbers, such as Clamp(high=2.0) or Scale(0.5)"
            )
        if isinstance(operator, str):
            check_option("operator", operator, tuple(OPERATORS), SteeringError)
        check_type("operator", operator, (str, Operator), "a name or an Operator", SteeringError)
        if isinstance(steerer, Operation):
            raise SteeringError(f"{steerer.name} is an Operation already: give all settings to one")
        self.operator: str | Operator = operator
        self.heads = None if heads is None else _as_heads(heads)
        self.first = None if first is None else as_whole("first", first)
        _check_gate(gate)
        self.decay, self.gate = as_number("decay", decay, 0.0, 1.0), gate
        uses = self._operator.uses
        if uses == "nothing" and not isinstance(steerer, _Places):
            if isinstance(steerer, Steerer | Mapping | Tensor):
                raise SteeringError(f"{type(operator).__name__} uses no vector: give the layers, not {show(steerer)}")
            steerer = _Places(steerer)  # type: ignore[arg-type]
        self._wrap(as_steerer(steerer))
        if self.gates_by_length and not isinstance(self._operator, Add):
            raise SteeringError(
                f"the vectors of {self.steerer.name} are short where an input should be left alone, and "
                f"{type(self._operator).__name__} does not add them: put Gated around an Operation instead"
            )

    @property
    def _operator(self) -> Operator:
        return OPERATORS[self.operator] if isinstance(self.operator, str) else self.operator

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
        found = []
        for one in interventions:
            own = one.rule.operator  # that of a method which brings one, such as `Spherical`
            if not one.rule.adds and not isinstance(self._operator, Add):
                raise SteeringError(
                    f"{self.steerer.name} brings its own operator, {type(own).__name__}: leave operator= out"
                )
            if one.rule != EditRule(own):
                raise SteeringError(
                    f"{self.steerer.name} says itself for how long, at which heads or by which norm it steers: give "
                    "all settings to one Operation, and put Gated around it"
                )
            if self.heads is not None and not own.by_head:
                raise SteeringError(f"{self.steerer.name} scores all heads as one state: leave heads= out")
            operator = self._operator if one.rule.adds else own
            rule = EditRule(operator, self.heads, None, self.first, self.decay, self._gate_at(one.site))
            found.append(replace(one, rule=rule))
        return tuple(found)

    def _gate_at(self, site: Site) -> Callable[[Tensor], Tensor] | None:
        """The gate of the states at a site; a probe is of one site and of one model."""
        if not isinstance(self.gate, LinearProbe):
            return self.gate
        if self.gate.site != site:
            raise SteeringError(
                f"the probe of gate= reads layer {self.gate.site}, and states at {site} are to be decided on: fit one "
                f"there, LinearProbe({site.label})"
            )
        check_same_model("the probe", getattr(self.gate, "info_", {}), getattr(self.steerer, "info_", {}))
        return _ProbeGate(self.gate.w_.double(), self.gate.b_, self.gate.threshold_)


@savable
class _Places(MultiSiteSteerer):
    """The sites of an operator that uses no vector."""

    is_fittable = False

    def __init__(self, layers: Layers) -> None:
        self._set_layers(layers)

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


@dataclass(frozen=True, eq=False)
class _ProbeGate:
    """1 for the states that a probe detects, else 0, from probabilities as the probe computes them."""

    w: Tensor
    b: float
    threshold: float

    def __call__(self, h: Tensor) -> Tensor:
        where = "cpu" if h.device.type == "mps" else h.device  # which knows no float64
        return ((h.to(where).double() @ self.w.to(where) + self.b).sigmoid() > self.threshold).float().to(h.device)


def _check_gate(gate: object) -> None:
    if isinstance(gate, LinearProbe):
        check_fitted(gate, "w_")
        if not hasattr(gate, "threshold_"):
            raise ActivationError("the probe of gate= has no threshold: call calibrate(clean, fpr=...)")
    elif gate is not None and not callable(gate):
        raise SteeringError(f"gate={show(gate)}: expected a LinearProbe or a function of states")


def _as_heads(heads: int | Sequence[int]) -> tuple[int, ...]:
    given = heads if isinstance(heads, Iterable) and not isinstance(heads, str) else [heads]
    found = tuple(as_whole("heads: one", head, 0) for head in given)
    if not found or len(set(found)) < len(found):
        raise SteeringError(f"heads={show(heads)}: give at least one head, each once")
    return found
