"""The questions for professionals: complete, distinct, and silent about who they are for."""

import re
from collections import Counter

import pytest

from steerlab.data import EXPERT_KINDS, expert_questions
from steerlab.errors import DataError

NAMES = re.compile(
    r"\b(arborists?|mechanics?|dentists?|dietitians?|nutritionists?|doctors?|physicians?|electricians?|lawyers?"
    r"|attorneys?|locksmiths?|optometrists?|opticians?|pharmacists?|plumbers?|engineers?|advis[eo]rs?|accountants?"
    r"|therapists?|counselors?|psychologists?|veterinarians?|vets?|experts?|professionals?|specialists?)\b"
)


def test_sixty_distinct_questions_of_each_kind() -> None:
    questions = expert_questions()
    assert Counter(e.behavior for e in questions) == dict.fromkeys(EXPERT_KINDS, 60)
    assert len({e.id for e in questions}) == len({e.prompt.lower() for e in questions}) == 960
    assert all(e.prompt.endswith("?") and 6 <= len(e.prompt.split()) <= 32 and e.prompt.isascii() for e in questions)


def test_no_question_names_a_professional() -> None:
    assert not [e.prompt for e in expert_questions() if NAMES.search(e.prompt.lower())]


def test_kinds_are_chosen_by_name() -> None:
    assert {e.behavior for e in expert_questions(["lawyer", "plumber"])} == {"lawyer", "plumber"}
    for wrong in (["wizard"], "lawyer"):
        with pytest.raises(DataError, match="expected several of"):
            expert_questions(wrong)
