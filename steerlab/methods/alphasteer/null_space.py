"""The algebra of AlphaSteer's null spaces, and the choice of how many directions they have."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from math import isfinite

import torch
from jaxtyping import Float
from torch import Tensor

from steerlab._support.errors import DataError
from steerlab.models.sites import Site

GRID = tuple(i / 20 for i in range(1, 20))
FOLDS = 5
SLACK = 0.01


def null_space(gram: Float[Tensor, "hidden hidden"], k: int) -> Float[Tensor, "hidden k"]:
    """The k directions in which some rows H are smallest, from their Gram matrix HᵀH (not centered).

    Example:
        >>> q = null_space(benign.T @ benign, 576)                    # benign @ q is as small as can be

    Returns:
        Orthonormal columns, float64: the eigenvectors of the k smallest eigenvalues.

    Source: AlphaSteer, arXiv 2506.07022, null-space projection (P = Q Qᵀ).
    """
    return torch.linalg.eigh(gram.double()).eigenvectors[:, :k]


def ridge_gate(
    q: Float[Tensor, "hidden k"], harmful: Float[Tensor, "n hidden"], ridge: float
) -> Float[Tensor, " hidden"]:
    """The w in the span of q that minimizes ‖H w - 1‖² + ridge ‖w‖²: a gate of about 1 on the harmful rows.

    Example:
        >>> w = ridge_gate(null_space(benign.T @ benign, 576), harmful, 10.0)
        >>> harmful @ w                                               # near 1; benign @ w near 0

    Source: AlphaSteer, arXiv 2506.07022, closed form of Δ; that it is one gate times the vector: own.
    """
    return ridge_map(q, harmful, torch.ones(len(harmful), 1, dtype=torch.float64, device=q.device), ridge)[:, 0]


def ridge_map(
    q: Float[Tensor, "hidden k"], harmful: Float[Tensor, "n hidden"], targets: Float[Tensor, "n out"], ridge: float
) -> Float[Tensor, "hidden out"]:
    """The matrix S in the span of q that minimizes ‖H S - R‖² + ridge ‖S‖², for targets R of each row's own.

    Example:
        >>> s = ridge_map(q, harmful, own_targets, 10.0)
        >>> harmful @ s                                               # near own_targets

    Args:
        q: orthonormal columns, from `null_space`.
        harmful: rows H.
        targets: rows R.
        ridge: weight of the penalty; 0 gives the smallest S among the best.

    Returns:
        float64.

    Source: AlphaSteer, arXiv 2506.07022, closed form of Δ, in coordinates of the null space, where its pseudo-inverse
        is an inverse.
    """
    x, r = harmful.double() @ q, targets.double()
    if ridge == 0:  # rows may be fewer than k, or alike: only the pseudo-inverse is sure to exist
        return q @ (torch.linalg.pinv(x) @ r)
    eye = torch.eye(min(x.shape), dtype=x.dtype, device=x.device)
    if x.shape[0] < x.shape[1]:  # (XᵀX + c)⁻¹Xᵀ = Xᵀ(XXᵀ + c)⁻¹: invert the smaller one
        return q @ (x.T @ torch.linalg.solve(x @ x.T + ridge * eye, r))
    return q @ torch.linalg.solve(x.T @ x + ridge * eye, x.T @ r)


@dataclass(frozen=True)
class NullSpace:
    """The null space that was taken, and what was measured when it was chosen.

    Attributes:
        q: `(hidden, k)` float64, orthonormal columns.
        ratio: share p of all directions, k = floor(p · hidden).
        held_out: leakage on benign rows that were held out, if the ratio was chosen here.
    """

    q: Float[Tensor, "hidden k"]
    ratio: float
    held_out: float | None = None


def find_null_space(
    benign: Float[Tensor, "n hidden"],
    harmful: Float[Tensor, "m hidden"],
    *,
    ratio: float | None,
    ridge: float,
    leakage: float,
    site: Site,
) -> NullSpace:
    """The null space of the benign rows at a given ratio, or at one that is chosen (see `NullSpaceGate`).

    Example:
        >>> find_null_space(benign, harmful, ratio=0.6, ridge=10.0, leakage=0.05, site=Site(12)).q

    Raises:
        DataError: too few benign rows, or settings outside their range.

    Source: AlphaSteer, arXiv 2506.07022; the choice of the ratio: own.
    """
    _check_numbers(ratio, ridge, leakage)
    held_out = None
    if ratio is None:
        ratio, held_out = _chosen(benign.double(), harmful.double(), ridge, leakage, site)
    hidden = benign.shape[1]
    k = width(ratio, hidden)
    if k == 0:
        raise DataError(f"ratio={ratio} of {hidden} directions is less than one: give at least {1 / hidden:.4g}")
    if len(benign) < hidden - k:
        raise DataError(
            f"{len(benign)} benign inputs at site {site}; ratio={ratio} keeps {hidden - k} of {hidden} directions out, "
            f"which takes as many inputs to find. Give more of them, or a ratio of at least "
            f"{(hidden - len(benign)) / hidden:.4g}, or ratio=None"
        )
    rows = benign.double()
    return NullSpace(null_space(rows.T @ rows, k), ratio, held_out)


def width(ratio: float, hidden: int) -> int:
    """k = floor(ratio · hidden), with .29 · 100 being 29."""
    return int(ratio * hidden + 1e-9)


def warn_of_leakage(measured: float, limit: float, ratio: float, site: Site) -> None:
    """Say that a ratio somebody gave lets the benign rows it was fitted to be steered."""
    if measured > limit:
        warnings.warn(
            f"ratio={ratio} at site {site} leaks: of the benign inputs it was fitted to, one would be steered at "
            f"{measured:.3g} of full strength, more than leakage={limit}. Lower the ratio, or let ratio=None choose it",
            stacklevel=2,
        )


def _check_numbers(ratio: float | None, ridge: float, leakage: float) -> None:
    if ratio is not None and not 0 < ratio <= 1:
        raise DataError(f"ratio={ratio}: give the share of directions to use, above 0 and up to 1, or None")
    if not (isfinite(ridge) and ridge >= 0):
        raise DataError(f"ridge={ridge}: give a finite weight of at least 0; 10 is the published one")
    if not (isfinite(leakage) and leakage > 0):
        raise DataError(f"leakage={leakage}: give the share of full strength that benign inputs may get, above 0")


def _chosen(
    benign: Float[Tensor, "n hidden"], harmful: Float[Tensor, "m hidden"], ridge: float, leakage: float, site: Site
) -> tuple[float, float]:
    """The ratio by the rule that `NullSpaceGate` states, and its held-out leakage."""
    measured = _cross_fit(benign, harmful, ridge)
    if not measured:
        hidden = benign.shape[1]
        raise DataError(
            f"{len(benign)} benign inputs at site {site} are too few to choose a ratio by: even {GRID[-1]} keeps "
            f"{hidden - width(GRID[-1], hidden)} directions out, and one input in {FOLDS} is held out. Give more of "
            "them, or a ratio"
        )
    allowed = {ratio: pair for ratio, pair in measured.items() if pair[0] <= leakage}
    if allowed:
        best = max(gate for _, gate in allowed.values())
        allowed = {ratio: pair for ratio, pair in allowed.items() if pair[1] >= best - SLACK * abs(best)}
    ratio = min(allowed or measured, key=lambda one: measured[one][0])
    if not allowed:
        leaks, gate = measured[ratio]
        warnings.warn(
            f"no null-space ratio at site {site} keeps held-out benign inputs under leakage={leakage}: the best, "
            f"{ratio}, has {leaks:.3g} (95th percentile of |gate|), and a mean gate of {gate:.3g} on held-out harmful "
            "inputs. Try another layer or more benign inputs, or allow more leakage",
            stacklevel=2,
        )
    return ratio, measured[ratio][0]


def _cross_fit(
    benign: Float[Tensor, "n hidden"], harmful: Float[Tensor, "m hidden"], ridge: float
) -> dict[float, tuple[float, float]]:
    """By ratio, on rows that were held out: 95th percentile of |gate| on benign ones, mean gate on harmful ones."""
    n, hidden = benign.shape
    folds = min(FOLDS, n)
    ours, theirs = torch.arange(n) % folds, torch.arange(len(harmful)) % folds  # ids are sorted: sources get mixed
    fewest = int(torch.bincount(ours).neg().add(n).min())
    ratios = [p for p in GRID if width(p, hidden) > 0 and fewest >= hidden - width(p, hidden)]
    gates: dict[float, tuple[list[Tensor], list[Tensor]]] = {p: ([], []) for p in ratios}
    for fold in range(folds) if ratios else ():
        rows = benign[ours != fold]
        directions = null_space(rows.T @ rows, hidden)  # ascending: every ratio's space is its first columns
        for p in ratios:
            w = ridge_gate(directions[:, : width(p, hidden)], harmful[theirs != fold], ridge)
            gates[p][0].append(benign[ours == fold] @ w)
            gates[p][1].append(harmful[theirs == fold] @ w)
    return {p: (float(torch.cat(b).abs().quantile(0.95)), float(torch.cat(h).mean())) for p, (b, h) in gates.items()}
