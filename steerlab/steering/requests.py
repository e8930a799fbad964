"""What users ask for: steerers with strength and positions, checked against the model and the inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from steerlab._support.checks import check_option, check_type, show
from steerlab._support.files import fingerprint
from steerlab.data.example import Example
from steerlab.errors import MismatchError, SteeringError
from steerlab.methods.base import Context, Intervention, RequiredActivation, parts_of, steering_sites
from steerlab.methods.vector import as_steerer
from steerlab.models.encoding import EncodedPrompt
from steerlab.models.fingerprint import (
    accept_model,
    describe_origin,
    is_accepted,
    same_model,
    same_origin,
    weights_fingerprint,
)
from steerlab.models.model import Model
from steerlab.models.operators import unit
from steerlab.models.positions import Positions
from steerlab.steering.context import ReadContexts, read_contexts
from steerlab.steering.interventions import BatchedSetting

Scale = Literal["raw", "norm", "token_norm"]
Alpha = float | Sequence[float] | Tensor


@dataclass(frozen=True)
class Request:
    """A steerer with its strength and the positions it is added at.

    Example:
        >>> steerlab.generate(model, prompts, steer=[Request(l2s, 2.0, "last+generated"), mean])

    Attributes:
        steerer: fitted; or vectors by layer, `{15: tensor}`.
        alpha: strength, one number or one per input. A positive alpha adds the vector, towards the named
            behavior; of other operators it is the strength.
        positions: where to add the vector, see `steerlab.models.positions`; None: `steerer.default_positions`. At sites
            of the vision tower and the projector, "images" and "all" both mean every patch of the row's images. Nothing
            can be fitted there, since both answers of a contrast share their images: give the vector with
            `SteeringVector`.
        scale: "raw" adds `alpha * vector`; "norm" first rescales the vector to the norm of the input's state at the
            last prompt token of the steered layer, so alpha 0.1 moves every state by about a tenth of its norm;
            "token_norm" rescales it to the norm of each state that it is added to. Either way a short vector becomes as
            long as any: what L2S with `zero_behaviors` or a soft RoutedMean says by the length is lost, a gate is not.
        any_model: accept vectors fitted on another model of the same width, or under another chat template; the steerer
            remembers it, also when saved.
    """

    steerer: Any  # vectors by layer have become a Steerer after `__post_init__`
    alpha: Alpha = 1.0
    positions: Positions | None = None
    scale: Scale = "raw"
    any_model: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "steerer", as_steerer(self.steerer))
        check_option("scale", self.scale, get_args(Scale), SteeringError)
        try:
            given = torch.as_tensor(self.alpha)
            valid = given.is_floating_point() or given.dtype in (torch.int64, torch.int32)
            valid = valid and bool(given.float().isfinite().all())
        except (TypeError, ValueError, RuntimeError):
            valid = False
        if not valid:
            expected = "a number or one per input, in float32 without NaN or infinity"
            raise SteeringError(f"alpha={show(self.alpha)}: expected {expected}")

    @property
    def is_noop(self) -> bool:
        """Whether every alpha is 0; the model then runs without edits."""
        given = torch.as_tensor(self.alpha)
        return given.numel() > 0 and not bool(given.any())

    def alphas(self, n: int) -> Float[Tensor, " input"]:
        """One strength per input."""
        given = torch.as_tensor(self.alpha, dtype=torch.float32)
        given = given.expand(n) if given.ndim == 0 else given
        if given.shape != (n,):
            raise SteeringError(f"alpha has shape {tuple(given.shape)} but there are {n} inputs: give one number each")
        return given


def resolve_interventions(
    model: Model, requests: Sequence[Request], examples: Sequence[Example], batch_size: int,
    rows: Sequence[EncodedPrompt] = (), *, once: bool = True, read: ReadContexts | None = None,
    check_alpha: bool = True,
) -> list[BatchedSetting]:  # fmt: skip
    """The interventions of every request with a nonzero alpha, after one unsteered pass for what the steerers read.

    Args:
        rows: the encoded examples, perhaps with answers; without them, the prompts are encoded for that pass.
        once: whether the interventions serve a single run; a remote model then computes them on the server where the
            steerer supports it (`Steerer.remote_interventions`).
        check_alpha: whether the alphas of the requests are meant, and checked against what their operators take.
        read: gives the contexts of the steerers, with further required activations; None: a capture of the examples.

    Raises:
        MismatchError: a steerer was fitted on another model, or its vectors have another width.
        SteeringError: a vector is not finite, or alpha does not match the inputs.
    """
    live = [request for request in requests if not request.is_noop]
    for request in live:
        _check_origin(model, request.steerer, request.any_model)
    found = _remote_interventions(model, live) if once else None
    if found is None:
        norms = [
            RequiredActivation(site, "last")
            for request in live if request.scale == "norm"
            for site in steering_sites(request.steerer) if site.part == "text"
        ]  # fmt: skip
        steerers = [request.steerer for request in live]
        contexts = read(steerers, norms) if read else read_contexts(model, steerers, norms, examples, batch_size, rows)
        found = [
            [_scaled(model, request, one, context) for one in request.steerer.interventions(context)]
            for request, context in zip(live, contexts, strict=True)
        ]
    for request, interventions in zip(live, found, strict=True) if check_alpha else ():
        for one in interventions:
            check_strengths(request.steerer.name, one, request.alphas(len(examples)))
    return [
        BatchedSetting(
            request.steerer.name, tuple(interventions), request.alphas(len(examples)),
            request.steerer.default_positions if request.positions is None else request.positions,
        )
        for request, interventions in zip(live, found, strict=True)
    ]  # fmt: skip


def _check_origin(model: Model, steerer: Any, any_model: bool) -> None:
    """Refuse a steerer, or a part of one, that was fitted on another model, before any forward; its `info_` remembers
    `any_model`. A part may have been fitted since it was wrapped.
    """
    parts = list({id(one): one for one in (*parts_of(steerer), steerer)}.values())
    named = any(getattr(part, "info_", {}).get("model") for part in parts)  # a vector made by hand is of no model
    template = fingerprint(model.tokenizer.chat_template) if model.chat else None
    here = {"model": model.id, "weights": weights_fingerprint(model.hf), "template": template} if named else {}
    for part in parts:
        _check_part(model, part, any_model, here)


def _check_part(model: Model, steerer: Any, any_model: bool, here: dict[str, Any]) -> None:
    name, info = steerer.name, getattr(steerer, "info_", {})
    site = next(iter(steering_sites(steerer)), None)
    theirs, ours = info.get("hidden_size"), model.hidden_size if site is None else model.width(site)
    if None not in (theirs, ours) and theirs != ours:
        there = "" if site is None or site.part == "text" else f" at {site}"
        raise MismatchError(
            f"{name} was fitted on a model with hidden_size {theirs}; this model has {ours}{there}. Fit it on "
            "activations of this model."
        )
    if not info.get("model") or same_origin(info, here) or is_accepted(info, here):
        return
    if not any_model:
        other = "has another chat template now" if same_model(info, here) else f"is {describe_origin(here)}"
        raise MismatchError(
            f"{name} was fitted on a model called {describe_origin(info)}; this model {other}. Fit it on activations "
            "of this model. Request(..., any_model=True) accepts it, once for all."
        )
    accept_model(info, here)


def _remote_interventions(model: Model, requests: Sequence[Request]) -> list[Sequence[Intervention]] | None:
    """Interventions that the server computes itself; None unless every steerer supports it."""
    if not model.is_remote:
        return None
    found = [request.steerer.remote_interventions() if request.scale == "raw" else None for request in requests]
    if any(one is None for one in found):
        return None
    return [[_with_heads(model, intervention) for intervention in one or ()] for one in found]


def _scaled(model: Model, request: Request, intervention: Intervention, context: Context) -> Intervention:
    """The intervention in the request's scale, its vectors checked."""
    name, site, vectors = request.steerer.name, intervention.site, intervention.vectors
    gate, n = intervention.gate, len(context.example_ids)
    for what, given in (("vectors", vectors), ("gate", gate)):
        check_type(f"{what} of {name}", given, (Tensor, type(None)), "a tensor", SteeringError)
    if gate is not None and (gate.shape != (n,) or not bool(torch.isfinite(gate).all())):
        raise SteeringError(
            f"the gate of {name} has shape {tuple(gate.shape)}, or holds NaN or infinity: expected a finite number for "
            f"each of {n} inputs"
        )
    if vectors is not None:
        width = model.width(site)
        if vectors.shape != (n, width or vectors.shape[-1]):
            raise MismatchError(
                f"{name} gives vectors of shape {tuple(vectors.shape)} for {n} inputs to "
                f"{model.id}, whose states at {site} are {width} wide: it was fitted on another model"
            )
        if not bool(torch.isfinite(vectors).all()):
            raise SteeringError(f"{name} gives a vector with NaN or infinity")
    intervention = _with_heads(model, intervention)
    _check_operator(name, intervention, request.alphas(n), context)
    return intervention if request.scale == "raw" else _rescaled(model, request, intervention, context)


