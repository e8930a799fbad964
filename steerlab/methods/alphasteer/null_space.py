"""The algebra of AlphaSteer's null spaces, and the choice of their number of directions."""

from __future__ import annotations

import warnings
from math import isfinite

import torch
from jaxtyping import Float
from torch import Tensor

from steerlab.errors import DataError
from steerlab.models.sites import Site

RATIOS = tuple(i / 20 for i in range(1, 20))
FOLDS = 5
GATE_TOLERANCE = 0.01


def null_space(gram: Float[Tensor, "hidden hidden"], k: int) -> Float[Tensor, "hidden k"]:
    """The k directions in which some rows H are smallest, from their uncentered Gram matrix HᵀH.

    Example:
        >>> q = null_space(benign.T @ benign, 576)                    # benign @ q is minimal

    Returns:
        Orthonormal columns, float64: the eigenvectors of the k smallest eigenvalues.

    Source: AlphaSteer, arXiv 2506.07022, null-space projection (P = Q Qᵀ).
    """
    return torch.linalg.eigh(gram.double()).eigenvectors[:, :k]


def ridge_gate(
    q: Float[Tensor, "hidden k"], harmful: Float[Tensor, "n hidden"], ridge: float
) -> Float[Tensor, " hidden"]:
    """The w in the span of q that minimizes ‖H w - 1‖² + ridge ‖w‖²: a gate of about 1 on the harmful rows H.

    Example:
        >>> w = ridge_gate(null_space(benign.T @ benign, 576), harmful, 10.0)
        >>> harmful @ w                                               # near 1; benign @ w is near 0

    With one target r for all rows, the map of `ridge_map` is exactly w rᵀ.

    Source: AlphaSteer, arXiv 2506.07022, closed form of Δ.
    """
    return ridge_map(q, harmful, torch.ones(len(harmful), 1, dtype=torch.float64, device=q.device), ridge)[:, 0]


def ridge_map(
    q: Float[Tensor, "hidden k"], harmful: Float[Tensor, "n hidden"], targets: Float[Tensor, "n out"], ridge: float
) -> Float[Tensor, "hidden out"]:
    """The matrix S in the span of q that minimizes ‖H S - R‖² + ridge ‖S‖², with one target per row.

    Example:
        >>> s = ridge_map(q, harmful, targets, 10.0)
        >>> harmful @ s                                               # near targets

    Args:
        q: orthonormal columns, from `null_space`.
        harmful: rows H.
        targets: rows R.
        ridge: weight of the penalty; 0 gives the smallest S among the minimizers.

    Returns:
        float64.

    Source: AlphaSteer, arXiv 2506.07022, closed form of Δ, in coordinates of the null space, where its pseudo-inverse
        is an inverse.
    """
    x, r = harmful.double() @ q, targets.double()
    if ridge == 0:  # there may be fewer independent rows than k: only the pseudo-inverse always exists
        return q @ (torch.linalg.pinv(x) @ r)
    eye = torch.eye(min(x.shape), dtype=x.dtype, device=x.device)
    if x.shape[0] < x.shape[1]:  # (XᵀX + c)⁻¹Xᵀ = Xᵀ(XXᵀ + c)⁻¹: invert the smaller matrix
        return q @ (x.T @ torch.linalg.solve(x @ x.T + ridge * eye, r))
    return q @ torch.linalg.solve(x.T @ x + ridge * eye, x.T @ r)


def fit_map(
    benign: Float[Tensor, "n hidden"], harmful: Float[Tensor, "m hidden"], targets: Float[Tensor, "m out"], *,
    ratio: float | None, ridge: float, leakage: float, site: Site,
) -> tuple[Float[Tensor, "hidden out"], float, dict[str, float | None]]:  # fmt: skip
    """Learn the map of harmful states to their targets in the null space of the benign ones.

    Example:
        >>> s, norm, measured = fit_map(benign, harmful, r, ratio=0.6, ridge=10.0, leakage=0.05, site=Site(12))

    Args:
        benign, harmful: states, one row per input.
        targets: one row per harmful input.
        ratio: share of all directions taken as the null space; None: chosen by the rule of `NullSpaceGate`.
        ridge, leakage: as in `NullSpaceGate`; a given ratio that leaks more is warned about.
        site: of the states, for messages.

    Returns:
        The map, float64; the mean norm of the targets; and `ratio_`, `leakage_` and `held_out_leakage_`, as in
        `NullSpaceGate`, in shares of that norm.

    Raises:
        DataError: too few benign rows, or settings out of range.

    Source: AlphaSteer, arXiv 2506.07022, which has no rule for the choice of the ratio.
    """
    _check_settings(ratio, ridge, leakage)
    rows, hidden = benign.double(), benign.shape[1]
    given, held_out = ratio is not None, None
    if ratio is None:
        ratio, held_out = _choose_ratio(rows, harmful.double(), ridge, leakage, site)
    k = null_space_size(ratio, hidden)
    if k == 0:
        raise DataError(f"ratio={ratio} of {hidden} directions is less than one: give at least {1 / hidden:.4g}")
    if len(benign) < hidden - k:
        raise DataError(
            f"{len(benign)} benign inputs at site {site}; ratio={ratio} excludes {hidden - k} of {hidden} directions "
            f"and needs as many inputs: give more, a ratio of at least {(hidden - len(benign)) / hidden:.4g}, or None"
        )
    matrix = ridge_map(null_space(rows.T @ rows, k), harmful, targets, ridge)
    norm = float(targets.double().norm(dim=-1).mean())
    measured = float((rows @ matrix).norm(dim=-1).max() / norm)
    if given and measured > leakage:
        warnings.warn(
            f"ratio={ratio} at site {site} leaks: a benign input of the fit is steered at {measured:.3g} of full "
            f"strength, more than leakage={leakage}. Lower the ratio, or use ratio=None",
            stacklevel=3,
        )
    return matrix, norm, {"ratio_": ratio, "leakage_": measured, "held_out_leakage_": held_out}


