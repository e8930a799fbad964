"""Questions in English that hold a clue to another language, in which they are to be answered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from steerlab._support.checks import as_options, check_option
from steerlab.data._files import BUILTIN, read_object
from steerlab.data.example import Contrast, Example

# the languages of the clues, with their codes
QUESTION_LANGUAGES = {  # ISO 639-1 codes by name
    "Arabic": "ar", "Chinese": "zh", "Dutch": "nl", "French": "fr", "German": "de", "Indonesian": "id", "Italian": "it",
    "Japanese": "ja", "Korean": "ko", "Polish": "pl", "Portuguese": "pt", "Russian": "ru", "Spanish": "es",
    "Thai": "th", "Turkish": "tr", "Vietnamese": "vi",
}  # fmt: skip
# what may tell the language: a message in it, its name, or a city where it is spoken
LANGUAGE_CLUES = ("message", "name", "city")
SPLITS = ("train",) * 7 + ("validation",) * 2 + ("test",) * 3  # of the twelve clues to a language
REPEATS = 2  # questions to each clue


def language_questions(clue: str, languages: Sequence[str] = tuple(QUESTION_LANGUAGES)) -> list[Example]:
    """24 questions in English for each language, which end with a clue to it and are to be answered in it.

    The clue is a "message" in the language, its "name", or a "city" where it is spoken. The language is the behavior.
    There are twelve clues to each; neither the clues nor the questions of the test part are in the training part.
    Messages say nearly the same in all languages, without final punctuation. The contrast is a sentence
    that announces an answer, in the language and in English.

    Example:
        >>> rows = language_questions("city", ["Spanish", "Thai"])
        >>> len(rows), rows[0].behavior, rows[0].split, rows[0].prompt
        (48, 'Spanish', 'train', 'How can I keep bread fresh for longer? I live in Madrid.')
        >>> language_questions("message", ["French"])[-1].prompt[:50]
        'What should happen after this new message? "Nous a'

    Args:
        clue: one of `LANGUAGE_CLUES`.
        languages: some of `QUESTION_LANGUAGES`.

    Raises:
        DataError: an unknown clue or language.

    Source: written for steerlab.
    """
    check_option("clue", clue, LANGUAGE_CLUES)
    languages = as_options("languages", languages, QUESTION_LANGUAGES)
    found = read_object(BUILTIN / "language_questions.json")
    questions = found["about" if clue == "message" else "everyday"]
    share = len(questions) // len(SPLITS)
    parts = {name: questions[share * SPLITS.index(name) :][: share * SPLITS.count(name)] for name in set(SPLITS)}
    examples = []
    for language in languages:
        contrast = Contrast(found["languages"][language]["answer"], found["english"])
        for i, (text, split) in enumerate(zip(_clues(found, clue, language), SPLITS, strict=True)):
            for j in range(REPEATS):
                question = parts[split][(REPEATS * i + j) % len(parts[split])]
                name = f"{clue}/{QUESTION_LANGUAGES[language]}/{i}-{j}"
                labels = {"clue": text, "question": question}
                row = Example(f"{question} {text}", contrast, id=name, behavior=language, split=split, meta=labels)
                examples.append(row)
    return examples


def _clues(found: dict[str, Any], clue: str, language: str) -> list[str]:
    """The twelve texts that end the questions."""
    if clue == "name":
        return [frame.format(language=language) for frame in found["name"]]
    if clue == "city":
        cities, frames = found["languages"][language]["cities"], found["city"]
        return [frames[i % len(frames)].format(city=city) for i, city in enumerate(cities)]
    return [f'"{message}"' for message in found["languages"][language]["messages"]]
