"""Split texts into sentences, shorten them, and insert a task."""

from __future__ import annotations

import re
from itertools import pairwise

from steerlab.data._files import check_option
from steerlab.errors import DataError

PLACES = ("start", "middle", "end")
_SENTENCE_END = re.compile(r"[.!?][\"')\]”’]*\s+(?=[^a-z\s])")


def split_sentences(text: str) -> list[str]:
    """The sentences of a text. A sentence ends with a mark (.!?) that no lowercase letter follows.

    Example:
        >>> split_sentences("It cost 3.50 e.g. in May. Was it dear? No.")
        ['It cost 3.50 e.g. in May.', 'Was it dear?', 'No.']
    """
    ends = [0, *(match.end() for match in _SENTENCE_END.finditer(text)), len(text)]
    return [part for a, b in pairwise(ends) if (part := text[a:b].strip())]


def truncate_sentences(text: str, max_words: int) -> str:
    """The text up to the last sentence that ends within `max_words` words.

    Example:
        >>> truncate_sentences("Rain fell. It was cold. So we stayed.", 6)
        'Rain fell. It was cold.'

    Raises:
        DataError: the first sentence alone is longer.
    """
    kept, words = list[str](), 0
    for sentence in split_sentences(text):
        words += len(sentence.split())
        if words > max_words:
            break
        kept.append(sentence)
    if not kept:
        raise DataError(f"the first sentence of {text[:60]!r} has more than max_words={max_words}: raise it")
    return " ".join(kept)


def insert_task(text: str, task: str, place: str) -> str:
    """The text with a task before it, after it, or between the two sentences nearest to its middle.

    Example:
        >>> insert_task("Rain fell. It was cold.", "Name a metal.", "middle")
        'Rain fell. Name a metal. It was cold.'

    Raises:
        DataError: an unknown place, or the middle of a single sentence.
    """
    check_option("place", place, PLACES)
    if place != "middle":
        return f"{task} {text}" if place == "start" else f"{text} {task}"
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    if not ends:
        raise DataError(f"{text[:60]!r} is one sentence and has no middle: merge sentences, or leave out 'middle'")
    at = min(ends, key=lambda end: abs(end - len(text) / 2))
    return f"{text[:at].rstrip()} {task} {text[at:]}"
