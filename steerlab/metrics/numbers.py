"""The number at the end of a worked answer, as in GSM8K."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal

from steerlab._support.errors import DataError

# an exponent or a second point never belongs to the number; a full stop after it does not either
_NUMBER = re.compile(r"(?<![\w.])[-−]?\$?\d[\d,]*(?:\.\d+)?(?![\w])")


def final_number(text: str) -> Decimal | None:
    """The last number in a text, or None.

    Example:
        >>> final_number("They raise 750 + 1,530 = $2,280.")
        Decimal('2280')

    Args:
        text: an answer; thousands separators, a dollar sign and a percent sign are understood.

    Source: own; GSM8K (arXiv 2110.14168) marks the number in its solutions, models seldom do.
    """
    found = _NUMBER.findall(text)
    if not found:
        return None
    return Decimal(found[-1].replace("−", "-").replace("$", "").replace(",", ""))


def exact_match(texts: Sequence[str], answers: Sequence[str]) -> list[float]:
    """For every answer 1 where its last number is the right one, and 0 otherwise.

    Example:
        >>> exact_match(["That makes 12.", "I don't know."], ["12", "7"])
        [1.0, 0.0]

    Args:
        texts: one answer per problem.
        answers: the right numbers, as texts.

    Raises:
        DataError: not one answer per problem, or a right answer without a number.

    Source: exact match of GSM8K, arXiv 2110.14168.
    """
    if isinstance(texts, str) or len(texts) != len(answers):
        raise DataError(f"{len(texts)} texts but {len(answers)} answers: give one text per problem, in a list")
    wanted = [final_number(answer) for answer in answers]
    bad = [answer for answer, number in zip(answers, wanted, strict=True) if number is None]
    if bad:
        raise DataError(f"the right answers {bad[:3]} hold no number: nothing can be compared with them")
    return [float(final_number(text) == number) for text, number in zip(texts, wanted, strict=True)]
