"""Which inputs a predicting method treats alike."""

from __future__ import annotations

import numpy as np
import pandas as pd
from sklearn.neighbors import NearestNeighbors

from steerlab._support.errors import DataError
from steerlab.analysis.similarity import unit_rows
from steerlab.capture.activations import Activations
from steerlab.methods import Context, Steerer


def nearest_neighbors(l2s: Steerer, acts: Activations, k: int = 5) -> pd.DataFrame:
    """Which inputs a fitted L2S treats alike: each input's nearest neighbors by the cosine of their vectors.

    Example:
        >>> found = nearest_neighbors(l2s, test)
        >>> found.attrs["same_behavior"], found.attrs["chance"]
        (0.97, 0.38)

    Args:
        l2s: fitted; any other steerer that answers from the prompt's activations will do.
        acts: prompt rows at what `l2s` reads.
        k: neighbors of each input.

    Returns:
        Columns `sample`, `neighbor`, `rank` (from 1), `cosine` and `same_behavior`, samples sorted. In `.attrs`
        the share of neighbors of the sample's own behavior, and what chance would give.

    Raises:
        DataError: fewer than k + 1 inputs, or a predicted vector that is exactly zero.
        ActivationError: the steerer is not fitted, or what it reads was not captured.

    Source: own.
    """
    ids = sorted(set(acts.index.loc[acts.index["side"] == "prompt", "example_id"]))
    if not 1 <= k < len(ids):
        raise DataError(f"{k} neighbors of each of {len(ids)} inputs with a prompt row; give 1 <= k < inputs")
    vectors = unit_rows(dict(zip(ids, l2s.vectors(Context(tuple(ids), acts)), strict=True)))
    distances, places = NearestNeighbors(n_neighbors=k, metric="cosine", algorithm="brute").fit(vectors).kneighbors()
    of = np.array(acts.labels(ids), dtype=object)
    frame = pd.DataFrame(
        {
            "example_id": np.repeat(ids, k),
            "neighbor": np.array(ids)[places.ravel()],
            "rank": np.tile(np.arange(1, k + 1), len(ids)),
            "cosine": np.clip(1 - distances.ravel(), -1, 1),
            "same_behavior": np.repeat(of, k) == of[places.ravel()],
        }
    )
    shares = [(of == label).sum() - 1 for label in of]
    frame.attrs["same_behavior"] = float(frame["same_behavior"].mean())
    frame.attrs["chance"] = float(np.mean(shares) / (len(ids) - 1))
    return frame
