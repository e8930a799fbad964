"""Messages in many languages with questions about them in English, to be answered in the message's language."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import product

from steerlab._support.checks import check_options
from steerlab.data._files import BUILTIN
from steerlab.data.example import Contrast, Example

MESSAGE_LANGUAGES = {  # ISO 639-1 codes by name
    "Arabic": "ar", "Chinese": "zh", "Dutch": "nl", "French": "fr", "German": "de", "Indonesian": "id", "Italian": "it",
    "Japanese": "ja", "Korean": "ko", "Polish": "pl", "Portuguese": "pt", "Russian": "ru", "Spanish": "es",
    "Thai": "th", "Turkish": "tr", "Vietnamese": "vi",
}  # fmt: skip
SPLITS = ("train",) * 7 + ("validation",) * 2 + ("test",) * 3  # of the messages, and of the questions about them


def foreign_messages(languages: Sequence[str] = tuple(MESSAGE_LANGUAGES)) -> list[Example]:
    """62 questions in English about twelve messages in each language, to be answered in the language of the message.

    The language is the behavior. One vector can't give an answer in all of them. The twelve messages say the same in
    every language; neither the messages nor the questions of the test part are in the training part. The contrast is
    a sentence that announces an answer, in the message's language and in English.

    Example:
        >>> rows = foreign_messages(["Spanish", "Thai"])
        >>> len(rows), rows[0].behavior, rows[0].split
        (124, 'Spanish', 'train')
        >>> rows[0].prompt
        'A neighbor left me this note: "Mi pedido lleva dos semanas de retraso. ¿Cuándo va a llegar?" How can I help?'

    Args:
        languages: some of `MESSAGE_LANGUAGES`.

    Raises:
        DataError: an unknown language.

    Source: written for steerlab.
    """
    check_options("languages", languages, MESSAGE_LANGUAGES)
    found = json.loads((BUILTIN / "foreign_messages.json").read_text(encoding="utf-8"))
    examples = []
    for name in languages:
        fields = found["languages"][name]
        contrast = Contrast(fields["answer"], found["english"])
        for (i, message), (j, question) in product(enumerate(fields["messages"]), enumerate(found["questions"])):
            if SPLITS[i] == SPLITS[j]:
                code = f"message/{MESSAGE_LANGUAGES[name]}/{i}-{j}"
                labels = {"message": message, "question": question}
                prompt = question.format(message=message)
                examples.append(Example(prompt, contrast, id=code, behavior=name, split=SPLITS[i], meta=labels))
    return examples
