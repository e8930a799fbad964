"""Where behaviors' contrast vectors point: within a behavior, between two, and as subspaces."""

from __future__ import annotations

from itertools import combinations_with_replacement

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.linalg import subspace_angles
from torch import Tensor

from steerlab._support.errors import DataError, MismatchError
from steerlab.analysis.similarity import unit_rows
from steerlab.capture.activations import Activations
from steerlab.models.sites import Site

_SHUFFLES = 20


def geometry(
    acts: Activations,
    site: Site | int,
    position: str | None = None,
    *,
    group: str = "behavior",
    n_boot: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """How alike the inputs' own contrast vectors are within each behavior, and between every two.

    Example:
        >>> geometry(acts, 15)[["a", "b", "cosine", "low", "high", "shuffled"]]

    Args:
        acts: contrasts of any model, at least two samples of each behavior.
        site: which site's contrasts, `(sample, hidden)`; an int means that block's output.
        position: which captured contrast rows; None where there is only one kind.
        group: the label of the index that stands for the behavior, for example a finer one of your own.
        n_boot: resamples of the interval.
        seed: decides the resamples and the shuffles.

    Returns:
        One row a pair of behaviors, those within first: `layer`, `site`, `a`, `b`, `kind` ("within", "between"),
        `cosine` (mean over pairs of distinct samples), `low`, `high` (95 %, samples drawn again, a sample never paired
        with itself), `n_a`, `n_b`, `pairs`, and `shuffled`: the same mean after dealing the labels out anew, over
        twenty deals.

    Raises:
        DataError: a behavior with one sample, a contrast that is exactly zero, or n_boot below 1.
        ActivationError: there is no contrast, or no such label.

    Source: arXiv 2508.12815, appendix (cosines of P2S vectors within and between behaviors); interval, baseline: own.
    """
    if n_boot < 1:
        raise DataError(f"n_boot is {n_boot}; give at least 1 resample")
    where = Site.of(site)
    ids, z = acts.contrast(where, position)
    order = sorted(range(len(ids)), key=ids.__getitem__)  # so that the order of the rows decides nothing
    ids = [ids[i] for i in order]
    units, labels = unit_rows(dict(zip(ids, z[order], strict=True))), np.array(acts.labels(ids, group), dtype=object)
    members = {name: np.flatnonzero(labels == name) for name in sorted(set(labels))}
    lone = [name for name, own in members.items() if len(own) < 2]
    if lone:
        raise DataError(f"{lone[0]!r} has one contrast only; a pair within it needs two samples")
    rng = np.random.default_rng(seed)
    deals = [rng.permutation(len(ids)) for _ in range(_SHUFFLES)]
    # drawing n samples again is drawing how often each comes
    drawn = {name: rng.multinomial(len(own), np.full(len(own), 1 / len(own)), n_boot) for name, own in members.items()}
    rows = []
    for a, b in sorted(combinations_with_replacement(members, 2), key=lambda pair: pair[0] != pair[1]):
        value = float(_mean_cosine(units, members[a], members[b])[0])
        again = _mean_cosine(units, members[a], members[b], drawn[a], drawn[b])
        low, high = np.nanquantile(again, [0.025, 0.975])
        mixed = [_mean_cosine(units, deal[members[a]], deal[members[b]])[0] for deal in deals]
        n_a, n_b = len(members[a]), len(members[b])
        rows.append(
            {
                "layer": where.layer, "site": str(where), "a": a, "b": b,
                "kind": "within" if a == b else "between", "cosine": value,
                "low": min(float(low), value), "high": max(float(high), value), "n_a": n_a, "n_b": n_b,
                "pairs": n_a * (n_a - 1) // 2 if a == b else n_a * n_b, "shuffled": float(np.mean(mixed)),
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def principal_angles(
    a: Float[Tensor, "n hidden"], b: Float[Tensor, "m _"], k: int, *, centered: bool = False
) -> NDArray[np.float64]:
    """The angles between the k-dimensional principal subspaces of two sets of vectors, in degrees, smallest first.

    By default the sets are not centered, so that a mean direction counts as one of the k; it is the first where the
    vectors share one.

    Example:
        >>> principal_angles(torch.eye(4)[:2], torch.eye(4)[1:3], k=2)
        array([ 0., 90.])

    Args:
        a, b: `(n, hidden)` and `(m, hidden)`, a row a vector.
        k: dimension of both subspaces, spanned by the first k right singular vectors.
        centered: subtract each set's mean first: the subspaces in which the vectors vary.

    Returns:
        `(k,)` angles between 0 and 90, ascending.

    Raises:
        MismatchError: different widths.
        DataError: k is below 1 or above the rank of either set.

    Source: Björck and Golub (1973), by `scipy.linalg.subspace_angles`; applied to contrasts: own.
    """
    if a.shape[1] != b.shape[1]:
        raise MismatchError(f"a has width {a.shape[1]}, b has {b.shape[1]}; angles need vectors of one width")
    found = subspace_angles(_basis(a, k, centered, "a"), _basis(b, k, centered, "b"))
    return np.rad2deg(np.sort(found))


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
            f"k={k}, but {name}, {tuple(x.shape)}{', centered,' if centered else ''} has rank {rank}; give 1 <= "
            f"k <= rank"
        )
    return right[:k].T.numpy()


def _mean_cosine(
    units: NDArray[np.float64],
    a: NDArray[np.intp],
    b: NDArray[np.intp],
    weights_a: NDArray[np.int64] | None = None,
    weights_b: NDArray[np.int64] | None = None,
) -> NDArray[np.float64]:
    """Mean cosine over pairs of distinct samples, for every row of weights (how often a sample counts)."""
    w = np.ones((1, len(a))) if weights_a is None else weights_a
    v = np.ones((1, len(b))) if weights_b is None else weights_b
    # the sum of all cosines is the product of the two sums of unit vectors: no n x n matrix is needed
    total = ((w @ units[a]) * (v @ units[b])).sum(1)
    pairs = (w.sum(1) * v.sum(1)).astype(float)
    if a is b or np.array_equal(a, b):
        same = (w * v).sum(1)  # a sample with itself has the cosine 1
        total, pairs = total - same, pairs - same
    return np.divide(total, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)
