"""The interface of every method: what it requires of an input, how it is fitted, what it adds to the model.

A `Steerer` names the activations that it requires of an unsteered input (`required_activations`), is fitted to what a
model computes on data, or to `Activations` (`fit`), and returns `Intervention`s for a batch of inputs: a site, one
vector per row, and optionally a gate per row or a function that computes the vectors from a state of the running model.
`capture`, `generate`, `score`, `sweep` and `save_pretrained` work with this interface alone, so a new method needs no
change in any of them.
"""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from numbers import Real

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from steerlab._support.checks import check_type
from steerlab.capturing.activations import Activations
from steerlab.errors import ActivationError, DataError, MismatchError, SteeringError
from steerlab.methods.fitted import FittedMixin as FittedMixin
from steerlab.methods.fitted import RequiredActivation as RequiredActivation
from steerlab.methods.fitted import parts_of as parts_of
from steerlab.methods.fitted import provenance as provenance
from steerlab.methods.fitted import steering_sites as steering_sites
from steerlab.models.fingerprint import check_same_model
from steerlab.models.interventions import VectorFn
from steerlab.models.operators import EditRule
from steerlab.models.positions import Positions
from steerlab.models.sites import Site
from steerlab.models.template import Messages

ROUNDING = 1e-5  # vectors that differ by less than this share of their norm are the same


@dataclass(frozen=True)
class Context:
    """The inputs of a batch and their captured activations: all that a method computes its vectors from.

    Example:
        >>> l2s.vectors(Context.of(acts)).shape             # (inputs, hidden)

    Attributes:
        example_ids: one per row of the batch.
        activations: what was captured for `required_activations`; None if nothing is required.
    """

    example_ids: tuple[str, ...]
    activations: Activations | None = None

    @classmethod
    def of(cls, acts: Activations) -> Context:
        """The context of all captured inputs, each once; use it to call a method without a model."""
        return cls(tuple(dict.fromkeys(acts.index["example_id"])), acts)

    def get_states(self, required: RequiredActivation) -> Float[Tensor, "batch hidden"]:
        """The states of one `RequiredActivation`, in the order of `example_ids`.

        Raises:
            ActivationError: they were not captured.
        """
        if self.activations is None:
            raise ActivationError(f"this method requires activations at site {required.site}; nothing was captured")
        if required.side not in set(self.activations.index["side"]):
            raise ActivationError(
                f"the prompt {required.side!r} was not captured: give each input "
                f"Example(extra_prompts={{{required.side!r}: ...}})"
            )
        ids, states = self.activations.by_example(required.site, side=required.side, position=str(required.position))
        row = {example_id: i for i, example_id in enumerate(ids)}
        if missing := [example_id for example_id in self.example_ids if example_id not in row]:
            raise ActivationError(f"no activations were captured for the inputs {missing[:3]}")
        return states[[row[example_id] for example_id in self.example_ids]]


@dataclass(frozen=True)
class Intervention:
    """A change of the states at one site, row by row; by default `alpha * gate * vectors` is added.

    Example:
        >>> Intervention(Site(16), vectors=torch.randn(2, model.hidden_size), gate=torch.tensor([1.0, 0.0]))

    Attributes:
        site: where in the model.
        vectors: `(batch, hidden)` float32, one per input; None if the operator of `rule` uses none.
        gate: `(batch,)`, usually in [0, 1]; None means 1.
        vector_fn: computes the vectors, `(batch, hidden)`, while the model runs, instead of `vectors`, each from its
            own row of the input: the state at this site and the last prompt position, before any change there. The
            result is used for all tokens, generated ones too; for a function of each token's own state, see
            `steerlab.methods.Operation`. A remote model receives the function by pickle, so it must be a plain function
            with its tensors and modules bound to it (`functools.partial`).
        positions: where this intervention is applied, whatever the request says: the k-th vector of a span belongs to
            its k-th token. Rows without these tokens are not changed. None: the positions of the request.
        read_site: `vector_fn` takes the state at this site of the unsteered prompt (`Steerer.remote_interventions`).
        rule: what is done with vectors and strength; by default they are multiplied and added.
    """

    site: Site
    vectors: Float[Tensor, "batch hidden"] | None = None
    gate: Float[Tensor, " batch"] | None = None
    vector_fn: VectorFn | None = None
    positions: Positions | None = None
    read_site: Site | None = None
    rule: EditRule = field(default_factory=EditRule)

    def positions_or(self, default: Positions) -> Positions:
        """The positions of this intervention, or `default` if it names none."""
        return default if self.positions is None else self.positions

    def with_gate(self, gate: Float[Tensor, " batch"]) -> Intervention:
        """The same intervention with each row multiplied by one more gate."""
        return replace(self, gate=gate if self.gate is None else self.gate * gate.to(self.gate.device))


