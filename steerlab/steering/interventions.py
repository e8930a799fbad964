"""From steerers and prompts to the edits of one batch: which vector is added to which row, at which site."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from steerlab._support.checks import check_option, check_type, show
from steerlab.data.example import Example
from steerlab.errors import MismatchError, SteeringError
from steerlab.methods.base import Context, Intervention, RequiredActivation, VectorFn, steering_sites
from steerlab.methods.vector import as_steerer
from steerlab.models.encoding import Batch, EncodedPrompt
from steerlab.models.fingerprint import accept_model, describe_origin, is_accepted, same_model, weights_fingerprint
from steerlab.models.interventions import Edit, ImageEdit, SiteEdits, check_edits
from steerlab.models.model import Model
from steerlab.models.positions import Positions, includes_generated, position_key, resolve, resolve_nonempty
from steerlab.models.sites import Site
from steerlab.steering.context import ReadContexts, read_contexts
from steerlab.steering.image_edits import check_image_edit

Scale = Literal["raw", "norm"]
Alpha = float | Sequence[float] | Tensor


@dataclass(frozen=True)
class Request:
    """A steerer with its strength and the positions it is added at.

    Example:
        >>> steerlab.generate(model, prompts, steer=[Request(l2s, 2.0, "last+generated"), mean])

    Attributes:
        steerer: fitted; or vectors by layer, `{15: tensor}`.
        alpha: strength, one number or one per input. A positive alpha steers towards the named behavior.
        positions: where to add the vector, see `steerlab.models.positions`; None: `steerer.default_positions`. At sites
            of the vision tower and the projector, "images" and "all" both mean every patch of the row's images. Nothing
            can be fitted there, since both answers of a contrast share their images: give the vector with
            `SteeringVector`.
        scale: "raw" adds `alpha * vector`; "norm" first rescales the vector to the norm of the input's state at the
            last prompt token of the steered layer, so alpha 0.1 moves every state by about a tenth of its norm.
        any_model: accept vectors fitted on another model of the same width; the steerer remembers it, also when saved.
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


@dataclass(frozen=True)
class BatchedSetting:
    """The interventions of one steerer for all inputs, with strength and positions.

    Attributes:
        name: of the steerer, for error messages.
        interventions: one per steered site, with one vector per input.
        alpha: strength, one number or `(input,)`.
        positions: where to add the vectors, unless an intervention has positions itself.
    """

    name: str
    interventions: Sequence[Intervention]
    alpha: float | Float[Tensor, " input"]
    positions: Positions


def resolve_interventions(
    model: Model, requests: Sequence[Request], examples: Sequence[Example], batch_size: int,
    rows: Sequence[EncodedPrompt] = (), *, once: bool = True, read: ReadContexts | None = None,
) -> list[BatchedSetting]:  # fmt: skip
    """The interventions of every request with a nonzero alpha, after one unsteered pass for what the steerers read.

    Args:
        rows: the encoded examples, perhaps with answers; without them, the prompts are encoded for that pass.
        once: whether the interventions serve a single run; a remote model then computes them on the server where the
            steerer supports it (`Steerer.remote_interventions`).
        read: gives the contexts of the steerers, with further required activations; None: a capture of the examples.

    Raises:
        MismatchError: a steerer was fitted on another model, or its vectors have another width.
        SteeringError: a vector is not finite, or alpha does not match the inputs.
    """
    live = [request for request in requests if not request.is_noop]
    for request in live:
        _check_origin(model, request)
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
    return [
        BatchedSetting(
            request.steerer.name, tuple(interventions), request.alphas(len(examples)),
            request.steerer.default_positions if request.positions is None else request.positions,
        )
        for request, interventions in zip(live, found, strict=True)
    ]  # fmt: skip


def writes_anything(settings: Sequence[BatchedSetting]) -> bool:
    """Whether any vector is added: prompt baselines have none, and a gate may be 0 for every input."""
    return any(bool(steered_inputs(one).any()) for setting in settings for one in setting.interventions)


def steered_inputs(intervention: Intervention, numbers: Sequence[int] | None = None) -> Bool[Tensor, " batch"]:
    """Which inputs (all, or those numbered) an intervention can change: vector and gate are not zero."""
    chosen = slice(None) if numbers is None else list(numbers)
    vectors, gate = intervention.vectors, intervention.gate
    rows = torch.ones(1, dtype=torch.bool) if vectors is None else vectors[chosen].ne(0).any(-1)
    return rows if gate is None else rows & gate[chosen].ne(0).to(rows.device)


