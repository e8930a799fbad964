"""Questions from cities: complete, distinct, and without a test city or question in the training part."""

from collections import Counter

import pytest

from steerlab.data import PLACE_LANGUAGES, place_questions
from steerlab.errors import DataError
from steerlab.metrics import find_language


def test_sixty_questions_of_each_language_in_three_parts() -> None:
    rows = place_questions()
    assert Counter(e.behavior for e in rows) == dict.fromkeys(PLACE_LANGUAGES, 60)
    assert len({e.id for e in rows}) == len({e.prompt for e in rows}) == 960 and all(e.prompt.isascii() for e in rows)
    assert Counter(e.split for e in rows) == {"train": 16 * 35, "validation": 16 * 10, "test": 16 * 15}
    for key in ("city", "question"):
        parts = [{e.meta[key] for e in rows if e.split == split} for split in ("train", "validation", "test")]
        assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
        assert all(e.meta[key] in e.prompt for e in rows)
    assert len({e.meta["city"] for e in rows}) == 16 * 12


def test_questions_of_all_languages_are_the_same_and_only_the_city_differs() -> None:
    by_language = {
        name: [e.prompt.replace(e.meta["city"], "X") for e in place_questions([name])] for name in PLACE_LANGUAGES
    }
    assert len({tuple(prompts) for prompts in by_language.values()}) == 1


def test_contrasts_are_in_the_language_and_in_english() -> None:
    codes = ["en", *PLACE_LANGUAGES.values()]
    for name, code in PLACE_LANGUAGES.items():
        (contrast,) = {e.contrast for e in place_questions([name])}
        assert contrast and find_language(contrast.positive, codes) == code, name
        assert find_language(contrast.negative, codes) == "en"


@pytest.mark.parametrize("wrong", [["Elvish"], "Spanish"])
def test_unknown_languages_are_refused(wrong: object) -> None:
    with pytest.raises(DataError, match="expected several of"):
        place_questions(wrong)  # type: ignore[arg-type]