class Steerer(FittedMixin):
    """A method that is fitted to activations and returns vectors to add to the model's states.

    Constructors only store their arguments. Fitted attributes end in `_`.
    A method with one site implements `vectors`; a method with several sites overrides `interventions`.

    Example:
        >>> steerer = steerlab.L2S(16).fit(model, train)
        >>> texts = steerlab.generate(model, prompts, steer=steerer, alpha=1.0)
    """

    #: where the vector is added
    site: Site
    #: where vectors are added, in a method with several sites
    sites: tuple[Site, ...]
    #: whether it must be fitted to the same inputs that it steers
    oracle: bool = False
    #: whether the length of a vector decides how much an input is steered, so that its direction alone says little
    gates_by_length: bool = False
    #: which tokens are steered if a request gives no positions
    default_positions: Positions = "all"

    @abstractmethod
    def vectors(self, context: Context) -> Float[Tensor, "batch hidden"]:
        """One vector per input, `(batch, hidden)` float32, in units of the residual stream."""

    def interventions(self, context: Context) -> tuple[Intervention, ...]:
        """All additions of this method for a batch of inputs."""
        return (Intervention(self.site, self.vectors(context)),)

    def remote_interventions(self) -> tuple[Intervention, ...] | None:
        """Interventions computed on the server from one hidden state each; None if unsupported.

        A remote model then needs no request to capture activations first.
        """
        return None

    def transform_prompt(self, prompt: str | Messages) -> str | Messages:
        """The user text to send to the model instead of `prompt`; only instruction baselines change it."""
        return prompt

    @property
    def changes_prompt(self) -> bool:
        """Whether the method has a `transform_prompt` of its own."""
        return type(self).transform_prompt is not Steerer.transform_prompt

    def with_layer(self, layer: int | Site) -> Steerer:
        """An unfitted copy with the same settings for another layer.

        Raises:
            SteeringError: the method has no argument `layer`.
        """
        names = inspect.signature(type(self)).parameters
        if "layer" not in names:
            raise SteeringError(f"{type(self).__name__} takes no layer, so there is nothing to sweep over")
        return type(self)(**{name: layer if name == "layer" else getattr(self, name) for name in names})


class Detector(FittedMixin):
    """A method that scores inputs from their activations. Any detector can gate any steerer (`Gated`).

    Example:
        >>> probe = LinearProbe(12, positive=["refuse"], negative=["answer"]).fit(acts)
        >>> guarded = Gated(vector, probe.calibrate(clean, fpr=0.05))

    Attributes:
        threshold_: an input is detected if its score is above it; set by `calibrate`.
    """

    threshold_: float

    @property
    @abstractmethod
    def required_activations(self) -> tuple[RequiredActivation, ...]:
        """What must be captured of each input."""

    @abstractmethod
    def score(self, context: Context) -> Float[Tensor, " batch"]:
        """One score per input; inputs of the positive class score higher."""

    def calibrate(self, clean: Activations | Context, *, fpr: float = 0.01) -> Detector:
        """Set `threshold_` for a false-positive rate of at most `fpr`; returns self.

        Example:
            >>> probe.calibrate(acts.select(behavior="answer"), fpr=0.05).threshold_

        Args:
            clean: inputs of the negative class, preferably inputs that the detector was not fitted on.
            fpr: the largest share of them that may be detected, 0 <= fpr < 1.

        Raises:
            DataError: `fpr` is out of range, or n inputs are too few for it (0 < fpr < 1 / n).
            MismatchError: another model read the inputs.
        """
        check_type("clean", clean, (Activations, Context), "Activations from steerlab.capture, or a Context")
        context = clean if isinstance(clean, Context) else Context.of(clean)
        check_origin(self, context)
        self.threshold_ = threshold_at(self.score(context), fpr)
        return self

    def detect(self, context: Context) -> Bool[Tensor, " batch"]:
        """Which inputs score above `threshold_`.

        Raises:
            ActivationError: there is no threshold yet. MismatchError: another model read the inputs.
        """
        if not hasattr(self, "threshold_"):
            raise ActivationError(
                f"this {type(self).__name__} has no threshold: call calibrate(clean, fpr=...), or give a threshold"
            )
        check_origin(self, context)
        return self.score(context) > self.threshold_


