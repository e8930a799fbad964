"""From interventions to the edits of one batch: what is done to which row, at which site and columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from steerlab.methods.base import Intervention
from steerlab.models.encoding import Batch
from steerlab.models.interventions import Edit, ImageEdit, SiteEdits, check_edits
from steerlab.models.model import Model
from steerlab.models.operators import EditRule
from steerlab.models.positions import (
    Positions,
    includes_generated,
    position_key,
    resolve,
    resolve_nonempty,
    row_to_steer,
)
from steerlab.models.sites import Site
from steerlab.steering.image_edits import check_image_edit


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


def writes_anything(settings: Sequence[BatchedSetting], numbers: Sequence[int] | None = None) -> bool:
    """Whether any of the inputs (all, or those numbered) is changed: prompt baselines change none, and a gate may be 0
    for every input.
    """
    return any(bool(steered_inputs(one, numbers).any()) for setting in settings for one in setting.interventions)


def steered_inputs(intervention: Intervention, numbers: Sequence[int] | None = None) -> Bool[Tensor, " batch"]:
    """Which inputs (all, or those numbered) an intervention can change: gate and added vector are not zero."""
    chosen = slice(None) if numbers is None else list(numbers)
    vectors, gate = intervention.vectors if intervention.rule.adds else None, intervention.gate
    rows = torch.ones(1, dtype=torch.bool) if vectors is None else vectors[chosen].ne(0).any(-1)
    return rows if gate is None else rows & gate[chosen].ne(0).to(rows.device)


def _steered_rows(setting: BatchedSetting, one: Intervention, numbers: Sequence[int]) -> Bool[Tensor, " batch"]:
    """Which of the inputs numbered an intervention changes: its alpha is not 0 either."""
    rows = steered_inputs(one, numbers).cpu()
    return rows & setting.alpha[list(numbers)].ne(0).cpu() if isinstance(setting.alpha, Tensor) else rows


def written_columns(
    batch: Batch, intervention: Intervention, positions: Positions, numbers: Sequence[int]
) -> Bool[Tensor, "batch width"]:
    """The columns of a batch that an intervention is added at.

    Raises:
        PositionError: the requested `positions` match no token of a row.
    """
    where = intervention.positions_or(positions)
    find = resolve if includes_generated(where) or intervention.positions is not None else resolve_nonempty
    rows = [row_to_steer(where, row) for row in batch.rows]
    return batch.columns([find(where, row, i) for row, i in zip(rows, numbers, strict=True)])


def restart_layer(settings: Sequence[BatchedSetting]) -> int | None:
    """The deepest block whose output equals the unsteered forward before this block's edits, or None."""
    firsts = [one.site.block_before for setting in settings for one in setting.interventions]
    return None if None in firsts else min((first for first in firsts if first is not None), default=None)


def first_written_column(model: Model, batch: Batch, settings: Sequence[BatchedSetting], numbers: Sequence[int]) -> int:
    """The first column of an aligned batch that a setting writes to, at most that of the last prompt token.

    It is 0 where rows must be run whole: the model caches no prefix, or vectors depend on the whole prompt's forward.
    """
    places = [(one, setting.positions) for setting in settings for one in setting.interventions]
    whole = any(one.vector_fn is not None or one.site.part != "text" for one, _ in places)
    if whole or not model.supports_prefix_cache:
        return 0
    different = {(position_key(one.positions_or(given)), one.positions is None): (one, given) for one, given in places}
    masks = [written_columns(batch, one, given, numbers) for one, given in different.values()]
    columns = torch.stack(masks).flatten(0, 1).any(0).nonzero() if masks else torch.empty(0)
    last = batch.last_prompt_columns[0]
    return min(int(columns[0]) if len(columns) else last, last)


_Write = tuple[int, BatchedSetting, Intervention]  # the copy of the batch's rows, and what is added to it
_Columns = dict[tuple[str, bool], Bool[Tensor, "batch width"]]  # by positions, and whether the setting gave them


