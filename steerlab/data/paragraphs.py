"""Paragraphs: of which sentences, cut to a length, merged from shorter texts, with something put in."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from steerlab._support.errors import DataError

PLACES = ("start", "middle", "end")
_SENTENCE_END = re.compile(r"[.!?][\"')\]”’]*\s+(?=[^a-z\s])")


def sentences(text: str) -> list[str]:
    """The sentences of a text: a full stop, question or exclamation mark, and after it no small letter.

    Example:
        >>> sentences("It cost 3.50 e.g. in May. Was it dear? No.")
        ['It cost 3.50 e.g. in May.', 'Was it dear?', 'No.']
    """
    ends = [0, *(match.end() for match in _SENTENCE_END.finditer(text)), len(text)]
    return [part for a, b in pairwise(ends) if (part := text[a:b].strip())]


def cut(text: str, max_words: int) -> str:
    """The text up to the last sentence that ends within so many words.

    Example:
        >>> cut("Rain fell. It was cold. So we stayed.", 6)
        'Rain fell. It was cold.'

    Raises:
        DataError: the first sentence alone is longer.

    Source: own.
    """
    kept, words = list[str](), 0
    for sentence in sentences(text):
        words += len(sentence.split())
        if words > max_words:
            break
        kept.append(sentence)
    if not kept:
        raise DataError(f"the first sentence of {text[:60]!r} has more than max_words={max_words}: raise it")
    return " ".join(kept)


def merge(parts: Sequence[str], *, least: int = 40, most: int = 120) -> list[str]:
    """Consecutive short texts joined into paragraphs of `least` to `most` words; what fits into none is left out.

    Example:
        >>> merge(["Rain fell.", "It was cold.", "So we stayed."], least=4, most=6)
        ['Rain fell. It was cold.']

    Args:
        parts: sentences, in order; one without a mark at its end gets a full stop.
        least, most: words of a paragraph.

    Raises:
        DataError: `least` is below 1 or above `most`.

    Source: own.
    """
    if not 1 <= least <= most:
        raise DataError(f"least={least} and most={most}: expected 1 <= least <= most")
    made, open_ = list[str](), list[str]()
    for part in parts:
        words = part.split()
        if words and words[-1].rstrip("\"')]”’")[-1:] not in (".", "!", "?"):
            words[-1] += "."
        open_ = [*open_, *words] if len(open_) + len(words) <= most else words
        if least <= len(open_) <= most:
            made.append(" ".join(open_))
            open_ = []
    return made


def insert(text: str, foreign: str, place: str) -> str:
    """The text with a foreign task in it, a space on either side.

    Example:
        >>> insert("Rain fell. It was cold.", "Name a metal.", "middle")
        'Rain fell. Name a metal. It was cold.'

    Raises:
        DataError: an unknown place, or the middle of a single sentence.

    Source: own.
    """
    if place not in PLACES:
        raise DataError(f"unknown place {place!r}; expected one of {', '.join(PLACES)}")
    if place != "middle":
        return f"{foreign} {text}" if place == "start" else f"{text} {foreign}"
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    if not ends:
        raise DataError(
            f"{text[:60]!r} is one sentence and has no end of one inside: merge sentences, or leave out 'middle'"
        )
    at = min(ends, key=lambda end: abs(end - len(text) / 2))
    return f"{text[:at].rstrip()} {foreign} {text[at:]}"
