"""Points of many dimensions on two axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from torch import Tensor

from steerlab._support.errors import DataError, LoadError


def map_2d(
    points: Float[Tensor, "n hidden"],
    labels: Sequence[str],
    method: Literal["pca", "umap"] = "pca",
    seed: int = 0,
) -> pd.DataFrame:
    """Contexts or vectors as points of a plane, for a look at them.

    Example:
        >>> ids, states = acts.by_example(15, side="prompt")
        >>> map_2d(states, acts.labels(ids)).attrs["explained"]      # shares of the variance on x and y
        (0.31, 0.12)

    Args:
        points: `(n, hidden)`, a row a point.
        labels: one a point.
        method: "pca" (linear; distances mean something) or "umap" (needs umap-learn; only neighborhoods do).
        seed: of UMAP; PCA has no chance in it, nor a free sign: the largest loading of each axis is positive.

    Returns:
        Columns `x`, `y`, `label`, in the order given; with PCA the shares of variance in `.attrs["explained"]`.

    Raises:
        DataError: not one label a point, fewer than three points, NaN, all points the same, or an unknown method.
        LoadError: umap-learn is asked for and is not installed.

    Source: principal components; McInnes et al. (2018), arXiv 1802.03426, by umap-learn.
    """
    x = points.detach().cpu().double().numpy()
    if len(labels) != len(x):
        raise DataError(f"{len(x)} points but {len(labels)} labels; give one label a point")
    if len(x) < 3 or x.shape[1] < 2:
        raise DataError(f"the points are {x.shape}; a map needs at least three, of two dimensions or more")
    if not np.isfinite(x).all() or (x == x[0]).all():
        raise DataError("the points hold NaN or infinity, or are all the same; a map needs finite points that differ")
    if method == "pca":
        # the full solver is exact, and scikit-learn fixes each axis' sign by its largest loading
        pca = PCA(n_components=2, svd_solver="full").fit(x)
        flat, attrs = pca.transform(x), {"explained": tuple(float(s) for s in pca.explained_variance_ratio_)}
    elif method == "umap":
        flat, attrs = _umap(x, seed), {}
    else:
        raise DataError(f"unknown method {method!r}; expected 'pca' or 'umap'")
    frame = pd.DataFrame({"x": flat[:, 0], "y": flat[:, 1], "label": list(labels)})
    frame.attrs.update(attrs)
    return frame


def _umap(x: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    try:
        import umap
    except ImportError as error:
        raise LoadError(
            "method='umap' needs the package umap-learn, which is not installed; pip install umap-learn, or use 'pca'"
        ) from error
    # a fixed seed rules out several threads; said, or UMAP warns about it
    made: Any = umap.UMAP(n_components=2, n_neighbors=min(15, len(x) - 1), random_state=seed, n_jobs=1)
    return np.asarray(made.fit_transform(x), dtype=np.float64)
