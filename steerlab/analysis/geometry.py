"""Directions of contrast vectors: cosines within and between behaviors, principal angles, and a PCA map."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.linalg import subspace_angles
from sklearn.decomposition import PCA
from torch import Tensor

from steerlab.analysis.similarity import unit_rows
from steerlab.capturing.activations import Activations, as_stored, sorted_by_id
from steerlab.errors import DataError, MismatchError
from steerlab.metrics.bootstrap import check_resampling
from steerlab.models.sites import Site

_SHUFFLES = 20


def geometry(
    acts: Activations,
    site: Site | int,
    position: str | None = None,
    *,
    label: str = "behavior",
    n_boot: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Mean cosines of the inputs' contrast vectors within each behavior and between every two behaviors.

    Example:
        >>> geometry(acts, 15)[["a", "b", "cosine", "low", "high", "shuffled"]]

    Args:
        acts: contrasts of any model, at least two examples of each behavior.
        site: whose contrasts, `(example, hidden)`; an int means that block's output.
        position: which captured contrast rows; None where there is only one kind.
        label: the index column with the groups, for example a finer one than the behavior.
        n_boot: resamples of the interval.
        seed: of the resamples and the shuffles.

    Returns:
        One row per pair of behaviors, those within first: `layer`, `site`, `a`, `b`, `kind` ("within", "between"),
        `cosine` (mean over pairs of distinct examples), `low`, `high` (95 % bootstrap over examples, none paired with
        itself), `n_a`, `n_b`, `pairs`, and `shuffled`: the same mean with permuted labels, over twenty permutations.

    Raises:
        DataError: a behavior with one example, a contrast that is zero, or n_boot below 1.
        ActivationError: there is no contrast, or no such label.

    Source: arXiv 2508.12815, appendix (cosines of P2S vectors within and between behaviors).
    """
    check_resampling(0.95, n_boot, seed)
    where = as_stored(site, acts.info)
    ids, z = sorted_by_id(*acts.contrast(where, position))
    units, labels = unit_rows(dict(zip(ids, z, strict=True))), np.array(acts.labels(ids, label), dtype=object)
    members = {name: np.flatnonzero(labels == name) for name in sorted(set(labels))}
    if lone := [name for name, rows in members.items() if len(rows) < 2]:
        raise DataError(f"{lone[0]!r} has one contrast only; a pair within it needs two examples")
    rng = np.random.default_rng(seed)
    shuffles = [rng.permutation(len(ids)) for _ in range(_SHUFFLES)]
    # n draws with replacement, as counts of each example
    drawn = {name: rng.multinomial(len(m), np.full(len(m), 1 / len(m)), n_boot) for name, m in members.items()}
    rows = []
    for a, b in sorted(combinations_with_replacement(members, 2), key=lambda pair: pair[0] != pair[1]):
        value = float(_mean_cosine(units, members[a], members[b])[0])
        resampled = _mean_cosine(units, members[a], members[b], drawn[a], drawn[b])
        n_a, n_b = len(members[a]), len(members[b])
        # one pair says nothing of others
        low, high = (np.nan, np.nan) if a == b and n_a < 3 else np.nanquantile(resampled, [0.025, 0.975])
        mixed = [_mean_cosine(units, shuffle[members[a]], shuffle[members[b]])[0] for shuffle in shuffles]
        rows.append({
            "layer": where.layer, "site": str(where), "a": a, "b": b, "kind": "within" if a == b else "between",
            "cosine": value, "low": min(float(low), value), "high": max(float(high), value), "n_a": n_a, "n_b": n_b,
            "pairs": n_a * (n_a - 1) // 2 if a == b else n_a * n_b, "shuffled": float(np.mean(mixed)),
        })  # fmt: skip
    return pd.DataFrame(rows)


