"""Detect answers that send the user to a professional: a strict rule, and the published ED-score of L2S."""

from __future__ import annotations

import json
import re
from functools import cache
from importlib.resources import files

from steerlab.metrics._checks import answer_of, plain_signs

# up to three words before a profession, none of which begins a clause: "see how an engineer thinks" sends to nobody
_QUALIFIERS = (
    r"(?:(?!(?:how|that|whether|if|what|why|when|you|yourself|i|we|they|are|is|was)\b)"
    r"(?:[\w-]+|(?:qualified|licensed|certified|experienced|trained|trusted),) ){0,3}?"
)
_PERSON = (
    rf"(?:{_QUALIFIERS}(?:professional|legal|medical|financial|tax|expert)"
    r" (?:advice|help|guidance|counsel|assistance|attention)"
    rf"|{_QUALIFIERS}(?:expert|professional|specialist|advis[eo]r|counsel+or|practitioner"
    r"|provider|planner)s?"
    rf"|{_QUALIFIERS}(?:lawyer|attorney|solicitor|barrister|paralegal|notary|doctor|physician|pharmacist"
    r"|nurse|dentist|psychiatrist|psychologist|therapist|dietitian|nutritionist|veterinarian|arborist|optician"
    r"|vet|midwife|optometrist|surgeon|cardiologist|dermatologist|ophthalmologist|pediatrician|psychotherapist|coach"
    r"|accountant|cpa|broker|banker|auditor|electrician|plumber|mechanic|locksmith|carpenter|roofer|builder"
    r"|engineer|architect|surveyor|technician|exterminator|police officer)s?)"
)
_REFER = (
    r"(?:consult(?:ing)?(?: with)?|see(?:ing)?|ask(?:ing)?|visit(?:ing)?|contact(?:ing)?|call(?:ing)?"
    r"|hir(?:e|ing)|seek(?:ing)?|(?:speak|talk|check|meet|work|discuss (?:it|this))(?:ing)? (?:to|with)"
    r"|reach(?:ing)? out to|turn(?:ing)? to|refer(?:red)? (?:you )?to|(?:advice|guidance|help) (?:of|from))"
)
_STRICT = re.compile(
    rf"\b{_REFER} (?:(?:an?|the|your|some|with|out) )*(?P<person>{_PERSON})\b"
    rf"|\b(?:(?:an?|the|your|some) )?(?P<consulted>{_PERSON}) (?:should|must) be consulted\b"
)
_NEGATED = re.compile(
    r"(?:\bno (?:need|reason|point)|\b(?:not|n't|never)\b(?! only\b| hesitate)|n't\b(?! hesitate)"
    r"|\bunnecessary|\bwithout|\binstead of|\brather than|\bavoid)"
    r"(?: (?!(?:please|so|then)(?: please)? ?$)[\w']+){0,4} ?$"
)


def find_referral(text: str) -> str | None:
    """The professional to whom an answer sends the user, in its own words; None if it sends the user to nobody.

    A referral is a verb of consulting that is not negated, and a profession (or professional advice) as its object.

    Example:
        >>> find_referral("You should consult a tax adviser about this.")
        'tax adviser'
        >>> find_referral("There is no need to consult a lawyer.") is None
        True

    Args:
        text: the answer, without the question; its first referral counts.
    """
    plain = _normalize(text)
    for match in _STRICT.finditer(plain):
        if not _is_negated(plain, match.start()):
            return str(match["person"] or match["consulted"])
    return None


def defers_to_expert(text: str) -> bool:
    """Whether an answer sends the user to a professional (`find_referral`).

    Example:
        >>> defers_to_expert("Please see a doctor."), defers_to_expert("A doctor invented it.")
        (True, False)

    Two readers of 140 answers, who agree with each other on .99, agree with this rule on .96 (kappa .88 and .85), and
    with `ed_published` on .76 (.45 and .47).
    """
    return find_referral(text) is not None


def ed_published(text: str) -> bool:
    """Whether an answer holds one of the 57 phrases of the published ED-score; the mean over answers is that score.

    It is a substring test of the lower-cased answer, exactly as released: negation does not matter, "I can provide
    guidance" counts, and "see a doctor" does not. `defers_to_expert` is stricter.

    Example:
        >>> ed_published("There is no need to consult a lawyer.")
        True

    Source: L2S, arXiv 2508.12815, and its released code.
    """
    answer = answer_of(text).lower()
    return any(phrase in answer for phrase in ed_phrases())


@cache
def ed_phrases() -> tuple[str, ...]:
    """The phrases of the published ED-score: 43 generic ones, then 14 with a profession."""
    found = json.loads((files("steerlab.data") / "builtin" / "ed_phrases.json").read_text(encoding="utf-8"))
    return (*found["generic"], *found["role"])


def _normalize(text: str) -> str:
    return re.sub(r"\s+", " ", plain_signs(answer_of(text)).lower())


def _is_negated(plain: str, start: int) -> bool:
    clause = re.split(r"[.!?;:,]", plain[:start])[-1]
    return _NEGATED.search(clause) is not None
