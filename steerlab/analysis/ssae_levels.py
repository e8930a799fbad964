"""Choosing the level of a sparse shift autoencoder: what is lost, and whether seeds agree."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import combinations

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from steerlab.methods import SSAE
from steerlab.metrics.matching import match_directions


def level_sweep(
    ssae: SSAE, z: Float[Tensor, "pair hidden"], levels: Sequence[float | None], seeds: Sequence[int] = (0, 1, 2)
) -> pd.DataFrame:
    """What different levels give: the error, and whether several seeds find the same concepts.

    Take the smallest level whose error is still near that without a bound (level None); where that leaves a choice, the
    one with the best agreement of seeds.

    Example:
        >>> frame = level_sweep(SSAE(16, 3, None), z, [None, 1.8, 1.6, 1.4, 1.2, 1.0])

    Args:
        ssae: whose other arguments are used.
        z: `(pair, hidden)`, the differences.
        levels, seeds: all combinations are fitted.

    Returns:
        One row per level and seed: `level`, `seed`, `error`, `reached`, and `agreement`, the mean absolute cosine of
        the concepts to those of the other seeds, matched one to one. Of one concept, or one that all seeds get wrong in
        the same way, it says nothing.
    """
    rows = []
    for level in levels:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a level that bounds nothing is a row of the table
            fitted = [ssae.with_options(level=level, seed=seed).fit_differences(z) for seed in seeds]
        agreement = stability(fitted)
        for seed, one in zip(seeds, fitted, strict=True):
            mine = agreement[(agreement["first"] == seed) | (agreement["second"] == seed)]["cosine"].mean()
            reached = one.reached_
            rows.append((level, seed, reached["error"], reached["level"], mine))
    return pd.DataFrame(rows, columns=["level", "seed", "error", "reached", "agreement"])


def stability(fitted: Sequence[SSAE]) -> pd.DataFrame:
    """How far fits with several seeds found the same concepts.

    Example:
        >>> fits = [SSAE(16, 8, 1.4, seed=seed).fit(acts) for seed in range(5)]
        >>> stability(fits)["cosine"].mean()

    Returns:
        One row per pair of fits: `first`, `second` (their seeds), and the mean and smallest absolute `cosine` and
        `lowest` of concepts that are matched one to one.

    Source: arXiv 2502.12179, section 5 (there with correlations over coordinates, which subtract their mean).
    """
    rows = []
    for one, other in combinations(fitted, 2):
        found = match_directions(one.decoder_, other.decoder_, signed=False).similarity
        rows.append((one.seed, other.seed, float(found.mean()), float(found.min())))
    return pd.DataFrame(rows, columns=["first", "second", "cosine", "lowest"])
