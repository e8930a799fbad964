"""How alike named vectors are: cosines and norms, of behaviors, layers, methods and models."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from steerlab._support.errors import DataError, MismatchError
from steerlab.capture.activations import Activations
from steerlab.methods import Context, MeanDifference, Steerer
from steerlab.models.sites import Site

# a shape of any kind here: what is not one row is refused in words, below
Vectors = Mapping[Hashable, Float[Tensor, "..."]]


def cosine_matrix(vectors: Vectors) -> pd.DataFrame:
    """The cosine between every two named vectors: of behaviors, layers, methods, or models of one width.

    Example:
        >>> cosine_matrix({"mean": mean.vector_, "other model": other.vector_}).loc["mean", "other model"]

    Args:
        vectors: `(hidden,)` each, by name; a tuple as a name makes a level of the index of each of its parts.

    Returns:
        A square frame with the names on both sides, in the order given, computed in float64.

    Raises:
        DataError: no vectors, or one that is not one finite row or exactly zero.
        MismatchError: two widths; one vector of each is named.

    Source: own.
    """
    rows = unit_rows(vectors)
    cosines = np.clip(rows @ rows.T, -1, 1)
    np.fill_diagonal(cosines, 1.0)  # rounding aside, it is
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

    Source: own.
    """
    names, cosines = list(vectors), cosine_matrix(vectors).to_numpy()
    pairs = list(zip(*np.triu_indices(len(names), 1), strict=True))
    told = {"a": [names[i] for i, _ in pairs], "b": [names[j] for _, j in pairs]}
    return pd.DataFrame(told | {"cosine": [float(cosines[i, j]) for i, j in pairs]})


def norms(vectors: Vectors) -> pd.DataFrame:
    """How long each named vector is.

    Example:
        >>> norms({"refuse": v, "defer": w})                 # columns name, norm

    Args:
        vectors: `(hidden,)` each, by name; zero vectors and several widths are fine here.

    Returns:
        Columns `name` and `norm` (Euclidean, float64, in units of the vectors).

    Raises:
        DataError: no vectors, or one that is not one finite row.

    Source: own.
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
        acts: contrasts at the block outputs of interest; behaviors without contrasts are left out.
        method: makes an unfitted steerer for a site that answers every input alike; it is fitted on one behavior.

    Returns:
        `(hidden,)` float32 in units of the residual stream, by `(behavior, layer)`, layers ascending.

    Raises:
        DataError: there is no contrast, or one side of a contrast is missing.

    Source: difference of means, arXiv 2312.06681, equation 1; by layer: own.
    """
    both = acts.rows(acts.index["side"].isin(["positive", "negative"]))
    sites = sorted(site for site in acts.sites if site == Site(site.layer))
    if not len(both) or not sites:
        raise DataError(
            f"vectors need contrasts at block outputs; of {len(acts)} rows {len(both)} are sides of one, and the sites "
            f"are {', '.join(map(str, acts.sites))}. Capture examples with a contrast at layers=[...]"
        )
    found = {}
    for behavior in dict.fromkeys(both.index["behavior"]):
        own = both.select(behavior=behavior)
        for site in sites:
            found[behavior, site.layer] = method(site).fit(own).vectors(Context(("any",)))[0]
    return found


def unit_rows(vectors: Vectors) -> NDArray[np.float64]:
    """The vectors at length one, as the rows of a matrix.

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
    # by the largest entry first: squares of very small or very large entries would leave float64
    matrix = matrix / np.abs(matrix).max(axis=1, keepdims=True)
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


def _rows(vectors: Vectors) -> dict[Hashable, NDArray[np.float64]]:
    if not vectors:
        raise DataError("no vectors were given; give a mapping from names to vectors of shape (hidden,)")
    rows = {name: vector.detach().double().cpu().numpy() for name, vector in vectors.items()}
    for name, row in rows.items():
        if row.ndim != 1 or not row.size or not np.isfinite(row).all():
            raise DataError(
                f"{name!r} has shape {row.shape}; expected one finite row (hidden,). Pass one vector a name"
            )
    return rows
