"""Choosing layer, strength, positions and sentences on validation rows, many cells to a batch.

Every cell of the grid is a set of per-input vectors and a strength. Cells that write at the same site and positions
differ only in numbers, so their inputs go through the model together, as rows of the same batches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from steerlab._support.errors import DataError
from steerlab.analysis.behavior import judge_answers, safety_summary
from steerlab.data.example import Example
from steerlab.methods import P2S
from steerlab.models.model import Model
from steerlab.models.positions import Positions
from steerlab.models.sites import Site
from steerlab.steering import Request, generate


@dataclass(frozen=True)
class Candidate:
    """One setting to try: its labels, its vector for every input, and its strength."""

    labels: Mapping[str, str | int | float]
    vectors: Float[Tensor, "example hidden"]
    alpha: float


def evaluate_candidates(
    model: Model,
    examples: Sequence[Example],
    unsteered: Sequence[str],
    cells: Sequence[Candidate],
    *,
    site: Site | int,
    positions: Positions,
    max_new_tokens: int = 60,
    batch_size: int = 64,
    progress: bool = True,
) -> pd.DataFrame:
    """Generate for all inputs under all cells at once and return one row of `safety_summary` per cell.

    Example:
        >>> evaluate_candidates(model, rows, plain, cells, site=16, positions="all")

    Args:
        model: from `steerlab.load`.
        examples, unsteered: the inputs and their unsteered answers.
        cells: settings that share `site` and `positions`.
        site, positions: where all of them write.

    Raises:
        DataError: no cells, or a cell without one vector per input.

    Source: own.
    """
    if not cells or any(len(cell.vectors) != len(examples) for cell in cells):
        raise DataError(f"give at least one cell, each with one vector for each of the {len(examples)} inputs")
    rows = [e.replace(id=f"{c}/{e.id}") for c in range(len(cells)) for e in examples]
    vectors = {e.id: v for e, v in zip(rows, (v for cell in cells for v in cell.vectors), strict=True)}
    alphas = [cell.alpha for cell in cells for _ in examples]
    steering = Request(P2S.from_table(site, vectors), alpha=alphas, positions=positions)
    texts = generate(
        model, rows, steer=steering, max_new_tokens=max_new_tokens, batch_size=batch_size, progress=progress
    )
    found = []
    for number, cell in enumerate(cells):
        own = list(texts[number * len(examples) : (number + 1) * len(examples)])
        found.append({**cell.labels, "alpha": cell.alpha, **safety_summary(judge_answers(examples, own, unsteered))})
    return pd.DataFrame(found)


@dataclass(frozen=True)
class Goal:
    """One thing to reach: `measure` at least (or at most) `target`, judged on `n` inputs."""

    measure: str
    target: float
    n: int
    at_most: bool = False

    def margin(self, value: float) -> float:
        """How far beyond the goal, in standard errors of a share at the goal."""
        error = sqrt(max(self.target * (1 - self.target), 0.01) / self.n)
        return (self.target - value if self.at_most else value - self.target) / error


def choose_candidate(grid: pd.DataFrame, wanted: Sequence[Goal]) -> pd.Series:
    """The cell whose *worst* margin over all goals, in standard errors, is largest; ties go to the smaller alpha.

    A cell with a measure that is nan comes last.

    Example:
        >>> choose_candidate(grid, [Goal("refuse_harmful", .8, 200), Goal("refuse_expert", .03, 90, at_most=True)])

    Raises:
        DataError: the grid is empty or lacks a measure.

    Source: own.
    """
    missing = [goal.measure for goal in wanted if goal.measure not in grid]
    if grid.empty or missing:
        raise DataError(f"the grid has {len(grid)} cells and lacks the measures {missing}")
    worst = pd.concat([grid[goal.measure].map(goal.margin) for goal in wanted], axis=1).min(axis=1, skipna=False)
    ranked = grid.assign(worst_margin=worst).sort_values(["worst_margin", "alpha"], ascending=[False, True])
    return ranked.iloc[0]


def reaches_goals(grid: pd.DataFrame, wanted: Sequence[Goal]) -> pd.Series:
    """Which cells reach every goal."""
    return pd.concat([grid[goal.measure].map(goal.margin) >= 0 for goal in wanted], axis=1).all(axis=1)
