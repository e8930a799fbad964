"""Many cells in one batch: every cell's inputs are rows of it, each with its own vector, layer and strength."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from steerlab.methods.base import Intervention, VectorFn
from steerlab.models.encoding import Batch
from steerlab.models.interventions import Edit, ImageEdit, SiteEdits, check_edits
from steerlab.models.model import Model
from steerlab.models.positions import Positions, includes_generated, position_key, resolve, resolve_nonempty
from steerlab.models.sites import Site
from steerlab.steering.image_edits import image_edits

Columns = dict[tuple[str, bool], Bool[Tensor, "batch width"]]


@dataclass(frozen=True)
class BatchedSetting:
    """One cell of a batch: what its steerer adds for every input there is, and how strongly.

    Attributes:
        interventions: of all inputs, as `steerlab.steering.interventions.resolve_interventions` gives them.
        alpha: strength.
        positions: where the cell writes.
    """

    interventions: Sequence[Intervention]
    alpha: float
    positions: Positions


def written_columns(
    batch: Batch, intervention: Intervention, asked: Positions, numbers: Sequence[int]
) -> Bool[Tensor, "batch width"]:
    """The columns of a batch that a shift is written to; what was asked for must mean a token of every row."""
    positions = intervention.positions_or(asked)
    find = resolve if includes_generated(positions) or intervention.positions is not None else resolve_nonempty
    return batch.columns([find(positions, row, i) for row, i in zip(batch.rows, numbers, strict=True)])


def pack(model: Model, cells: Sequence[BatchedSetting], batch: Batch, numbers: Sequence[int]) -> SiteEdits:
    """The plan of one batch in which every row of `batch` occurs once for each cell, cell by cell.

    Args:
        model: what the plan is for.
        cells: in the order in which they follow each other in the batch.
        batch: the rows of one cell.
        numbers: which input each of these rows is of.

    Raises:
        PositionError: a position means nothing in a row.
        SteeringError: a vector is not finite, or of another width.
    """
    plan: dict[Site, list[Edit | ImageEdit]] = {}
    columns: Columns = {}
    groups: dict[tuple[Site, bool, int], list[tuple[int, BatchedSetting, Intervention]]] = {}
    for place, cell in enumerate(cells):
        seen: Counter[Site] = Counter()
        for intervention in cell.interventions:
            site = model.site(intervention.site)
            seen[site] += 1  # a cell's second shift at a site adds to its first
            key = (site, includes_generated(intervention.positions_or(cell.positions)), seen[site])
            if site.part == "text" and (name := _columns_name(cell, intervention)) not in columns:
                columns[name] = written_columns(batch, intervention, cell.positions, numbers)
            if site.part != "text":
                plan.setdefault(site, []).append(_images(model, place, len(cells), cell, intervention, batch, numbers))
            elif intervention.vector_fn is not None:
                plan.setdefault(site, []).append(
                    _edit(model, [(place, cell, intervention)], len(cells), batch, numbers, columns)
                )
            else:
                groups.setdefault(key, []).append((place, cell, intervention))
    for (site, _, _), members in groups.items():
        plan.setdefault(site, []).append(_edit(model, members, len(cells), batch, numbers, columns))
    for site, edits in plan.items():
        check_edits({site: edits}, model.width(site))
    return plan


def _columns_name(cell: BatchedSetting, intervention: Intervention) -> tuple[str, bool]:
    return position_key(intervention.positions_or(cell.positions)), intervention.positions is None


def _edit(
    model: Model,
    members: Sequence[tuple[int, BatchedSetting, Intervention]],
    n_cells: int,
    batch: Batch,
    numbers: Sequence[int],
    columns: Columns,
) -> Edit:
    """One edit for all cells that write at a site: rows of other cells get nothing, and none of their columns."""
    rows, device, hidden = len(batch.rows), model.device, model.hidden_size
    mask = torch.zeros((n_cells, rows, batch.width), dtype=torch.bool)
    row_mask = torch.zeros((n_cells, rows), dtype=torch.bool, device=device)
    vectors = torch.zeros((n_cells, rows, hidden), device=device)
    factors = torch.zeros((n_cells, rows), device=device)
    flight: VectorFn | None = None
    for place, cell, intervention in members:
        row_mask[place] = True
        mask[place] |= columns[_columns_name(cell, intervention)]
        factors[place] = _factor(model, cell, intervention, numbers)
        if intervention.vectors is not None:
            vectors[place] = factors[place, :, None] * intervention.vectors[list(numbers)].float().to(device)
        flight = intervention.vector_fn or flight
    last = torch.tensor(batch.last_prompt_columns, device=device)
    return Edit(
        None if flight is not None else vectors.flatten(0, 1),
        mask.flatten(0, 1).to(device),
        includes_generated(members[0][2].positions_or(members[0][1].positions)),
        None if flight is None else times(factors.flatten()[:, None], flight),
        last.repeat(n_cells),
        row_mask.flatten(),
    )


def _images(
    model: Model,
    place: int,
    n_cells: int,
    cell: BatchedSetting,
    intervention: Intervention,
    batch: Batch,
    numbers: Sequence[int],
) -> ImageEdit:
    """The pictures of one cell's rows; those of the others get nothing."""
    factor = _factor(model, cell, intervention, numbers)[:, None]
    own = image_edits(model, cell.positions, "a steerer of the sweep", intervention, factor, batch, numbers)
    vectors = own.vectors.new_zeros(n_cells, *own.vectors.shape)
    vectors[place] = own.vectors
    return ImageEdit(vectors.flatten(0, 1), own.units * n_cells)


def _factor(model: Model, cell: BatchedSetting, intervention: Intervention, numbers: Sequence[int]) -> Tensor:
    """The strength of each row, gate included."""
    alpha = torch.full((len(numbers),), cell.alpha, device=model.device)
    return alpha if intervention.gate is None else alpha * intervention.gate[list(numbers)].float().to(model.device)


def times(factor: Tensor, function: VectorFn) -> VectorFn:
    """The function, its answer multiplied row by row."""

    def scaled(h: Tensor) -> Tensor:
        return factor.repeat_interleave(len(h) // len(factor), 0) * function(h)

    return scaled
