"""Matching: which direction, or code, of one set belongs to which of another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from steerlab.errors import DataError


@dataclass(frozen=True)
class Matching:
    """The partner of each member of the first set.

    Example:
        >>> match_directions(directions, directions.flip(0)).order.tolist()       # of three
        [2, 1, 0]

    Attributes:
        order: `(first,)`, the partner's index in the second set.
        similarity: `(first,)`, to the partner.
    """

    order: Int[Tensor, " first"]
    similarity: Float[Tensor, " first"]

    @property
    def mean(self) -> float:
        """The mean similarity; of codes that are matched one to one, the mean correlation coefficient (MCC)."""
        return float(self.similarity.mean())


def match_directions(
    first: Float[Tensor, "first hidden"], second: Float[Tensor, "second hidden"], *, one_to_one: bool = True,
    signed: bool = True,
) -> Matching:  # fmt: skip
    """Match directions by their cosines.

    Example:
        >>> found = match_directions(before, after)
        >>> after[found.order], found.mean

    Args:
        first, second: a direction in each row, none of them zero.
        one_to_one: no two have the same partner, and the sum of all similarities is largest (Hungarian method);
            otherwise each has the most similar one.
        signed: False for directions whose sign means nothing: absolute cosines are compared.

    Raises:
        DataError: a zero direction, NaN, or fewer in the second set than in the first where `one_to_one`.

    Source: arXiv 2501.03012, section 3 (both kinds of matching).
    """
    for name, rows in (("first", first), ("second", second)):
        if not bool((rows.any(1) & rows.isfinite().all(1)).all()):
            raise DataError(f"a direction of the {name} set is zero, NaN or infinite: leave it out")
    unit = (torch.nn.functional.normalize(rows.cpu().double(), dim=1) for rows in (first, second))
    cosines = next(unit) @ next(unit).T
    return _matched(cosines if signed else cosines.abs(), one_to_one)


def match_codes(
    truth: Float[Tensor, "row first"], codes: Float[Tensor, "other_row second"], *, one_to_one: bool = True
) -> Matching:
    """Match columns by the absolute correlation of their values over rows; a column of equal values has none, 0.

    Example:
        >>> match_codes(truth, codes).mean                            # 1: recovered up to order, sign and scale

    Args:
        truth, codes: the same rows.
        one_to_one: as in `match_directions`.

    Raises:
        DataError: other rows, fewer than two, NaN, or fewer columns than `truth` has where `one_to_one`.

    Source: arXiv 2502.12179, section 5 (MCC; with `one_to_one=False` its variant for labels).
    """
    return _matched(correlations(truth, codes).abs(), one_to_one)


def correlations(
    first: Float[Tensor, "row first"], second: Float[Tensor, "other_row second"]
) -> Float[Tensor, "first second"]:
    """The correlation over rows of each column of one table with each of another, float64; 0 for a constant column.

    Example:
        >>> correlations(truth, codes).shape                          # (columns of truth, columns of codes)

    Raises:
        DataError: other rows, fewer than two, or NaN.
    """
    if len(first) != len(second) or len(first) < 2 or not all(bool(x.isfinite().all()) for x in (first, second)):
        raise DataError(f"{len(first)} rows of truth and {len(second)} of codes: give the same, two or more, finite")
    units = [_standardized(x.cpu().double()) for x in (first, second)]
    return units[0].T @ units[1]


def _standardized(x: Float[Tensor, "row column"]) -> Float[Tensor, "row column"]:
    """Columns of mean 0 and norm 1, whatever their size; 0 for columns of equal values, which rounding would tell from
    their mean.
    """
    x = (x - x.mean(0)).masked_fill((x == x[:1]).all(0), 0.0)
    x = x / x.abs().amax(0).clamp(min=torch.finfo(x.dtype).tiny)
    return torch.nn.functional.normalize(x, dim=0)


def _matched(similarities: Float[Tensor, "first second"], one_to_one: bool) -> Matching:
    if not one_to_one:
        best = similarities.max(dim=1)
        return Matching(best.indices, best.values.float())
    n, m = similarities.shape
    if n > m:
        raise DataError(f"{n} can't each have a partner of their own among {m}: change places, or one_to_one=False")
    order = torch.from_numpy(np.asarray(linear_sum_assignment(-similarities.numpy())[1]))
    return Matching(order, similarities[torch.arange(n), order].float())