def build_edits(
    model: Model, settings: Sequence[BatchedSetting], batch: Batch, numbers: Sequence[int],
    copy_of: Sequence[int] | None = None,
) -> SiteEdits:  # fmt: skip
    """The edits of one forward, which may hold the rows of `batch` several times, copy after copy.

    Settings of one copy are applied to its rows in their order. `steer` puts all settings on a single copy; a sweep
    gives each setting a copy of its own, and settings that do the same at the same site then share one edit.

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
    groups: dict[tuple[Site, int, bool, EditRule, int | None], list[_Write]] = {}
    seen: Counter[tuple[int, Site]] = Counter()
    for copy, setting in zip(copies, settings, strict=True):
        for intervention in setting.interventions:
            site = model.site(intervention.site)
            generated = includes_generated(intervention.positions_or(setting.positions))
            seen[copy, site] += 1  # a second vector for the same rows needs another edit
            shared = site.part == "text" and intervention.vector_fn is None
            key = (site, seen[copy, site], generated, intervention.rule, None if shared else copy)
            groups.setdefault(key, []).append((copy, setting, intervention))
    edits: dict[Site, list[Edit | ImageEdit]] = {}
    columns: _Columns = {}
    for (site, *_), writes in sorted(groups.items(), key=lambda item: item[0][1]):  # the order of each copy's settings
        rows = (model, writes, max(copies) + 1, batch, list(numbers))
        edits.setdefault(site, []).append(_token_edit(*rows, columns) if site.part == "text" else _image_edit(*rows))
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
        row_mask[copy] = _steered_rows(setting, one, numbers)
        mask[copy] = columns[name] & row_mask[copy, :, None]
    factors, vectors = _stack(model, writes, n_copies, numbers)
    _, setting, first = writes[0]
    return Edit(
        vectors,
        mask.flatten(0, 1).to(model.device),
        includes_generated(first.positions_or(setting.positions)),
        first.vector_fn,
        torch.tensor(batch.last_prompt_columns, device=model.device).repeat(n_copies),
        row_mask.flatten().to(model.device),
        read_site=first.read_site,
        strengths=factors,
        rule=first.rule,
    )


def _image_edit(model: Model, writes: Sequence[_Write], n_copies: int, batch: Batch, numbers: list[int]) -> ImageEdit:
    """One edit of the image patches of one copy's rows."""
    ((copy, setting, one),) = writes
    check_image_edit(model, setting.name, one, one.positions_or(setting.positions), batch)
    factors, vectors = _stack(model, writes, n_copies, numbers)
    if vectors is None:  # the operator uses none
        vectors = torch.zeros(len(factors), model.width(one.site) or 1, device=model.device)
    rows = torch.zeros((n_copies, len(numbers)), dtype=torch.bool)
    rows[copy] = _steered_rows(setting, one, numbers)
    return ImageEdit(vectors, batch.units * n_copies, factors, rows.flatten(), one.rule)


def _stack(
    model: Model, writes: Sequence[_Write], n_copies: int, numbers: list[int]
) -> tuple[Float[Tensor, " rows"], Float[Tensor, "rows hidden"] | None]:
    """Alpha times gate of every row of the forward, and the vectors; both are 0 in copies without a write."""
    factors = torch.zeros((n_copies, len(numbers)), device=model.device)
    vectors: Tensor | None = None
    for copy, setting, one in writes:
        alpha = setting.alpha[numbers] if isinstance(setting.alpha, Tensor) else float(setting.alpha)
        factors[copy] = alpha.to(model.device) if isinstance(alpha, Tensor) else alpha
        if one.gate is not None:
            factors[copy] *= one.gate[numbers].float().to(model.device)
        if one.vectors is not None:
            given = one.vectors[numbers].float().to(model.device)
            vectors = given.new_zeros(n_copies, *given.shape) if vectors is None else vectors
            vectors[copy] = given
    return factors.flatten(), None if vectors is None else vectors.flatten(0, 1)
