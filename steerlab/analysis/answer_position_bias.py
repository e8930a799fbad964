"""How much of the slopes depends on the letter of the wanted answer (A or B) and on its first word (Yes or No).

The answer position is that letter. A slope is how much the logit difference between the wanted and the other answer
grows with alpha, per example; steerability is the mean slope.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from steerlab.analysis.groups import check_groups, group_means
from steerlab.data.example import Example, check_examples
from steerlab.errors import DataError


def answer_position_bias(
    slopes: pd.DataFrame, examples: Sequence[Example], by: Sequence[str] | None = None
) -> pd.DataFrame:
    """How much slope variance is explained by answer position (A or B) and first word (Yes or No).

    Example:
        >>> answer_position_bias(slopes(frame), examples)[["behavior", "option", "word", "unexplained"]]

    Args:
        slopes: the frame that `steerlab.analysis.steerability.slopes` returns: a record per example and setting.
        examples: of the sweep, with `meta` holding "option" ("A" or "B") and "word" ("Yes", "No" or "").
        by: columns that make groups; by default all that tell settings apart.

    Returns:
        One row per group. Shares of the slopes' variance: `option` (explained by the letter), `word` (what the first
        word explains beyond the letter), `both`, and `unexplained`; NaN where all slopes are equal. `has_words`; `n`.
        Where an example has no word, the whole group is treated as without words: `word` is 0, `has_words` False.

    Raises:
        DataError: columns are missing, or a slope has no example with answer position and first word.

    Source: Tan et al., arXiv 2407.12404, section 4 (spurious factors), by least squares on the two indicators.
    """
    keys = check_groups(slopes, by, "answer_position_bias")
    placed = _with_positions(slopes, examples)
    rows = []
    for name, here in placed.groupby(keys, sort=False, dropna=False, observed=True):
        has_words = bool((here["word"] != "").all())
        s = here["slope"].to_numpy(float)
        option, yes = (here["option"] == "A").to_numpy(float), (here["word"] == "Yes").to_numpy(float)
        total = float(s.var())
        alone = both = float("nan")
        if total > 1e-24 * float(np.mean(s**2)):
            alone = 1 - _residual_variance(s, option) / total
            both = 1 - _residual_variance(s, option, yes) / total if has_words else alone
        shares = {"option": alone, "word": both - alone, "both": both, "unexplained": 1 - both}
        rows.append({**dict(zip(keys, name, strict=True)), **shares, "has_words": has_words, "n": len(s)})
    return pd.DataFrame(rows)


def slopes_by_answer_position(
    slopes: pd.DataFrame,
    examples: Sequence[Example],
    by: Sequence[str] | None = None,
    *,
    n_boot: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Mean slope by position and first word of the wanted answer (steerability bias).

    Example:
        >>> slopes_by_answer_position(slopes(frame), examples).pivot(index="behavior", columns=["option", "word"])

    Args:
        slopes, examples, by: as in `answer_position_bias`.
        n_boot, seed: of the bootstrap over examples.

    Returns:
        One row per group, letter (`option`) and first word (`word`): `steerability`, `low`, `high` (95 %), `n`.

    Raises:
        DataError: as `answer_position_bias`.

    Source: Tan et al., arXiv 2407.12404, section 4 (steerability bias).
    """
    keys = check_groups(slopes, by, "slopes_by_answer_position")
    placed = _with_positions(slopes, examples).sort_values(["option", "word"], kind="stable")
    found = group_means(placed, [*keys, "option", "word"], "slope", n_boot=n_boot, seed=seed)
    return found.rename(columns={"mean": "steerability"})


def _with_positions(slopes: pd.DataFrame, examples: Sequence[Example]) -> pd.DataFrame:
    """The slopes with `option` and `word` of their examples."""
    meta = {e.id: (e.meta.get("option"), e.meta.get("word", "")) for e in check_examples(examples)}
    if unknown := sorted(set(slopes["example_id"]) - meta.keys()):
        raise DataError(f"{len(unknown)} slopes have no example, first {unknown[:3]}; give the examples of the sweep")
    found = slopes["example_id"].map(meta)
    placed = slopes.assign(option=found.str[0], word=found.str[1])
    odd = placed[~placed["option"].isin(["A", "B"]) | ~placed["word"].isin(["Yes", "No", ""])]
    if len(odd):
        example_id, option, word = odd.iloc[0][["example_id", "option", "word"]]
        raise DataError(
            f"{odd['example_id'].nunique()} examples have no known answer position, first {example_id!r} with option "
            f"{option!r} and word {word!r}; expected option A or B and word Yes, No or '' in the example's meta"
        )
    return placed


def _residual_variance(s: NDArray[np.float64], *indicators: NDArray[np.float64]) -> float:
    """Variance of the residuals of a least-squares fit on indicators."""
    design = np.column_stack([np.ones(len(s)), *indicators])
    return float((s - design @ np.linalg.lstsq(design, s, rcond=None)[0]).var())
