"""Yes or no from the logits of the first answer token, without generating."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray

from steerlab._support.errors import DataError


@dataclass(frozen=True)
class YesNo:
    """Answers read from logits.

    Attributes:
        answers: "yes" or "no" per row, as `pope_scores` takes them: the likelier of the two, whatever else is likely.
        margin: `(n,)`, log of the probability of all yes-tokens over that of all no-tokens; above 0 is a yes.
        other: `(n,)`, whether another token is likelier than each of theirs, so that the model is about to say neither.
    """

    answers: list[str]
    margin: NDArray[np.float64]
    other: NDArray[np.bool_]

    @property
    def parse_failures(self) -> int:
        """How many rows begin with something else than yes or no."""
        return int(self.other.sum())


def yes_no_ids(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids of the single tokens that say yes and of those that say no.

    Example:
        >>> yes, no = yes_no_ids(model.tokenizer)                                           # doctest: +SKIP

    Args:
        tokenizer: of the model; "yes", "Yes" and "YES" are looked up, with and without a blank before. A variant of
            several tokens is left out: its first token may begin other words.

    Returns:
        Two tuples of ids, in ascending order, without an id in common.

    Raises:
        DataError: one of the two words is no single token in any variant.

    Source: own.
    """
    yes, no = (_single(tokenizer, word) for word in ("yes", "no"))
    for word, ids in (("yes", yes - no), ("no", no - yes)):
        if not ids:
            raise DataError(
                f"the tokenizer has no single token for {word!r} in any spelling; give the ids of the first tokens of "
                "the two answers to yes_no_logits yourself, or generate and use pope_scores"
            )
    return tuple(sorted(yes - no)), tuple(sorted(no - yes))


def yes_no_logits(logits: Float[torch.Tensor, "n vocabulary"], yes: Sequence[int], no: Sequence[int]) -> YesNo:
    """The answer a model leans to, from its logits for the first token of the answer.

    Example:
        >>> yes_no_logits(torch.tensor([[2.0, 1.0, 5.0], [0.0, 3.0, 0.0]]), yes=[0], no=[1]).answers
        ['yes', 'no']

    Args:
        logits: one row per question, at the last token of the prompt; not yet normalized is fine. Columns that are
            neither yes nor no are only looked at for `other`: give the whole vocabulary, or one column with the largest
            of the rest, as `next_token_logits(..., [*yes, *no], rest=True)` does; without any, no row counts as
            `other`.
        yes, no: token ids, from `yes_no_ids`, or the columns that hold them; the probabilities of the variants are
            added up.

    Returns:
        The answers, the margins and who says neither. A margin of exactly 0 is a no: POPE's positive class is yes.

    Raises:
        DataError: no rows, no ids, an id outside the vocabulary or on both sides, or logits that are NaN or +inf.

    Source: own.
    """
    _check(logits, yes, no)
    exact = logits.detach().to("cpu", torch.float64)
    sides = [torch.logsumexp(exact[:, list(dict.fromkeys(ids))], dim=1) for ids in (yes, no)]
    margin = (sides[0] - sides[1]).numpy()
    if np.isnan(margin).any():
        raise DataError("a row has neither a yes- nor a no-token that is possible (all are -inf): no answer to read")
    asked = list({*yes, *no})
    beside = torch.ones(exact.shape[1], dtype=torch.bool)
    beside[asked] = False
    rest = exact[:, beside].amax(1) if bool(beside.any()) else torch.full((len(exact),), -torch.inf)
    other = (rest > exact[:, asked].amax(1)).numpy()
    return YesNo(answers=["yes" if value > 0 else "no" for value in margin], margin=margin, other=other)


def _single(tokenizer: Any, word: str) -> set[int]:
    found: set[int] = set()
    for spelling in (word, word.title(), word.upper()):
        for variant in (spelling, f" {spelling}"):
            ids = tokenizer.encode(variant, add_special_tokens=False)
            if len(ids) == 1 and ids[0] != getattr(tokenizer, "unk_token_id", None):
                found.add(int(ids[0]))
    return found


def _check(logits: torch.Tensor, yes: Sequence[int], no: Sequence[int]) -> None:
    if logits.ndim != 2 or logits.shape[0] == 0:
        raise DataError(f"yes_no_logits got shape {tuple(logits.shape)}; expected one row of logits per question")
    if not yes or not no or set(yes) & set(no):
        raise DataError(f"yes_no_logits got the ids {list(yes)} and {list(no)}; expected some for each, none for both")
    width = logits.shape[1]
    outside = [i for i in (*yes, *no) if not 0 <= i < width]
    if outside:
        raise DataError(f"the ids {outside} are outside the {width} logits; take ids from the same model's tokenizer")
    wanted = logits[:, [*yes, *no]]
    if bool(torch.isnan(wanted).any()) or bool((wanted == torch.inf).any()):
        raise DataError("the logits of yes and no are NaN or infinite in some rows; look at the forward that made them")
