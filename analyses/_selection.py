"""Grid search over per-input vectors: many candidates per batch, and the choice between them by several goals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from steerlab.analysis.behavior import judge_answers, rules_fingerprint, safety_summary
from steerlab.data.example import Example
from steerlab.errors import DataError
from steerlab.methods import P2S, Operation, Steerer
from steerlab.models.model import Model
from steerlab.models.positions import Positions
from steerlab.models.sites import Site
from steerlab.steering import Request, generate


@dataclass(frozen=True)
class Candidate:
    """A row of the grid: labels, a vector for every input, a strength, and how many new tokens are steered (0: all)."""

    labels: Mapping[str, str | int | float]
    vectors: Float[Tensor, "example hidden"]
    alpha: float
    first: int = 0


def evaluate_candidates(
    model: Model,
    examples: Sequence[Example],
    unsteered: Sequence[str],
    candidates: Sequence[Candidate],
    *,
    site: Site | int,
    positions: Positions,
    **options: Any,
) -> pd.DataFrame:
    """Generate for all inputs under all candidates at once and return one row of `safety_summary` per candidate.

    Example:
        >>> evaluate_candidates(model, rows, plain, candidates, site=16, positions="all")

    Args:
        model: from `steerlab.load`.
        examples, unsteered: the inputs and their unsteered answers.
        candidates: with the same `site` and `positions`.
        site, positions: where the vectors are added.
        options: of `steerlab.generate`, for example `max_new_tokens` and `batch_size`.

    Raises:
        DataError: no candidates, or one without one vector per input.
    """
    n = len(examples)
    if not candidates or any(len(one.vectors) != n for one in candidates):
        raise DataError(f"give at least one candidate, each with one vector for each of the {n} inputs")
    frames = []
    for first in dict.fromkeys(one.first for one in candidates):
        some = [one for one in candidates if one.first == first]
        rows = [e.replace(id=f"{c}/{e.id}") for c in range(len(some)) for e in examples]
        vectors = {e.id: v for e, v in zip(rows, (v for one in some for v in one.vectors), strict=True)}
        alphas = [one.alpha for one in some for _ in examples]
        steerer = ending(P2S.from_table(site, vectors), first)
        request = Request(steerer, alpha=alphas, positions=positions)
        texts = generate(model, rows, steer=request, **{"batch_size": 64, "progress": True} | options)
        for number, one in enumerate(some):
            judged = judge_answers(examples, list(texts[number * n : (number + 1) * n]), unsteered)
            frames.append({**one.labels, "alpha": one.alpha, "first": first, **safety_summary(judged)})
    return pd.DataFrame(frames).assign(rules=rules_fingerprint())


def ending(steerer: Steerer, first: int) -> Steerer:
    """The steerer for the prompt and the first new tokens only; 0: for all."""
    return Operation(steerer, "add", first=first) if first else steerer


@dataclass(frozen=True)
class Goal:
    """A bound to reach: `measure` at least (or at most) `target`, measured on `n` inputs."""

    measure: str
    target: float
    n: int
    at_most: bool = False

    def margin(self, value: float) -> float:
        """The distance beyond the target, in standard errors of a share at the target."""
        error = sqrt(max(self.target * (1 - self.target), 0.01) / self.n)
        return (self.target - value if self.at_most else value - self.target) / error


def choose_candidate(grid: pd.DataFrame, goals: Sequence[Goal]) -> pd.Series:
    """The row whose smallest margin over all goals is largest; ties go to the smaller alpha.

    A row with a measure that is nan comes last.

    Example:
        >>> choose_candidate(grid, [Goal("refuse_harmful", .8, 200), Goal("refuse_expert", .03, 90, at_most=True)])

    Raises:
        DataError: the grid is empty or lacks a measure.
    """
    missing = [goal.measure for goal in goals if goal.measure not in grid]
    if grid.empty or missing:
        raise DataError(f"the grid has {len(grid)} candidates and lacks the measures {missing}")
    ranked = grid.assign(worst_margin=_margins(grid, goals).min(axis=1, skipna=False))
    return ranked.sort_values(["worst_margin", "alpha"], ascending=[False, True]).iloc[0]


def reaches_goals(grid: pd.DataFrame, goals: Sequence[Goal]) -> pd.Series:
    """Whether each row reaches every goal."""
    return (_margins(grid, goals) >= 0).all(axis=1)


def _margins(grid: pd.DataFrame, goals: Sequence[Goal]) -> pd.DataFrame:
    return pd.concat([grid[goal.measure].map(goal.margin) for goal in goals], axis=1)
