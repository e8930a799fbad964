"""Which inputs a predicting method treats alike."""

from __future__ import annotations

import numpy as np
import pandas as pd
from sklearn.neighbors import NearestNeighbors

from steerlab._support.errors import DataError
from steerlab.analysis.similarity import unit_rows
from steerlab.capture.activations import Activations
from steerlab.methods import Context, Steerer


def alike(l2s: Steerer, acts: Activations, k: int = 5) -> pd.DataFrame:
    """Which inputs a fitted L2S treats alike: each input's nearest neighbours by the cosine of their vectors.

    Example:
        >>> found = alike(l2s, test)
        >>> found.attrs["same_behaviour"], found.attrs["chance"]
        (0.97, 0.38)

    Args:
        l2s: fitted; any other steerer that answers from the prompt's activations will do.
        acts: prompt rows at what `l2s` reads.
        k: neighbours of each input.

    Returns:
        Columns `sample`, `neighbour`, `rank` (from 1), `cosine` and `same_behaviour`, samples sorted. In `.attrs`
        the share of neighbours of the sample's own behaviour, and what chance would give.

    Raises:
        DataError: fewer than k + 1 inputs, or a predicted vector that is exactly zero.
        ActivationError: the steerer is not fitted, or what it reads was not captured.

    Source: own.
    """
    ids = sorted(set(acts.index.loc[acts.index["side"] == "prompt", "sample"]))
    if not 1 <= k < len(ids):
        raise DataError(f"{k} neighbours of each of {len(ids)} inputs with a prompt row; give 1 <= k < inputs")
    vectors = unit_rows(dict(zip(ids, l2s.vectors(Context(tuple(ids), acts)), strict=True)))
    distances, places = NearestNeighbors(n_neighbors=k, metric="cosine", algorithm="brute").fit(vectors).kneighbors()
    of = np.array(acts.labels(ids), dtype=object)
    frame = pd.DataFrame(
        {
            "sample": np.repeat(ids, k),
            "neighbour": np.array(ids)[places.ravel()],
            "rank": np.tile(np.arange(1, k + 1), len(ids)),
            "cosine": np.clip(1 - distances.ravel(), -1, 1),
            "same_behaviour": np.repeat(of, k) == of[places.ravel()],
        }
    )
    shares = [(of == label).sum() - 1 for label in of]
    frame.attrs["same_behaviour"] = float(frame["same_behaviour"].mean())
    frame.attrs["chance"] = float(np.mean(shares) / (len(ids) - 1))
    return frame
