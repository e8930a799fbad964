"""Cosines, norms and nearest neighbors of vectors: of behaviors, layers, methods, models and inputs."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from steerlab.capturing.activations import Activations
from steerlab.errors import DataError, MismatchError
from steerlab.methods import Context, MeanDifference, Steerer
from steerlab.models.sites import Site

Vectors = Mapping[Any, Float[Tensor, "..."]]  # of any shape: `_rows` refuses what is not `(hidden,)`


def cosine_matrix(vectors: Vectors) -> pd.DataFrame:
    """Cosines between every two named vectors: of behaviors, layers, methods, or models of one width.

    Example:
        >>> cosine_matrix({"mean": mean.vector_, "other model": other.vector_}).loc["mean", "other model"]

    Args:
        vectors: `(hidden,)` each, by name; tuples as names become levels of the index.

    Returns:
        A square frame with the names on both sides, in the order given, computed in float64.

    Raises:
        DataError: no vectors, or one that is zero, not finite or not `(hidden,)`.
        MismatchError: two widths; one vector of each is named.
    """
    rows = unit_rows(vectors)
    cosines = np.clip(rows @ rows.T, -1, 1)
    np.fill_diagonal(cosines, 1.0)
    names = pd.Index(list(vectors))
    return pd.DataFrame(cosines, index=names, columns=names)


def cosine_table(vectors: Vectors) -> pd.DataFrame:
    """`cosine_matrix` in long form: one row for every two different vectors.

    Example:
        >>> cosine_table({"refuse": v, "defer": w})          # columns a, b, cosine; one row

    Args:
        vectors: `(hidden,)` each, by name.

    Returns:
        Columns `a`, `b` (names, a before b in the order given) and `cosine`.

    Raises:
        DataError, MismatchError: as `cosine_matrix`.
    """
    names, cosines = list(vectors), cosine_matrix(vectors).to_numpy()
    first, second = np.triu_indices(len(names), 1)
    pairs = {"a": [names[i] for i in first], "b": [names[j] for j in second]}
    return pd.DataFrame(pairs | {"cosine": cosines[first, second]})


def norms(vectors: Vectors) -> pd.DataFrame:
    """Euclidean norms of named vectors.

    Example:
        >>> norms({"refuse": v, "defer": w})                 # columns name, norm

    Args:
        vectors: `(hidden,)` each, by name; zero vectors and different widths are allowed.

    Returns:
        Columns `name` and `norm` (float64, in units of the vectors).

    Raises:
        DataError: no vectors, or one that is not finite or not `(hidden,)`.
    """
    rows = _rows(vectors)
    return pd.DataFrame({"name": list(rows), "norm": [float(np.linalg.norm(row)) for row in rows.values()]})


def vectors_by_layer(
    acts: Activations, method: Callable[[Site], Steerer] = MeanDifference
) -> dict[tuple[str, int], Float[Tensor, " hidden"]]:
    """One vector per behavior and layer, by default the mean contrast.

    Example:
        >>> cosine_matrix(vectors_by_layer(acts)).loc["refuse", "defer"]     # layers against layers
        >>> vectors_by_layer(acts, lambda site: MeanDifference(site, position="answer"))

    Args:
        acts: contrasts at block outputs; behaviors without contrasts are left out.
        method: makes an unfitted steerer with one vector for all inputs; it is fitted on one behavior at a time.

    Returns:
        `(hidden,)` float32 in units of the residual stream, by `(behavior, layer)`, layers ascending.

    Raises:
        DataError: there is no contrast, or one side of a contrast is missing.

    Source: difference of means, arXiv 2312.06681, equation 1.
    """
    both = acts.rows(acts.index["side"].isin(["positive", "negative"]))
    sites = sorted(site for site in acts.sites if site == Site(site.layer))
    if not len(both) or not sites:
        raise DataError(
            f"vectors need contrasts at block outputs; of {len(acts)} rows {len(both)} are sides of one, and the sites "
            f"are {', '.join(map(str, acts.sites))}. Capture examples with a contrast at layers=[...]"
        )
    return {
        (behavior, site.layer): method(site).fit(both.select(behavior=behavior)).vectors(Context(("any",)))[0]
        for behavior in dict.fromkeys(both.index["behavior"])
        for site in sites
    }


def nearest_neighbors(steerer: Steerer, acts: Activations, k: int = 5) -> pd.DataFrame:
    """Each input's k nearest neighbors by the cosine of the vectors that a fitted steerer predicts for them.

    Example:
        >>> found = nearest_neighbors(l2s, test)
        >>> found.attrs["same_behavior"], found.attrs["chance"]
        (0.97, 0.38)

    Args:
        steerer: fitted; predicts vectors from the prompt's activations, as L2S does.
        acts: prompt rows at the steerer's `required_activations`.
        k: neighbors of each input.

    Returns:
        Columns `example_id`, `neighbor`, `rank` (from 1), `cosine` and `same_behavior`, sorted by `example_id`.
        `.attrs` has the share of neighbors of the same behavior, and `chance`, that share for random neighbors.

    Raises:
        DataError: fewer than k + 1 inputs, or a predicted vector that is zero.
        ActivationError: the steerer is not fitted, or a required activation was not captured.
    """
    ids = sorted(set(acts.index.loc[acts.index["side"] == "prompt", "example_id"]))
    if not 1 <= k < len(ids):
        raise DataError(f"{k} neighbors of each of {len(ids)} inputs with a prompt row; give 1 <= k < inputs")
    vectors = unit_rows(dict(zip(ids, steerer.vectors(Context(tuple(ids), acts)), strict=True)))
    distances, places = NearestNeighbors(n_neighbors=k, metric="cosine", algorithm="brute").fit(vectors).kneighbors()
    behavior = np.array(acts.labels(ids), dtype=object)
    columns = {
        "example_id": np.repeat(ids, k), "neighbor": np.array(ids)[places.ravel()],
        "rank": np.tile(np.arange(1, k + 1), len(ids)), "cosine": np.clip(1 - distances.ravel(), -1, 1),
        "same_behavior": np.repeat(behavior, k) == behavior[places.ravel()],
    }  # fmt: skip
    frame = pd.DataFrame(columns)
    same = pd.Series(behavior).map(pd.Series(behavior).value_counts()) - 1
    frame.attrs["same_behavior"] = float(frame["same_behavior"].mean())
    frame.attrs["chance"] = float(same.mean() / (len(ids) - 1))
    return frame


def unit_rows(vectors: Vectors) -> NDArray[np.float64]:
    """The vectors scaled to norm 1, as the rows of a matrix.

    Raises:
        DataError, MismatchError: as `cosine_matrix`.
    """
    rows = _rows(vectors)
    first, width = next((name, len(row)) for name, row in rows.items())
    for name, row in rows.items():
        if len(row) != width:
            raise MismatchError(
                f"{name!r} has width {len(row)}, {first!r} has {width}; a cosine needs vectors of models of one width"
            )
        if not row.any():
            raise DataError(f"{name!r} is exactly zero and has no direction; leave it out")
    matrix = np.stack(list(rows.values()))
    # divided by the largest entry first: squares of very small or very large entries would overflow float64
    matrix = matrix / np.abs(matrix).max(axis=1, keepdims=True)
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


def _rows(vectors: Vectors) -> dict[Hashable, NDArray[np.float64]]:
    if not vectors:
        raise DataError("no vectors were given; give a mapping from names to vectors of shape (hidden,)")
    rows = {name: vector.detach().double().cpu().numpy() for name, vector in vectors.items()}
    for name, row in rows.items():
        if row.ndim != 1 or not row.size or not np.isfinite(row).all():
            raise DataError(
                f"{name!r} has shape {row.shape}; expected one finite row (hidden,). Pass one vector per name"
            )
    return rows
