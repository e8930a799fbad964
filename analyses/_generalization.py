"""Does steerability last? Shifted prompts, vectors of equal length, agreement of two rankings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.stats import rankdata, spearmanr
from torch import Tensor

from steerlab._support.errors import DataError, require_columns
from steerlab.metrics.bootstrap import Estimate


def relative_steerability(
    table: pd.DataFrame, threshold: float = 0.25, *, by: Sequence[str] = ("behavior",)
) -> pd.DataFrame:
    """What a vector trained on one prompt variant keeps on another, against the vector trained there.

    Example:
        >>> table = steerability(slopes(frame, by=("trained", "tested")))
        >>> relative_steerability(table).pivot(index="trained", columns="tested", values="relative")

    Args:
        table: `trained`, `tested` and `steerability`, one row per pair, and the columns of `by`.
        threshold: pairs whose own vector, trained where it is tested, steers no more than this are dropped.
        by: what else tells rows apart.

    Returns:
        The remaining rows with `relative`, 1 where `trained` equals `tested`; `attrs["dropped"]` counts the others.

    Raises:
        DataError: columns are missing, a pair occurs twice, `tested` has no vector of its own, or a threshold below 0.

    Source: Tan et al., arXiv 2407.12404, section 5; ratio and threshold of the released code.
    """
    require_columns(table, [*by, "train_variant", "test_variant", "steerability"], "relative_steerability")
    if not threshold >= 0:
        raise DataError(f"the threshold is {threshold}; expected 0 or more, since the ratio divides by what exceeds it")
    twice = int(table.duplicated([*by, "train_variant", "test_variant"]).sum())
    if twice:
        raise DataError(f"{twice} pairs occur more than once within {list(by)}; name what differs in `by`")
    same = table[table["train_variant"] == table["test_variant"]][[*by, "test_variant", "steerability"]]
    joined = table.merge(same.rename(columns={"steerability": "_own"}), on=[*by, "test_variant"], how="left")
    orphans = joined[joined["_own"].isna()]
    if len(orphans):
        raise DataError(
            f"{len(orphans)} pairs are tested where no vector with a steerability was trained, first "
            f"{orphans[[*by, 'test_variant']].to_dict('records')[0]}; add the row where both are equal"
        )
    kept = joined[joined["_own"] > threshold]
    found = kept.assign(relative=kept["steerability"] / kept["_own"].abs()).drop(columns="_own").reset_index(drop=True)
    found.attrs["dropped"] = len(joined) - len(kept)
    return found


def rank_correlation(a: pd.Series, b: pd.Series, *, n_boot: int = 2000, level: float = 0.95, seed: int = 0) -> Estimate:
    """Spearman's rho of two series over the index they share, with its bootstrap interval.

    Example:
        >>> own = steerability(slopes(frame), by=("behavior",)).set_index("behavior")["steerability"]
        >>> rank_correlation(own, paper_llama2().set_index("behavior")["median"])

    Args:
        a, b: numbers under the same names, in any order; names in one alone are left out.
        n_boot, level, seed: of the bootstrap over names; resamples that hold one value only are left out.

    Raises:
        DataError: fewer than three common names, repeated names, NaN, a series of one value, or options out of range.

    Source: Spearman (1904); Efron (1979).
    """
    if not 0 < level < 1 or n_boot < 1:
        raise DataError(f"got level={level} and n_boot={n_boot}; expected 0 < level < 1 and at least 1 resample")
    if not (a.index.is_unique and b.index.is_unique):
        raise DataError("rank_correlation needs every name once in each series; average or select the repeats first")
    joined = pd.concat([a, b], axis=1, join="inner", keys=["a", "b"])
    if len(joined) < 3:
        raise DataError(
            f"rank_correlation needs at least 3 names in common; of {len(a)} and {len(b)} there are {len(joined)}. "
            f"The first names are {list(a.index[:3])} and {list(b.index[:3])}"
        )
    pairs = joined.to_numpy(float).T
    if not np.isfinite(pairs).all() or (np.ptp(pairs, axis=1) == 0).any():
        raise DataError(
            f"rank_correlation got {int((~np.isfinite(pairs)).sum())} NaN or infinite values, or a series of one value "
            "only, which has no ranks; drop or repair those names first"
        )
    drawn = pairs[:, np.random.default_rng(seed).integers(pairs.shape[1], size=(n_boot, pairs.shape[1]))]
    ranks = rankdata(drawn, axis=-1)
    ranks -= ranks.mean(-1, keepdims=True)
    spread = np.sqrt((ranks**2).sum(-1).prod(0))
    rhos = (ranks[0] * ranks[1]).sum(-1)[spread > 0] / spread[spread > 0]
    value = float(spearmanr(*pairs).statistic)
    low, high = np.quantile(rhos, [(1 - level) / 2, (1 + level) / 2]) if len(rhos) else (value, value)
    return Estimate(value, min(float(low), value), max(float(high), value), len(joined))


def match_norm(vector: Float[Tensor, " hidden"], reference: Float[Tensor, " hidden"]) -> Float[Tensor, " hidden"]:
    """The vector at the length of another, so that one alpha means the same for both.

    Example:
        >>> match_norm(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 0.0]))
        tensor([0.6000, 0.8000])

    Raises:
        DataError: one of them is zero or not finite.

    Source: Tan et al., arXiv 2407.12404, section 5 (variant vectors take the base vector's norm).
    """
    have, want = vector.double().norm(), reference.double().norm()
    if not 0 < float(have) < float("inf") or not 0 < float(want) < float("inf"):
        raise DataError(
            f"the norms are {float(have):g} and {float(want):g}; both must be finite and above 0 to be matched. "
            "A zero vector has no direction: check the contrast it was fitted on"
        )
    return (vector.double() * (want / have)).to(vector.dtype)
