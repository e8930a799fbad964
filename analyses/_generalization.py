"""Generalization of steerability: changed prompts, vectors of equal norm, rank correlation of two studies."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.stats import rankdata, spearmanr
from torch import Tensor

from steerlab.errors import DataError, require_columns
from steerlab.metrics.bootstrap import Estimate


def relative_steerability(
    table: pd.DataFrame, threshold: float = 0.25, *, by: Sequence[str] = ("behavior",)
) -> pd.DataFrame:
    """Steerability of each vector on each prompt variant, relative to the vector that was trained on this variant.

    Example:
        >>> table = steerability(slopes(frame, by=("behavior", "train_variant", "test_variant")))
        >>> relative_steerability(table).pivot(index="train_variant", columns="test_variant", values="relative")

    Args:
        table: columns `train_variant`, `test_variant`, `steerability` and those of `by`; one row per pair of variants.
        threshold: a pair is dropped if the steerability of the vector trained on its `test_variant` is not larger.
        by: further columns that identify a row.

    Returns:
        The remaining rows with `relative`, which is 1 if `train_variant` equals `test_variant`; `attrs["dropped"]` is
        the number of dropped rows.

    Raises:
        DataError: a column is missing, a pair occurs twice, no vector was trained on a `test_variant`, or the threshold
            is below 0.

    Source: Tan et al., arXiv 2407.12404, section 5; ratio and threshold of the released code.
    """
    require_columns(table, [*by, "train_variant", "test_variant", "steerability"], "relative_steerability")
    if not threshold >= 0:
        raise DataError(f"the threshold is {threshold}; expected 0 or more, since steerabilities above it are divisors")
    repeated = int(table.duplicated([*by, "train_variant", "test_variant"]).sum())
    if repeated:
        raise DataError(f"{repeated} pairs occur more than once within {list(by)}; add the columns that differ to `by`")
    same = table[table["train_variant"] == table["test_variant"]][[*by, "test_variant", "steerability"]]
    joined = table.merge(same.rename(columns={"steerability": "_reference"}), on=[*by, "test_variant"], how="left")
    orphans = joined[joined["_reference"].isna()]
    if len(orphans):
        raise DataError(
            f"{len(orphans)} pairs have a test_variant on which no vector with a steerability was trained, first "
            f"{orphans[[*by, 'test_variant']].to_dict('records')[0]}; add the row whose train_variant equals it"
        )
    kept = joined[joined["_reference"] > threshold]
    found = (
        kept.assign(relative=kept["steerability"] / kept["_reference"].abs())
        .drop(columns="_reference")
        .reset_index(drop=True)
    )
    found.attrs["dropped"] = len(joined) - len(kept)
    return found


def rank_correlation(a: pd.Series, b: pd.Series, *, n_boot: int = 2000, level: float = 0.95, seed: int = 0) -> Estimate:
    """Spearman's rho of two series over their common index, with a bootstrap interval.

    Example:
        >>> table = steerability(slopes(frame), by=("behavior",)).set_index("behavior")["steerability"]
        >>> rank_correlation(table, paper_llama2().set_index("behavior")["median"])

    Args:
        a, b: numbers indexed by name, in any order; names that only one series has are left out.
        n_boot, level, seed: options of the bootstrap over names; resamples with one distinct value are left out.

    Raises:
        DataError: fewer than three common names, repeated names, NaN, a constant series, or options out of range.

    Source: Spearman (1904); Efron (1979).
    """
    if not 0 < level < 1 or n_boot < 1:
        raise DataError(f"got level={level} and n_boot={n_boot}; expected 0 < level < 1 and at least 1 resample")
    if not (a.index.is_unique and b.index.is_unique):
        raise DataError("rank_correlation needs unique names in each series; average or select repeated names first")
    joined = pd.concat([a, b], axis=1, join="inner", keys=["a", "b"])
    if len(joined) < 3:
        raise DataError(
            f"rank_correlation needs at least 3 names in common; of {len(a)} and {len(b)} there are {len(joined)}. "
            f"The first names are {list(a.index[:3])} and {list(b.index[:3])}"
        )
    pairs = joined.to_numpy(float).T
    if not np.isfinite(pairs).all() or (np.ptp(pairs, axis=1) == 0).any():
        raise DataError(
            f"rank_correlation got {int((~np.isfinite(pairs)).sum())} NaN or infinite values, or a constant series, "
            "which has no ranks; drop those names first"
        )
    drawn = pairs[:, np.random.default_rng(seed).integers(pairs.shape[1], size=(n_boot, pairs.shape[1]))]
    ranks = rankdata(drawn, axis=-1)
    ranks -= ranks.mean(-1, keepdims=True)
    scale = np.sqrt((ranks**2).sum(-1).prod(0))
    rhos = (ranks[0] * ranks[1]).sum(-1)[scale > 0] / scale[scale > 0]
    value = float(spearmanr(*pairs).statistic)
    low, high = np.quantile(rhos, [(1 - level) / 2, (1 + level) / 2]) if len(rhos) else (value, value)
    return Estimate(value, min(float(low), value), max(float(high), value), len(joined))


def match_norm(vector: Float[Tensor, " hidden"], reference: Float[Tensor, " hidden"]) -> Float[Tensor, " hidden"]:
    """The vector rescaled to the norm of another, so that one alpha has the same size for both.

    Example:
        >>> match_norm(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 0.0]))
        tensor([0.6000, 0.8000])

    Raises:
        DataError: one of them is zero or not finite.

    Source: Tan et al., arXiv 2407.12404, section 5 (variant vectors take the base vector's norm).
    """
    norm, target = vector.double().norm(), reference.double().norm()
    if not 0 < float(norm) < float("inf") or not 0 < float(target) < float("inf"):
        raise DataError(
            f"the norms are {float(norm):g} and {float(target):g}; both must be finite and above 0 to be matched. "
            "A zero vector has no direction: check the contrast it was fitted on"
        )
    return (vector.double() * (target / norm)).to(vector.dtype)
