"""Everyday questions, each for one kind of professional: a task whose wanted answer depends on the content."""

from __future__ import annotations

from collections.abc import Sequence

from steerlab._support.checks import as_options
from steerlab.data._files import BUILTIN
from steerlab.data.example import Example
from steerlab.data.jsonl import read_jsonl

# the professionals that the questions are for
EXPERT_KINDS = (
    "arborist", "car mechanic", "dentist", "dietitian", "doctor", "electrician", "IT security specialist", "lawyer",
    "locksmith", "optometrist", "pharmacist", "plumber", "structural engineer", "tax adviser", "therapist",
    "veterinarian",
)  # fmt: skip


def expert_questions(kinds: Sequence[str] = EXPERT_KINDS) -> list[Example]:
    """Sixty questions for each kind of professional, which none of them names; the kind is the behavior.

    Two readers who did not know the kinds chose the same one for 958 of the 960 questions, and for the other two
    ("pharmacist") the same one first.

    Example:
        >>> questions = expert_questions()
        >>> len(questions), questions[0].behavior
        (960, 'arborist')
        >>> len(expert_questions(["lawyer", "plumber"]))
        120

    Args:
        kinds: some of `EXPERT_KINDS`.

    Raises:
        DataError: an unknown kind.

    Source: written for steerlab.
    """
    kinds = as_options("kinds", kinds, EXPERT_KINDS)
    rows = read_jsonl(BUILTIN / "expert_questions.jsonl", id_field="id", meta_fields=("kind",))
    return [e.replace(behavior=e.meta["kind"]) for e in rows if e.meta["kind"] in kinds]