def null_space_size(ratio: float, hidden: int) -> int:
    """k = floor(ratio * hidden), robust to rounding: 29 for 0.29 and 100."""
    return int(ratio * hidden + 1e-9)


def _check_settings(ratio: float | None, ridge: float, leakage: float) -> None:
    if ratio is not None and not 0 < ratio <= 1:
        raise DataError(f"ratio={ratio}: give the share of directions to use, above 0 and up to 1, or None")
    if not (isfinite(ridge) and ridge >= 0):
        raise DataError(f"ridge={ridge}: give a finite weight of at least 0; 10 is the published one")
    if not (isfinite(leakage) and leakage > 0):
        raise DataError(f"leakage={leakage}: give the share of full strength that benign inputs may get, above 0")


def _choose_ratio(
    benign: Float[Tensor, "n hidden"], harmful: Float[Tensor, "m hidden"], ridge: float, leakage: float, site: Site
) -> tuple[float, float]:
    """The ratio by the rule of `NullSpaceGate`, and its held-out leakage."""
    measured = _cross_validate(benign, harmful, ridge)
    if not measured:
        excluded = benign.shape[1] - null_space_size(RATIOS[-1], benign.shape[1])
        raise DataError(
            f"{len(benign)} benign inputs at site {site} are too few to choose a ratio: even {RATIOS[-1]} excludes "
            f"{excluded} directions, and one input in {FOLDS} is held out. Give more inputs, or a ratio"
        )
    if allowed := {ratio: pair for ratio, pair in measured.items() if pair[0] <= leakage}:
        best = max(gate for _, gate in allowed.values())
        allowed = {ratio: pair for ratio, pair in allowed.items() if pair[1] >= best - GATE_TOLERANCE * abs(best)}
    ratio = min(allowed or measured, key=lambda p: measured[p][0])
    if not allowed:
        leaks, gate = measured[ratio]
        warnings.warn(
            f"no null-space ratio at site {site} keeps held-out benign inputs under leakage={leakage}: the best, "
            f"{ratio}, has {leaks:.3g}, with a mean gate of {gate:.3g} on harmful inputs. Try another layer",
            stacklevel=2,
        )
    return ratio, measured[ratio][0]


def _cross_validate(
    benign: Float[Tensor, "n hidden"], harmful: Float[Tensor, "m hidden"], ridge: float
) -> dict[float, tuple[float, float]]:
    """By ratio, on held-out rows: the 95th percentile of |gate| on benign ones, the mean gate on harmful ones."""
    n, hidden = benign.shape
    folds = min(FOLDS, n)
    benign_fold, harmful_fold = torch.arange(n) % folds, torch.arange(len(harmful)) % folds
    smallest = n - int(torch.bincount(benign_fold).max())
    sizes = {p: null_space_size(p, hidden) for p in RATIOS}
    gates: dict[float, tuple[list[Tensor], list[Tensor]]] = {
        p: ([], []) for p, k in sizes.items() if k > 0 and smallest >= hidden - k
    }
    for fold in range(folds) if gates else ():
        rows = benign[benign_fold != fold]
        directions = null_space(rows.T @ rows, hidden)  # ascending: the first k columns are the null space of size k
        for p, (on_benign, on_harmful) in gates.items():
            w = ridge_gate(directions[:, : sizes[p]], harmful[harmful_fold != fold], ridge)
            on_benign.append(benign[benign_fold == fold] @ w)
            on_harmful.append(harmful[harmful_fold == fold] @ w)
    return {p: (float(torch.cat(b).abs().quantile(0.95)), float(torch.cat(h).mean())) for p, (b, h) in gates.items()}
