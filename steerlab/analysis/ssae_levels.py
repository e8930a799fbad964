"""Choosing the level of a sparse shift autoencoder: what is lost, and whether seeds agree."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import combinations
from math import nan

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from steerlab.errors import DataError, SteeringError
from steerlab.methods import SSAE
from steerlab.metrics import match_directions


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
        levels, seeds: all combinations are fitted. Seeds must differ (DataError).

    Returns:
        One row per level and seed: `level`, `seed`, `error`, `reached`, and `agreement`, the mean absolute cosine of
        the concepts to those of the other seeds, matched one to one. Of one concept, or one that all seeds get wrong in
        the same way, it says nothing. A level that was not reached has NaN.
    """
    if len(set(seeds)) < len(seeds):
        raise DataError(f"seeds={list(seeds)} holds one twice, which agrees with itself")
    rows: list[tuple[float | None, int, float, float, float]] = []
    for level in levels:
        fitted = []
        for seed in seeds:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a level that bounds nothing is a row of the table
                try:
                    fitted.append(ssae.with_options(level=level, seed=seed).fit_differences(z))
                except SteeringError:  # it was not reached
                    rows.append((level, seed, nan, nan, nan))
        agreement = stability(fitted)
        for one in fitted:
            mine = agreement[(agreement["first"] == one.seed) | (agreement["second"] == one.seed)]["cosine"].mean()
            rows.append((level, one.seed, one.reached_["error"], one.reached_["level"], float(mine)))
    return pd.DataFrame(rows, columns=["level", "seed", "error", "reached", "agreement"])


def stability(fitted: Sequence[SSAE]) -> pd.DataFrame:
    """How far fits with several seeds found the same concepts.

    Example:
        >>> fits = [SSAE(16, 8, 1.4, seed=seed).fit(acts) for seed in range(5)]
        >>> stability(fits)["cosine"].mean()

    Returns:
        One row per pair of fits: `first`, `second` (their seeds), and the mean and smallest absolute `cosine` and
        `lowest` of the concepts that are used, matched one to one: 0 for one that the other fit does not have; NaN if a
        fit has none.

    Source: arXiv 2502.12179, section 5 (there with correlations over coordinates, which subtract their mean).
    """
    rows = []
    for one, other in combinations(fitted, 2):
        fewer, more = sorted((fit.decoder_[fit.usage_ > 0] for fit in (one, other)), key=len)
        found = match_directions(fewer, more, signed=False).similarity
        cosines = [*found.tolist(), *[0.0] * (len(more) - len(fewer))] if len(fewer) else [nan]
        rows.append((one.seed, other.seed, sum(cosines) / len(cosines), min(cosines)))
    return pd.DataFrame(rows, columns=["first", "second", "cosine", "lowest"])