def check_strengths(name: str, intervention: Intervention, alphas: Tensor) -> None:
    """Refuse strengths that an operator does not take.

    Raises:
        SteeringError: names the operator and its range.
    """
    operator = intervention.rule.operator
    low, high = operator.strengths
    factors = alphas if intervention.gate is None else alphas * intervention.gate.float().cpu()
    if bool((factors < low).any() | (factors > high).any()):
        worst = float(factors.max() if bool((factors > high).any()) else factors.min())
        raise SteeringError(
            f"{name} is applied with strength {worst:g} by {type(operator).__name__}, which takes {low:g} to {high:g}"
        )


def _with_heads(model: Model, intervention: Intervention) -> Intervention:
    """The intervention with the width of a head, if it changes some heads."""
    rule, site = intervention.rule, model.site(intervention.site)
    if rule.heads is None:
        return intervention
    if site.point != "heads":
        raise SteeringError(f"heads={list(rule.heads)} at {site}: heads are chosen at Site({site.layer}, 'heads')")
    n, width = model.n_heads, model.width(site)
    if n is None or width is None or max(rule.heads) >= n:
        raise SteeringError(f"heads={list(rule.heads)}: {model.id} has {n} heads in a layer, 0 to {(n or 1) - 1}")
    return replace(intervention, rule=replace(rule, head_width=width // n))


def _check_operator(name: str, intervention: Intervention, alphas: Tensor, context: Context) -> None:
    """Refuse an operator without what it uses: a vector, or a direction for every input that it changes."""
    rule, operator, vectors = intervention.rule, intervention.rule.operator, intervention.vectors
    if operator.uses == "nothing" or intervention.vector_fn is not None:
        return
    if vectors is None:
        raise SteeringError(f"{name} gives no vector at {intervention.site}, and {type(operator).__name__} uses one")
    if operator.uses == "direction":
        gate = torch.ones(len(vectors)) if intervention.gate is None else intervention.gate.float().cpu()
        zero = ~rule.parts(vectors).ne(0).any(-1).all(-1).cpu() & (gate * alphas != 0)
        if ids := [context.example_ids[i] for i in zero.nonzero().flatten().tolist()]:
            where = f"{intervention.site}" + (f", heads {[*rule.heads]}" if rule.heads else "")
            raise SteeringError(
                f"{name} gives the inputs {ids[:3]} a vector of length zero at {where}: it has no direction, and "
                f"{type(operator).__name__} uses one"
            )


def _rescaled(model: Model, request: Request, intervention: Intervention, context: Context) -> Intervention:
    """The intervention with its vectors rescaled, to the norm of a state."""
    name, site, vectors, scale = request.steerer.name, intervention.site, intervention.vectors, request.scale
    operator = intervention.rule.operator
    if operator.uses != "vector":
        raise SteeringError(
            f"{type(operator).__name__} does not use the length of a vector, so there is nothing to rescale: use "
            "scale='raw'"
        )
    if scale == "token_norm" and not intervention.rule.adds:
        raise SteeringError(f"scale='token_norm' is for Add, not for {type(operator).__name__}: use scale='raw'")
    if site.part != "text" and scale == "norm":
        raise SteeringError(f"scale='norm' takes the norm of a token's state; at {site} use 'raw' or 'token_norm'")
    if vectors is None:
        raise SteeringError(
            f"{name} computes its vectors from the states during the forward, so they can't be rescaled beforehand: "
            "use scale='raw'"
        )
    if (heads := intervention.rule.heads) is not None and model.n_heads:  # the others are not written
        chosen = torch.zeros(model.n_heads, 1).index_fill(0, torch.tensor(heads), 1.0)
        vectors = (vectors.unflatten(-1, (model.n_heads, -1)) * chosen.to(vectors)).flatten(-2)
    if scale == "token_norm":
        return replace(intervention, vectors=unit(vectors), rule=replace(intervention.rule, by_norm=True))
    norms = context.get_states(RequiredActivation(model.site(site), "last")).norm(dim=-1, keepdim=True)
    return replace(intervention, vectors=unit(vectors) * norms)