def written_columns(
    batch: Batch, intervention: Intervention, positions: Positions, numbers: Sequence[int]
) -> Bool[Tensor, "batch width"]:
    """The columns of a batch that an intervention is added at.

    Raises:
        PositionError: the requested `positions` match no token of a row.
    """
    where = intervention.positions_or(positions)
    find = resolve if includes_generated(where) or intervention.positions is not None else resolve_nonempty
    return batch.columns([find(where, row, i) for row, i in zip(batch.rows, numbers, strict=True)])


_Write = tuple[int, BatchedSetting, Intervention]  # the copy of the batch's rows, and what is added to it
_Columns = dict[tuple[str, bool], Bool[Tensor, "batch width"]]  # by positions, and whether the setting gave them


def build_edits(
    model: Model, settings: Sequence[BatchedSetting], batch: Batch, numbers: Sequence[int],
    copy_of: Sequence[int] | None = None,
) -> SiteEdits:  # fmt: skip
    """The edits of one forward, which may hold the rows of `batch` several times, copy after copy.

    Settings of one copy add up on its rows. `steer` puts all settings on a single copy; a sweep gives each setting a
    copy of its own, and settings that write at the same site then share one edit.

    Args:
        model: that runs the forward.
        settings: with vectors for all inputs.
        batch: the rows of one copy.
        numbers: the input that each of these rows belongs to.
        copy_of: the copy that each setting steers; None: all steer the first.

    Raises:
        PositionError: a position matches no token of a row.
        SteeringError: a vector is not finite, or of another width.
    """
    copies = [0] * len(settings) if copy_of is None else list(copy_of)
    groups: dict[tuple[Site, bool, int, int | None], list[_Write]] = {}
    seen: Counter[tuple[int, Site]] = Counter()
    for copy, setting in zip(copies, settings, strict=True):
        for intervention in setting.interventions:
            site = model.site(intervention.site)
            generated = includes_generated(intervention.positions_or(setting.positions))
            seen[copy, site] += 1  # a second vector for the same rows needs another edit
            shared = site.part == "text" and intervention.vector_fn is None
            key = (site, generated, seen[copy, site], None if shared else copy)
            groups.setdefault(key, []).append((copy, setting, intervention))
    edits: dict[Site, list[Edit | ImageEdit]] = {}
    columns: _Columns = {}
    for (site, *_), writes in groups.items():
        rows = (model, writes, max(copies) + 1, batch, list(numbers))
        edit = _token_edit(*rows, columns) if site.part == "text" else _image_edit(*rows)
        edits.setdefault(site, []).append(edit)
    for site, at_site in edits.items():
        check_edits({site: at_site}, model.width(site))
    return edits


def _token_edit(
    model: Model, writes: Sequence[_Write], n_copies: int, batch: Batch, numbers: list[int], columns: _Columns
) -> Edit:
    """One edit for all copies that write at a site; the other copies get zeros and no columns."""
    mask = torch.zeros((n_copies, len(numbers), batch.width), dtype=torch.bool)
    row_mask = torch.zeros((n_copies, len(numbers)), dtype=torch.bool)
    for copy, setting, one in writes:
        name = (position_key(one.positions_or(setting.positions)), one.positions is None)
        if name not in columns:
            columns[name] = written_columns(batch, one, setting.positions, numbers)
        row_mask[copy] = steered_inputs(one, numbers).cpu()
        mask[copy] = columns[name] & row_mask[copy, :, None]
    factors, vectors = _stack(model, writes, n_copies, numbers)
    _, setting, first = writes[0]
    return Edit(
        vectors,
        mask.flatten(0, 1).to(model.device),
        includes_generated(first.positions_or(setting.positions)),
        None if first.vector_fn is None else _times(factors[:, None], first.vector_fn),
        torch.tensor(batch.last_prompt_columns, device=model.device).repeat(n_copies),
        row_mask.flatten().to(model.device),
        read_site=first.read_site,
    )


def _image_edit(model: Model, writes: Sequence[_Write], n_copies: int, batch: Batch, numbers: list[int]) -> ImageEdit:
    """One edit of the image patches of one copy's rows; those of the other copies get zeros."""
    ((_, setting, one),) = writes
    check_image_edit(model, setting.name, one, one.positions_or(setting.positions), batch)
    _, vectors = _stack(model, writes, n_copies, numbers)
    assert vectors is not None
    return ImageEdit(vectors, batch.units * n_copies)


