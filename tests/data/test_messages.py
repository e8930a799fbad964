"""Messages in many languages: complete, distinct, and without a test message or question in the training part."""

from collections import Counter

import pytest

from steerlab.data import MESSAGE_LANGUAGES, foreign_messages
from steerlab.errors import DataError
from steerlab.metrics import find_language

CODES = ["en", *MESSAGE_LANGUAGES.values()]


def test_questions_about_messages_of_each_language_in_three_parts() -> None:
    rows = foreign_messages()
    assert Counter(e.behavior for e in rows) == dict.fromkeys(MESSAGE_LANGUAGES, 62)
    assert len({e.id for e in rows}) == len({e.prompt for e in rows}) == 16 * 62
    assert Counter(e.split for e in rows) == {"train": 16 * 49, "validation": 16 * 4, "test": 16 * 9}
    for key, n in (("message", 16 * 12), ("question", 12)):
        parts = [{e.meta[key] for e in rows if e.split == split} for split in ("train", "validation", "test")]
        assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
        assert len(set.union(*parts)) == n
    assert all(e.prompt == e.meta["question"].format(message=e.meta["message"]) for e in rows)


def test_questions_are_the_same_for_all_languages() -> None:
    by_language = {name: [e.meta["question"] for e in foreign_messages([name])] for name in MESSAGE_LANGUAGES}
    assert len({tuple(questions) for questions in by_language.values()}) == 1
    assert all(question.isascii() for questions in by_language.values() for question in questions)


def test_messages_and_wanted_answers_are_in_their_language() -> None:
    for name, code in MESSAGE_LANGUAGES.items():
        rows = foreign_messages([name])
        assert {find_language(e.meta["message"], CODES) for e in rows} == {code}, name
        (contrast,) = {e.contrast for e in rows}
        assert contrast and find_language(contrast.positive, CODES) == code, name
        assert find_language(contrast.negative, CODES) == "en"


@pytest.mark.parametrize("wrong", [["Elvish"], "Spanish"])
def test_unknown_languages_are_refused(wrong: object) -> None:
    with pytest.raises(DataError, match="expected several of"):
        foreign_messages(wrong)  # type: ignore[arg-type]
