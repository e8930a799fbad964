"""From steerers and prompts to a plan: which vector goes to which row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from steerlab._support.errors import MismatchError, SteeringError
from steerlab.data.example import Example
from steerlab.methods.base import Context, Intervention, RequiredActivation, Steerer, steering_sites
from steerlab.models.encoding import Batch
from steerlab.models.interventions import Edit, ImageEdit, SiteEdits, check_edits
from steerlab.models.model import Model
from steerlab.models.positions import Positions, includes_generated
from steerlab.models.sites import Site
from steerlab.steering.batched_settings import times, written_columns
from steerlab.steering.context import read_contexts
from steerlab.steering.image_edits import image_edits

Scale = Literal["raw", "norm"]
Alpha = float | Sequence[float] | Tensor


@dataclass(frozen=True)
class Request:
    """One steerer with its strength and the positions it writes to.

    Attributes:
        steerer: fitted.
        alpha: strength; a number, or one per input. Positive is always towards the named behavior.
        positions: where to write; the same language as for reading; None: where the method is made for, which is "all"
            for most. At sites of the vision tower and the projector
            "images" and "all" both mean every patch of the row's own pictures. Nothing can be fitted there (both
            answers of a contrast have the same pictures): the vector is given, with `MeanDifference.from_tensor`.
        scale: "raw" multiplies the vector as it is; "norm" rescales it first to the norm of the input's own state
            at the last prompt token of the steered layer, so alpha .1 moves every state by about a tenth of itself.
        any_model: use vectors that were learned on another model of the same width, which is refused otherwise.
    """

    steerer: Steerer
    alpha: Alpha = 1.0
    positions: Positions | None = None
    scale: Scale = "raw"
    any_model: bool = False

    @property
    def where(self) -> Positions:
        """Where to write: as asked, or where the method is made for."""
        return self.steerer.default_positions if self.positions is None else self.positions

    @property
    def is_off(self) -> bool:
        """Whether nothing is to be added: then nothing is put into the model either."""
        given = torch.as_tensor(self.alpha)
        return given.numel() > 0 and not bool(given.any())

    def alphas(self, n: int) -> Float[Tensor, " batch"]:
        """One strength per input."""
        if isinstance(self.alpha, int | float):
            return torch.full((n,), float(self.alpha))
        given = torch.as_tensor(self.alpha, dtype=torch.float32)
        if given.shape != (n,):
            raise SteeringError(f"alpha has shape {tuple(given.shape)} but there are {n} inputs: give one number each")
        return given


ResolvedInterventions = list[tuple[Request, list[Intervention]]]


def resolve_interventions(
    model: Model, requests: Sequence[Request], examples: Sequence[Example], batch_size: int, *, once: bool = True
) -> ResolvedInterventions:
    """Every steerer's shifts for all inputs, after one unsteered pass for what they want to read.

    Args:
        once: whether the shifts are for one run alone: then those that can are left to the server to work out.
    """
    live = [request for request in requests if not request.is_off]
    if not live:
        return []
    for request in live:
        _check_origin(model, request)
    if once and model.is_remote:
        there = [request.steerer.remote_interventions() if request.scale == "raw" else None for request in live]
        if all(interventions is not None for interventions in there):
            return [(request, list(interventions or ())) for request, interventions in zip(live, there, strict=True)]
    norms = [
        RequiredActivation(s, "last")
        for r in live
        if r.scale == "norm"
        for s in steering_sites(r.steerer)
        if s.part == "text"
    ]
    contexts = read_contexts(model, [r.steerer for r in live], norms, examples, batch_size)
    return [
        (r, [_scaled(model, r, s, c) for s in r.steerer.interventions(c)]) for r, c in zip(live, contexts, strict=True)
    ]


def writes_anything(prepared: ResolvedInterventions) -> bool:
    """Whether any vector is to be added: an instruction baseline has none, and a gate may let every input pass."""
    return any(bool(steered_rows(s).any()) for _, interventions in prepared for s in interventions)


def steered_rows(intervention: Intervention, numbers: Sequence[int] | None = None) -> Bool[Tensor, " batch"]:
    """Which inputs (those numbered, or all) a shift can change: a vector and a gate other than zero."""
    chosen = slice(None) if numbers is None else list(numbers)
    rows = (
        torch.ones(1, dtype=torch.bool) if intervention.vectors is None else intervention.vectors[chosen].ne(0).any(-1)
    )
    return rows if intervention.gate is None else rows & intervention.gate[chosen].ne(0).to(rows.device)


def build_edits(
    model: Model, prepared: ResolvedInterventions, batch: Batch, numbers: Sequence[int], n: int
) -> SiteEdits:
    """The plan of one batch.

    Args:
        prepared: shifts for all `n` inputs.
        batch: the encoded rows.
        numbers: which inputs they are.
        n: number of inputs in all.
    """
    plan: dict[Site, list[Edit | ImageEdit]] = {}
    device = model.device
    for request, interventions in prepared:
        factors = request.alphas(n)[list(numbers)].to(device)
        for intervention in interventions:
            gate = 1.0 if intervention.gate is None else intervention.gate[list(numbers)].float().to(device)
            factor = (factors * gate)[:, None]
            site = model.site(intervention.site)
            if site.part != "text":
                given = (request.where, request.steerer.name, intervention, factor, batch, numbers)
                plan.setdefault(site, []).append(image_edits(model, *given))
                continue
            alive = (
                steered_rows(intervention, numbers).expand(len(numbers)).to(device)
            )  # of the others nothing is written
            edit = Edit(
                None
                if intervention.vectors is None
                else factor * intervention.vectors[list(numbers)].float().to(device),
                written_columns(batch, intervention, request.where, numbers).to(device) & alive[:, None],
                includes_generated(intervention.positions_or(request.where)),
                None if intervention.vector_fn is None else times(factor, intervention.vector_fn),
                torch.tensor(batch.last_prompt_columns, device=device),
                alive,
                read_site=intervention.read_site,
            )
            plan.setdefault(site, []).append(edit)
    for site, edits in plan.items():
        check_edits({site: edits}, model.width(site))
    return plan


def _check_origin(model: Model, request: Request) -> None:
    """Refuse what was learned on another model, before anything is read or written."""
    info = getattr(request.steerer, "info_", {})
    site = getattr(request.steerer, "site", None)
    width = model.hidden_size if site is None else model.width(site)
    theirs = {"hidden_size": info.get("hidden_size")} | ({} if request.any_model else {"model": info.get("model")})
    ours = {"hidden_size": width, "model": model.id}
    for name, value in theirs.items():
        if value is not None and ours[name] is not None and value != ours[name]:
            hint = " Request(..., any_model=True) uses it all the same." if name == "model" else ""
            there = f" at {site}" if name == "hidden_size" and site is not None and site.part != "text" else ""
            raise MismatchError(
                f"{request.steerer.name} was fitted on a model with {name} {value!r}; this model has {ours[name]!r}"
                f"{there}. Fit it on activations of this model.{hint}"
            )


def _scaled(model: Model, request: Request, intervention: Intervention, context: Context) -> Intervention:
    if intervention.vectors is not None:
        width = model.width(intervention.site)
        if intervention.vectors.shape != (len(context.example_ids), width or intervention.vectors.shape[-1]):
            raise MismatchError(
                f"{request.steerer.name} gives vectors of shape {tuple(intervention.vectors.shape)} for "
                f"{len(context.example_ids)} inputs to {model.id}, whose states at {intervention.site} are "
                f"{width} wide: "
                "it was fitted on another model"
            )
        if not bool(torch.isfinite(intervention.vectors).all()):
            raise SteeringError(f"{request.steerer.name} gives a vector with NaN or infinity")
    if request.scale == "raw":
        return intervention
    if intervention.site.part != "text":
        raise SteeringError(f"scale='norm' takes the norm of a token's state; at {intervention.site} use scale='raw'")
    if intervention.vectors is None:
        raise SteeringError(
            f"{request.steerer.name} computes its vectors from the states it meets, so they can't be rescaled "
            "beforehand: use scale='raw'"
        )
    own = context.get_states(RequiredActivation(model.site(intervention.site), "last")).norm(dim=-1, keepdim=True)
    length = intervention.vectors.norm(dim=-1, keepdim=True)
    unit = torch.where(length > 0, intervention.vectors / length.clamp_min(1e-30), 0.0)
    return replace(intervention, vectors=unit * own)
