"""Yes or no from the logits of the first answer token, without generating."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray

from steerlab._support.checks import as_whole, check_type, show
from steerlab.errors import DataError


@dataclass(frozen=True)
class YesNo:
    """Yes/no answers read from logits.

    Example:
        >>> found = yes_no_logits(logits, *yes_no_ids(model.tokenizer))
        >>> pope_scores(gold, found.answers).accuracy

    Attributes:
        answers: "yes" or "no" per row, as `pope_scores` takes them: the likelier of the two.
        margin: `(n,)`, log of the probability of all yes-tokens over that of all no-tokens; above 0 is a yes.
        neither: `(n,)`, whether another token is likelier than every yes- and no-token.
    """

    answers: list[str]
    margin: NDArray[np.float64]
    neither: NDArray[np.bool_]

    @property
    def parse_failures(self) -> int:
        """Number of rows whose likeliest token is neither yes nor no."""
        return int(self.neither.sum())


def yes_no_ids(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids of the single tokens that say yes and of those that say no.

    Example:
        >>> yes, no = yes_no_ids(model.tokenizer)                                           # doctest: +SKIP

    Args:
        tokenizer: of the model; "yes", "Yes" and "YES" are looked up, with and without a space before. A variant of
            several tokens is left out, because its first token may begin other words.

    Returns:
        Two disjoint tuples of ids, in ascending order.

    Raises:
        DataError: one of the two words is not a single token in any variant.
    """
    if not hasattr(tokenizer, "encode"):
        raise DataError(f"tokenizer={show(tokenizer)}: expected the tokenizer of the model")
    yes, no = (_single_token_ids(tokenizer, word) for word in ("yes", "no"))
    for word, ids in (("yes", yes - no), ("no", no - yes)):
        if not ids:
            raise DataError(
                f"the tokenizer has no single token for {word!r} in any spelling; give the ids of the first tokens of "
                "the two answers to yes_no_logits yourself, or generate and use pope_scores"
            )
    return tuple(sorted(yes - no)), tuple(sorted(no - yes))


def yes_no_logits(logits: Float[torch.Tensor, "n vocabulary"], yes: Sequence[int], no: Sequence[int]) -> YesNo:
    """The likelier of yes and no, from the logits of the first answer token.

    Example:
        >>> yes_no_logits(torch.tensor([[2.0, 1.0, 5.0], [0.0, 3.0, 0.0]]), yes=[0], no=[1]).answers
        ['yes', 'no']

    Args:
        logits: one row per question, at the last token of the prompt; they need not be normalized. Columns that are
            neither yes nor no are only used for `neither`: give the whole vocabulary, or one column with the maximum
            of the others, as `next_token_logits(..., [*yes, *no], max_other=True)` does.
        yes, no: token ids, from `yes_no_ids`, or the columns that hold them; the probabilities of the variants are
            added.

    Returns:
        The answers, their margins and the rows that say neither. A margin of exactly 0 is a no: POPE's positive class
        is yes.

    Raises:
        DataError: no rows, no ids, an id outside the vocabulary or on both sides, or logits that are NaN or +inf.
    """
    _check(logits, yes, no)
    exact = logits.detach().to("cpu", torch.float64)
    sides = [torch.logsumexp(exact[:, list(dict.fromkeys(ids))], dim=1) for ids in (yes, no)]
    margin = (sides[0] - sides[1]).numpy()
    if np.isnan(margin).any():
        raise DataError("every yes- and no-token of a row is impossible (-inf): there is no answer to read")
    others = exact.clone()
    others[:, [*yes, *no]] = -torch.inf
    neither = (others.amax(1) > exact[:, [*yes, *no]].amax(1)).numpy()
    return YesNo(["yes" if value > 0 else "no" for value in margin], margin, neither)


def _single_token_ids(tokenizer: Any, word: str) -> set[int]:
    variants = [f"{space}{w}" for w in (word, word.title(), word.upper()) for space in ("", " ")]
    ids = [tokenizer.encode(variant, add_special_tokens=False) for variant in variants]
    return {int(some[0]) for some in ids if len(some) == 1} - {getattr(tokenizer, "unk_token_id", None)}


def _check(logits: torch.Tensor, yes: Sequence[int], no: Sequence[int]) -> None:
    check_type("logits", logits, torch.Tensor, "a tensor (question, vocabulary)")
    for i in (*yes, *no):
        as_whole("yes, no: an id", i, None)
    if logits.ndim != 2 or logits.shape[0] == 0:
        raise DataError(f"yes_no_logits got shape {tuple(logits.shape)}; expected one row of logits per question")
    if not yes or not no or set(yes) & set(no):
        raise DataError(f"yes_no_logits got the ids {list(yes)} and {list(no)}; expected some for each, none for both")
    ids, width = [*yes, *no], logits.shape[1]
    if outside := [i for i in ids if not 0 <= i < width]:
        raise DataError(f"the ids {outside} are outside the {width} logits; take ids from the same model's tokenizer")
    if bool((torch.isnan(logits[:, ids]) | (logits[:, ids] == torch.inf)).any()):
        raise DataError("the logits of yes and no are NaN or infinite in some rows; check the forward that made them")
