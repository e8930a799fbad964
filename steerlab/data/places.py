"""Everyday questions from cities, to be answered in the language spoken there: a wanted answer of many values."""

from __future__ import annotations

import json
from collections.abc import Sequence

from steerlab._support.checks import check_options
from steerlab.data._files import BUILTIN
from steerlab.data.example import Contrast, Example

PLACE_LANGUAGES = {  # ISO 639-1 codes by name
    "Arabic": "ar", "Chinese": "zh", "Dutch": "nl", "French": "fr", "German": "de", "Indonesian": "id", "Italian": "it",
    "Japanese": "ja", "Korean": "ko", "Polish": "pl", "Portuguese": "pt", "Russian": "ru", "Spanish": "es",
    "Thai": "th", "Turkish": "tr", "Vietnamese": "vi",
}  # fmt: skip
SPLITS = ("train",) * 7 + ("validation",) * 2 + ("test",) * 3  # of the cities of a language, and of their questions


def place_questions(languages: Sequence[str] = tuple(PLACE_LANGUAGES)) -> list[Example]:
    """Sixty questions in English for each language, from cities where it is spoken; the language is the behavior.

    Wanted is an answer in that language. One vector can't give it for all of them; a vector for each language has to
    know the city. Of the twelve cities of a language, and of the questions, those of the test part are not in the
    training part. The contrast is a sentence that announces an answer, in the language and in English.

    Example:
        >>> questions = place_questions(["Spanish", "Thai"])
        >>> len(questions), questions[0].prompt, questions[0].behavior
        (120, 'I live in Madrid. How can I keep bread fresh for longer?', 'Spanish')

    Args:
        languages: some of `PLACE_LANGUAGES`.

    Raises:
        DataError: an unknown language.

    Source: written for steerlab.
    """
    check_options("languages", languages, PLACE_LANGUAGES)
    found = json.loads((BUILTIN / "place_questions.json").read_text(encoding="utf-8"))
    examples, share = [], len(found["questions"]) // len(SPLITS)
    for name in languages:
        fields = found["languages"][name]
        contrast = Contrast(fields["answer"], found["english"])
        for c, (city, split) in enumerate(zip(fields["cities"], SPLITS, strict=True)):
            for i, question in enumerate(found["questions"][share * c : share * (c + 1)]):
                frame = found["frames"][(i + c) % len(found["frames"])]
                prompt = frame.format(city=city, question=question)
                labels = {"city": city, "question": question}
                place = f"place/{PLACE_LANGUAGES[name]}/{share * c + i}"
                examples.append(Example(prompt, contrast, id=place, behavior=name, split=split, meta=labels))
    return examples
