"""Exact match of the last number in an answer, as in GSM8K."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal

from steerlab._support.checks import as_texts
from steerlab.errors import DataError
from steerlab.metrics._checks import answer_of

# a unit may follow without a space; `rest` is what makes a version or a date of a number
_NUMBER = re.compile(
    r"(?<![\w.])(?P<sign>[-−–]?)(?P<money>\$?)(?P<digits>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
    r"(?P<power>[eE][+-]?\d+)?(?P<rest>\.\d[\d.]*)?(?P<unit>[^\W\d_]*)"
)
_SEPARATOR = re.compile(r"\{,\}|,\\!|\\[,!]|(?<=\d)[\u00a0\u2009\u202f](?=\d{3})")  # of thousands: 1{,}000 in LaTeX
_FRACTION = re.compile(r"\\[dtc]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_SPACED = re.compile(r"(?<![\w.,])\d{1,3}(?:\\? \d{3})*\\? \Z")  # 1 000, before its last three digits
_IN_WORDS = re.compile(r"\s+(?:thousand|million|billion|trillion)\b")
_UNIT_POWER = re.compile(r"(?<=[A-Za-z}])\^\{?[-−]?\d+\}?")  # ft^2
_ORDINALS = {"st", "nd", "rd", "th"}
_FACTORS, _MONEY_FACTORS = {"k", "K", "M", "B", "bn", "mn"}, {"m", "b"}  # 20k is not 20, and 5m are millions after $


def final_number(text: str) -> Decimal | None:
    """The last number in a text; None without one, or where the last can't be read: 20k, 1.2.3, 2^10, 5/2, 1 000, 12,5.

    Example:
        >>> final_number("They raise 750 + 1,530 = $2,280.")
        Decimal('2280')

    Args:
        text: an answer; thousands separators (also of LaTeX), exponents, a dollar or percent sign and units are
            understood, and ordinals (3rd) are passed over.

    Source: GSM8K, arXiv 2110.14168, marks the number in its solutions; models seldom do.
    """
    text = _FRACTION.sub(r"\1/\2", _SEPARATOR.sub(",", _UNIT_POWER.sub("", answer_of(text))))
    found = [one for one in _NUMBER.finditer(text) if one["unit"] not in _ORDINALS]
    if not found:
        return None
    last = found[-1]
    before, unit = text[: last.start()], last["unit"]
    is_part = before.rstrip("{ ").endswith(("^", "/", "⁄", "\\sqrt")) or unit[:1].isnumeric()  # 2^10, 5/2, 10³
    is_part = is_part or _IN_WORDS.match(text, last.end()) or (len(last["digits"]) == 3 and _SPACED.search(before))
    bare = not last["sign"] + last["money"]
    part = r"(?<!\d)\d{1,2}(?:,\d{2})*,\Z" if "," in last["digits"] else r"(?<![\d,])\d+,\Z|(?<!\w)[012]?\d:\Z"
    is_part = is_part or (bare and re.search(part, before))  # 12,34,567, and 12,5 or 12:30
    if is_part or last["rest"] or unit in _FACTORS or (last["money"] and unit in _MONEY_FACTORS):
        return None
    number = last["sign"] + last["digits"] + (last["power"] or "")
    return Decimal(re.sub("[−–]", "-", number).replace(",", ""))


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
    if bad := [answer for answer, number in zip(answers, wanted, strict=True) if number is None]:
        raise DataError(f"the reference answers {bad[:3]} contain no number to compare with")
    return [float(final_number(text) == number) for text, number in zip(texts, wanted, strict=True)]