class StateDetector(Detector):
    """A detector that reads one state of the plain prompt; its constructor stores `layer` and `position`."""

    layer: int | Site
    position: str | int

    @property
    def site(self) -> Site:
        """Where the state is read."""
        return Site.of(self.layer)

    @property
    def required_activations(self) -> tuple[RequiredActivation, ...]:
        """One state of the plain prompt."""
        return (RequiredActivation(self.site, self.position),)


def threshold_at(clean: Float[Tensor, " n"], fpr: float) -> float:
    """The lowest threshold with at most a share `fpr` of the clean scores above it.

    Example:
        >>> threshold_at(torch.tensor([0.1, 0.2, 0.3, 0.9]), 0.25)     # one of four may lie above
        0.3

    Raises:
        DataError: `fpr` is not in [0, 1), there are no scores, or too few for a rate above 0.
    """
    if not (isinstance(fpr, Real) and 0 <= fpr < 1):
        raise DataError(f"fpr={fpr}: give the share of false alarms that is allowed, from 0 to below 1")
    if not len(clean) or 0 < fpr < 1 / len(clean):
        raise DataError(
            f"{len(clean)} clean inputs can't tell a false-positive rate of {fpr} from 0: give at least "
            f"{1 if fpr == 0 else ceil(min(1 / fpr, 1e9))}"
        )
    if not bool(clean.isfinite().all()):
        raise DataError("a score of a clean input is NaN or infinite: there is no threshold above which to detect")
    allowed = int(fpr * len(clean) + 1e-9)
    return float(clean.double().sort(descending=True).values[allowed])


def check_fitted(method: object, attribute: str) -> None:
    """Raise ActivationError if `attribute` is missing, that is, before `fit`."""
    if not hasattr(method, attribute):
        name = type(method).__name__
        raise ActivationError(f"this {name} is not fitted yet: call {name}.fit(activations) first")


def check_origin(method: FittedMixin, context: Context) -> None:
    """Refuse states of another model than the one that the method was fitted on.

    Raises:
        MismatchError: another model, or another chat template.
    """
    check_same_model(method.name, getattr(method, "info_", {}), getattr(context.activations, "info", {}))


def check_width(states: Tensor, width: int, name: str) -> Float[Tensor, "batch hidden"]:
    """The states as float32, checked for the width that `name` was fitted on.

    Raises:
        MismatchError: another width.
    """
    if states.shape[-1] != width:
        raise MismatchError(
            f"the states have width {states.shape[-1]}, {name} takes {width}: use the model that it was fitted on"
        )
    return states.float()


def rounding_share(acts: Activations) -> float:
    """States that differ by no more than this share of their norm may be the same, up to rounding."""
    return max(ROUNDING, torch.finfo(getattr(torch, acts.info.get("dtype") or "float32")).eps)


def are_same(vectors: Float[Tensor, "example hidden"]) -> bool:
    """Whether all vectors are one, up to rounding."""
    return bool((vectors - vectors.mean(0)).norm(dim=-1).max() <= ROUNDING * vectors.norm(dim=-1).max())


def repeat_vector(vector: Float[Tensor, " hidden"], example_ids: Sequence[str]) -> Float[Tensor, "batch hidden"]:
    """One vector repeated for every input."""
    return vector.expand(len(example_ids), -1)
