"""Many cells in one batch: every cell's inputs are rows of it, each with its own vector, layer and strength."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from steerlab.methods.base import InFlight, Shift
from steerlab.models.encoding import Batch
from steerlab.models.model import Model
from steerlab.models.patches import PictureEdit
from steerlab.models.plan import Edit, Plan, check_plan
from steerlab.models.positions import Positions, distinct, resolve, resolve_nonempty, writes_generated
from steerlab.models.sites import Site
from steerlab.steering.on_pictures import on_pictures

Columns = dict[tuple[str, bool], Bool[Tensor, "batch width"]]


@dataclass(frozen=True)
class Packed:
    """One cell of a batch: what its steerer adds for every input there is, and how strongly.

    Attributes:
        shifts: of all inputs, as `steerlab.steering.request.prepare` gives them.
        alpha: strength.
        positions: where the cell writes.
    """

    shifts: Sequence[Shift]
    alpha: float
    positions: Positions


def written_columns(
    batch: Batch, shift: Shift, asked: Positions, numbers: Sequence[int]
) -> Bool[Tensor, "batch width"]:
    """The columns of a batch that a shift is written to; what was asked for must mean a token of every row."""
    positions = shift.where(asked)
    find = resolve if writes_generated(positions) or shift.positions is not None else resolve_nonempty
    return batch.columns([find(positions, row, i) for row, i in zip(batch.rows, numbers, strict=True)])


def pack(model: Model, cells: Sequence[Packed], batch: Batch, numbers: Sequence[int]) -> Plan:
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
    plan: dict[Site, list[Edit | PictureEdit]] = {}
    columns: Columns = {}
    groups: dict[tuple[Site, bool, int], list[tuple[int, Packed, Shift]]] = {}
    for place, cell in enumerate(cells):
        seen: Counter[Site] = Counter()
        for shift in cell.shifts:
            site = model.site(shift.site)
            seen[site] += 1  # a cell's second shift at a site adds to its first
            key = (site, writes_generated(shift.where(cell.positions)), seen[site])
            if site.part == "text" and (name := _columns_name(cell, shift)) not in columns:
                columns[name] = written_columns(batch, shift, cell.positions, numbers)
            if site.part != "text":
                plan.setdefault(site, []).append(_pictures(model, place, len(cells), cell, shift, batch, numbers))
            elif shift.in_flight is not None:
                plan.setdefault(site, []).append(
                    _edit(model, [(place, cell, shift)], len(cells), batch, numbers, columns)
                )
            else:
                groups.setdefault(key, []).append((place, cell, shift))
    for (site, _, _), members in groups.items():
        plan.setdefault(site, []).append(_edit(model, members, len(cells), batch, numbers, columns))
    for site, edits in plan.items():
        check_plan({site: edits}, model.width(site))
    return plan


def _columns_name(cell: Packed, shift: Shift) -> tuple[str, bool]:
    return distinct(shift.where(cell.positions)), shift.positions is None


def _edit(
    model: Model,
    members: Sequence[tuple[int, Packed, Shift]],
    n_cells: int,
    batch: Batch,
    numbers: Sequence[int],
    columns: Columns,
) -> Edit:
    """One edit for all cells that write at a site: rows of other cells get nothing, and none of their columns."""
    rows, device, hidden = len(batch.rows), model.device, model.hidden_size
    mask = torch.zeros((n_cells, rows, batch.width), dtype=torch.bool)
    whose = torch.zeros((n_cells, rows), dtype=torch.bool, device=device)
    vectors = torch.zeros((n_cells, rows, hidden), device=device)
    factors = torch.zeros((n_cells, rows), device=device)
    flight: InFlight | None = None
    for place, cell, shift in members:
        whose[place] = True
        mask[place] |= columns[_columns_name(cell, shift)]
        factors[place] = _factor(model, cell, shift, numbers)
        if shift.vectors is not None:
            vectors[place] = factors[place, :, None] * shift.vectors[list(numbers)].float().to(device)
        flight = shift.in_flight or flight
    last = torch.tensor(batch.lasts, device=device)
    return Edit(
        None if flight is not None else vectors.flatten(0, 1),
        mask.flatten(0, 1).to(device),
        writes_generated(members[0][2].where(members[0][1].positions)),
        None if flight is None else times(factors.flatten()[:, None], flight),
        last.repeat(n_cells),
        whose.flatten(),
    )


def _pictures(
    model: Model, place: int, n_cells: int, cell: Packed, shift: Shift, batch: Batch, numbers: Sequence[int]
) -> PictureEdit:
    """The pictures of one cell's rows; those of the others get nothing."""
    factor = _factor(model, cell, shift, numbers)[:, None]
    own = on_pictures(model, cell.positions, "a steerer of the sweep", shift, factor, batch, numbers)
    vectors = own.vectors.new_zeros(n_cells, *own.vectors.shape)
    vectors[place] = own.vectors
    return PictureEdit(vectors.flatten(0, 1), own.units * n_cells)


def _factor(model: Model, cell: Packed, shift: Shift, numbers: Sequence[int]) -> Tensor:
    """The strength of each row, gate included."""
    alpha = torch.full((len(numbers),), cell.alpha, device=model.device)
    return alpha if shift.gate is None else alpha * shift.gate[list(numbers)].float().to(model.device)


def times(factor: Tensor, function: InFlight) -> InFlight:
    """The function, its answer multiplied row by row."""

    def scaled(h: Tensor) -> Tensor:
        return factor.repeat_interleave(len(h) // len(factor), 0) * function(h)

    return scaled
