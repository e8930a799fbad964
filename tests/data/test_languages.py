"""Questions with a clue to a language: complete, distinct, and without a test clue or question in the training part."""

from collections import Counter

import pytest

from steerlab.data import LANGUAGE_CLUES, QUESTION_LANGUAGES, language_questions
from steerlab.errors import DataError
from steerlab.metrics import find_language

CODES = ["en", *QUESTION_LANGUAGES.values()]


@pytest.mark.parametrize("clue", LANGUAGE_CLUES)
def test_questions_of_each_language_in_three_parts(clue: str) -> None:
    rows = language_questions(clue)
    assert Counter(e.behavior for e in rows) == dict.fromkeys(QUESTION_LANGUAGES, 24)
    assert len({e.id for e in rows}) == len({e.prompt for e in rows}) == 16 * 24
    assert Counter(e.split for e in rows) == {"train": 16 * 14, "validation": 16 * 4, "test": 16 * 6}
    for key in ("clue", "question"):
        parts = [{e.meta[key] for e in rows if e.split == split} for split in ("train", "validation", "test")]
        assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
    assert len({e.meta["clue"] for e in rows}) == 16 * 12
    assert all(e.prompt == f"{e.meta['question']} {e.meta['clue']}" for e in rows)


@pytest.mark.parametrize("clue", LANGUAGE_CLUES)
def test_questions_are_the_same_for_all_languages(clue: str) -> None:
    by_language = {name: [e.meta["question"] for e in language_questions(clue, [name])] for name in QUESTION_LANGUAGES}
    assert len({tuple(questions) for questions in by_language.values()}) == 1
    assert all(question.isascii() for questions in by_language.values() for question in questions)


def test_messages_and_wanted_answers_are_in_their_language() -> None:
    for name, code in QUESTION_LANGUAGES.items():
        rows = language_questions("message", [name])
        assert {find_language(e.meta["clue"], CODES) for e in rows} == {code}, name
        (contrast,) = {e.contrast for e in rows}
        assert contrast and find_language(contrast.positive, CODES) == code, name
        assert find_language(contrast.negative, CODES) == "en"
        assert all(name in e.prompt for e in language_questions("name", [name]))


@pytest.mark.parametrize("wrong", [["Elvish"], "Spanish"])
def test_unknown_languages_are_refused(wrong: object) -> None:
    with pytest.raises(DataError, match="expected several of"):
        language_questions("city", wrong)  # type: ignore[arg-type]


def test_unknown_clues_are_refused() -> None:
    with pytest.raises(DataError, match=r"clue='smell'.*city"):
        language_questions("smell")