def _stack(
    model: Model, writes: Sequence[_Write], n_copies: int, numbers: list[int]
) -> tuple[Float[Tensor, " rows"], Float[Tensor, "rows hidden"] | None]:
    """Alpha times gate of every row of the forward, and the vectors multiplied by it; 0 in copies without a vector."""
    factors = torch.zeros((n_copies, len(numbers)), device=model.device)
    vectors: Tensor | None = None
    for copy, setting, one in writes:
        alpha = setting.alpha[numbers] if isinstance(setting.alpha, Tensor) else float(setting.alpha)
        factors[copy] = alpha.to(model.device) if isinstance(alpha, Tensor) else alpha
        if one.gate is not None:
            factors[copy] *= one.gate[numbers].float().to(model.device)
        if one.vectors is not None:
            added = factors[copy, :, None] * one.vectors[numbers].float().to(model.device)
            vectors = added.new_zeros(n_copies, *added.shape) if vectors is None else vectors
            vectors[copy] = added
    return factors.flatten(), None if vectors is None else vectors.flatten(0, 1)


def _times(factors: Float[Tensor, "batch 1"], function: VectorFn) -> VectorFn:
    """The function with each row of its result multiplied by a factor; rows may occur several times."""

    def scaled(h: Tensor) -> Tensor:
        return factors.repeat_interleave(len(h) // len(factors), 0) * function(h)

    return scaled


def _check_origin(model: Model, request: Request) -> None:
    """Refuse a steerer that was fitted on another model, before any forward; its `info_` remembers `any_model`."""
    name, info = request.steerer.name, getattr(request.steerer, "info_", {})
    site = getattr(request.steerer, "site", None)
    theirs, ours = info.get("hidden_size"), model.hidden_size if site is None else model.width(site)
    if None not in (theirs, ours) and theirs != ours:
        there = "" if site is None or site.part == "text" else f" at {site}"
        raise MismatchError(
            f"{name} was fitted on a model with hidden_size {theirs}; this model has {ours}{there}. Fit it on "
            "activations of this model."
        )
    here = {"model": model.id, "weights": weights_fingerprint(model.hf)} if info.get("model") else {}
    if same_model(info, here) or is_accepted(info, here):
        return
    if not request.any_model:
        raise MismatchError(
            f"{name} was fitted on a model called {describe_origin(info)}; this model is {describe_origin(here)}. Fit "
            "it on activations of this model. Request(..., any_model=True) accepts it, once for all."
        )
    accept_model(info, here)


def _remote_interventions(model: Model, requests: Sequence[Request]) -> list[Sequence[Intervention]] | None:
    """Interventions that the server computes itself; None unless every steerer supports it."""
    if not model.is_remote:
        return None
    found = [request.steerer.remote_interventions() if request.scale == "raw" else None for request in requests]
    return None if any(one is None for one in found) else [one or () for one in found]


def _check_gate(name: str, gate: Tensor, n: int) -> None:
    if gate.shape != (n,) or not bool(torch.isfinite(gate).all()):
        raise SteeringError(
            f"the gate of {name} has shape {tuple(gate.shape)}, or holds NaN or infinity: expected a finite number for "
            f"each of {n} inputs"
        )


def _scaled(model: Model, request: Request, intervention: Intervention, context: Context) -> Intervention:
    """The intervention in the request's scale, its vectors checked."""
    name, site, vectors = request.steerer.name, intervention.site, intervention.vectors
    for what, given in (("vectors", vectors), ("gate", intervention.gate)):
        check_type(f"{what} of {name}", given, (Tensor, type(None)), "a tensor", SteeringError)
    if intervention.gate is not None:
        _check_gate(name, intervention.gate, len(context.example_ids))
    if vectors is not None:
        width = model.width(site)
        if vectors.shape != (len(context.example_ids), width or vectors.shape[-1]):
            raise MismatchError(
                f"{name} gives vectors of shape {tuple(vectors.shape)} for {len(context.example_ids)} inputs to "
                f"{model.id}, whose states at {site} are {width} wide: it was fitted on another model"
            )
        if not bool(torch.isfinite(vectors).all()):
            raise SteeringError(f"{name} gives a vector with NaN or infinity")
    if request.scale == "raw":
        return intervention
    if site.part != "text":
        raise SteeringError(f"scale='norm' takes the norm of a token's state; at {site} use scale='raw'")
    if vectors is None:
        raise SteeringError(
            f"{name} computes its vectors from the states during the forward, so they can't be rescaled beforehand: "
            "use scale='raw'"
        )
    norms = context.get_states(RequiredActivation(model.site(site), "last")).norm(dim=-1, keepdim=True)
    length = vectors.norm(dim=-1, keepdim=True)
    unit = torch.where(length > 0, vectors / length.clamp_min(1e-30), 0.0)
    return replace(intervention, vectors=unit * norms)