def principal_angles(
    a: Float[Tensor, "n hidden"], b: Float[Tensor, "m _"], k: int, *, centered: bool = False
) -> NDArray[np.float64]:
    """The angles between the k-dimensional principal subspaces of two sets of vectors, in degrees, ascending.

    By default the sets are not centered: a direction that all vectors share counts as one of the k.

    Example:
        >>> principal_angles(torch.eye(4)[:2], torch.eye(4)[1:3], k=2)
        array([ 0., 90.])

    Args:
        a, b: `(n, hidden)` and `(m, hidden)`, one vector per row.
        k: dimension of both subspaces, spanned by the first k right singular vectors.
        centered: subtract each set's mean first.

    Returns:
        `(k,)` angles between 0 and 90.

    Raises:
        MismatchError: different widths.
        DataError: k is below 1 or above the rank of either set.

    Source: Björck and Golub (1973), by `scipy.linalg.subspace_angles`.
    """
    if a.shape[1] != b.shape[1]:
        raise MismatchError(f"a has width {a.shape[1]}, b has {b.shape[1]}; angles need vectors of one width")
    return np.rad2deg(np.sort(subspace_angles(_basis(a, k, centered, "a"), _basis(b, k, centered, "b"))))


def map_2d(points: Float[Tensor, "n hidden"], labels: Sequence[str]) -> pd.DataFrame:
    """Points projected onto their first two principal components, for a plot.

    Example:
        >>> ids, states = acts.by_example(15, side="prompt")
        >>> map_2d(states, acts.labels(ids)).attrs["explained"]      # shares of the variance on x and y
        (0.31, 0.12)

    Args:
        points: `(n, hidden)`, one point per row.
        labels: one per point.

    Returns:
        Columns `x`, `y`, `label`, in the order given; the largest loading of each axis is positive. The shares of
        variance are in `.attrs["explained"]`.

    Raises:
        DataError: not one label per point, fewer than three points, NaN, or all points the same.
    """
    x = points.detach().cpu().double().numpy()
    if len(labels) != len(x):
        raise DataError(f"{len(x)} points but {len(labels)} labels; give one label per point")
    if len(x) < 3 or x.shape[1] < 2:
        raise DataError(f"the points are {x.shape}; a map needs at least three, of two dimensions or more")
    if not np.isfinite(x).all() or (x == x[0]).all():
        raise DataError("the points hold NaN or infinity, or are all the same; a map needs finite points that differ")
    pca = PCA(n_components=2, svd_solver="full").fit(x)  # exact, and scikit-learn fixes the sign of each axis
    frame = pd.DataFrame(pca.transform(x), columns=["x", "y"]).assign(label=list(labels))
    frame.attrs["explained"] = tuple(float(share) for share in pca.explained_variance_ratio_)
    return frame


def _basis(x: Float[Tensor, "n hidden"], k: int, centered: bool, name: str) -> NDArray[np.float64]:
    wide = x.detach().cpu().double()
    if centered:
        wide = wide - wide.mean(0)
    _, sizes, right = torch.linalg.svd(wide, full_matrices=False)
    # entries were rounded in the dtype they came in, so that is what may be left of a zero
    least = float(sizes.max()) * max(x.shape) * torch.finfo(x.dtype).eps if sizes.numel() else 0.0
    rank = int((sizes > least).sum())
    if not 1 <= k <= rank:
        raise DataError(
            f"k={k}, but {name}, {tuple(x.shape)}{', centered,' if centered else ''} has rank {rank}; give "
            "1 <= k <= rank"
        )
    return right[:k].T.numpy()


def _mean_cosine(
    units: NDArray[np.float64], a: NDArray[np.intp], b: NDArray[np.intp], weights_a: Any = None, weights_b: Any = None
) -> NDArray[np.float64]:
    """Mean cosine over pairs of distinct examples, for every row of weights (how often an example counts)."""
    w = np.ones((1, len(a))) if weights_a is None else weights_a
    v = np.ones((1, len(b))) if weights_b is None else weights_b
    # the sum of all cosines is the inner product of the two sums of unit vectors
    total = ((w @ units[a]) * (v @ units[b])).sum(1)
    pairs = (w.sum(1) * v.sum(1)).astype(float)
    if np.array_equal(a, b):
        same = (w * v).sum(1)  # an example with itself has cosine 1
        total, pairs = total - same, pairs - same
    return np.divide(total, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)
