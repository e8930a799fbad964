"""Exact match of the last number in an answer, as in GSM8K."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal

from steerlab._support.checks import as_text, as_texts
from steerlab.errors import DataError

# neither an exponent, a second decimal point nor a full stop after the number belongs to it
_NUMBER = re.compile(r"(?<![\w.])[-−]?\$?\d[\d,]*(?:\.\d+)?(?![\w])")


def final_number(text: str) -> Decimal | None:
    """The last number in a text, or None.

    Example:
        >>> final_number("They raise 750 + 1,530 = $2,280.")
        Decimal('2280')

    Args:
        text: an answer; thousands separators, a dollar sign and a percent sign are understood.

    Source: GSM8K, arXiv 2110.14168, marks the number in its solutions; models seldom do.
    """
    found = _NUMBER.findall(as_text(text))
    return Decimal(found[-1].replace("−", "-").translate({ord("$"): None, ord(","): None})) if found else None


def exact_match(texts: Sequence[str], answers: Sequence[str]) -> list[float]:
    """1 for every text whose last number equals the reference answer, else 0.

    Example:
        >>> exact_match(["That makes 12.", "I don't know."], ["12", "7"])
        [1.0, 0.0]

    Args:
        texts: one model answer per problem.
        answers: the reference numbers, as texts.

    Raises:
        DataError: not one text per problem, or a reference answer without a number.

    Source: exact match of GSM8K, arXiv 2110.14168.
    """
    texts, answers = as_texts("texts", texts), as_texts("answers", answers)
    if len(texts) != len(answers):
        raise DataError(f"{len(texts)} texts but {len(answers)} answers: give one text per problem, in a list")
    wanted = [final_number(answer) for answer in answers]
    bad = [answer for answer, number in zip(answers, wanted, strict=True) if number is None]
    if bad:
        raise DataError(f"the reference answers {bad[:3]} contain no number to compare with")
    return [float(final_number(text) == number) for text, number in zip(texts, wanted, strict=True)]
