"""Which cells of `patch` share a forward."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

from steerlab.analysis._patching.run import Cell
from steerlab.models.kv_prefix import MIN_PREFIX, WEIGHT_TOKENS, tokens_per_forward
from steerlab.models.model import Model
from steerlab.models.sites import Site

WIDEST = 24  # columns of a batch


def start_of(model: Model, cells: Sequence[Cell]) -> tuple[int, int | None]:
    """The first column that a forward of these cells computes, and the block at whose output it starts (None: none)."""
    first = min(cell.column for cell in cells)
    cut = first if first >= MIN_PREFIX and model.supports_prefix_cache else 0
    levels = _levels(model, list({cell.site for cell in cells}))
    return cut, None if None in levels else min(level for level in levels if level is not None)


def pack(model: Model, cells: Sequence[Cell], width: int) -> list[list[Cell]]:
    """The cells in batches, so that all forwards together cost little.

    The columns are divided into groups of neighbors by dynamic programming, and the sites of a group into parts of
    equal size. A batch costs, for each block that it runs, its tokens and the reading of the weights.

    Args:
        model: which runs them.
        cells: every site and head at every column.
        width: tokens of the row.
    """
    columns = sorted({cell.column for cell in cells})
    at_column = {column: [cell for cell in cells if cell.column == column] for column in columns}
    # in the order in which a forward passes the sites, the blocks below them only get more
    sites = sorted({cell.site for cell in cells}, key=lambda site: site.forward_order)
    per_site = len(at_column[columns[0]]) // len(sites)
    blocks = [model.n_layers - 1 - (-1 if level is None else level) for level in _levels(model, sites)]
    most, prefix = tokens_per_forward(model.device, model.is_remote), model.supports_prefix_cache

    def cheapest(begin: int, n: int) -> tuple[int, int]:
        """The cost of the columns from `begin` up to `n`, and how many sites a batch has."""
        tail = width - (columns[begin] if prefix and columns[begin] >= MIN_PREFIX else 0)
        rows = per_site * (n - begin)  # of a site
        found = []
        for size in range(1, max(1, min(len(sites), most // (rows * tail))) + 1):
            runs = [(blocks[k], min(size, len(sites) - k) * rows * tail) for k in range(0, len(sites), size)]
            found.append((sum(b * (WEIGHT_TOKENS * ceil(tokens / most) + tokens) for b, tokens in runs), size))
        return min(found)

    best = [(0, 0, 0)]  # for the first n columns: cost, where the last group begins, sites of its batches
    for n in range(1, len(columns) + 1):
        options = [(begin, *cheapest(begin, n)) for begin in range(max(0, n - WIDEST), n)]
        best.append(min((best[begin][0] + cost, begin, size) for begin, cost, size in options))
    batches: list[list[Cell]] = []
    n = len(columns)
    while n:
        _, begin, size = best[n]
        group = [cell for column in columns[begin:n] for cell in at_column[column]]
        fits = max(1, most // (width - start_of(model, group)[0]))
        for k in range(0, len(sites), size):
            part = [cell for cell in group if cell.site in sites[k : k + size]]
            batches += [part[i : i + fits] for i in range(0, len(part), fits)]
        n = begin
    return batches


def _levels(model: Model, sites: Sequence[Site]) -> list[int | None]:
    """The block at whose output a forward of each site can start."""
    return [site.block_before if model.supports_layer_restart else None for site in sites]
