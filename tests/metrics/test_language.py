"""The language of short answers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steerlab.errors import DataError
from steerlab.metrics import find_language

CODES = ["en", "es", "pt", "it", "de", "nl", "pl", "ru", "ja", "zh"]
SENTENCES = {
    "en": "Keep it in a cool and dry place.", "es": "Hay que guardarlo en un lugar fresco y seco.",
    "de": "Man muss es an einem trockenen Ort aufbewahren.", "nl": "Je moet het op een droge plaats bewaren.",
    "pl": "Trzeba to przechowywać w suchym miejscu.", "ru": "Его нужно хранить в сухом месте.",
    "ja": "乾いた場所に保管してください。", "zh": "请把它放在干燥的地方。",
}  # fmt: skip


@pytest.mark.parametrize("code", SENTENCES)
def test_a_sentence_is_enough(code: str) -> None:
    assert find_language(SENTENCES[code], CODES) == code
    assert find_language(SENTENCES[code], [c for c in CODES if c != code]) != code


def test_each_set_of_languages_has_its_own_classifier() -> None:
    assert find_language(SENTENCES["es"], ["pt", "en"]) == "pt" and find_language(SENTENCES["es"], ["es", "en"]) == "es"


@given(st.text(max_size=40))
def test_any_text_has_one_of_the_languages_or_none(text: str) -> None:
    assert find_language(text, CODES) in (None, *CODES)


def test_text_without_letters_has_no_language_and_unknown_languages_are_refused() -> None:
    assert find_language(" 12 ... ?", CODES) is None and find_language("", CODES) is None
    for codes in (["en"], ["en", "xx"], []):
        with pytest.raises(DataError, match="at least two of"):
            find_language("a sentence", codes)
