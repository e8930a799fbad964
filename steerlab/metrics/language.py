"""The language of an answer, by the classifier of py3langid."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from steerlab._support.checks import as_text
from steerlab.errors import DataError

_LETTERS = re.compile(r"[^\W\d_]{2}")


def find_language(text: str, languages: Sequence[str]) -> str | None:
    """The language of a text, among some; None where there are no two letters in a row.

    Example:
        >>> find_language("Para mantener el pan fresco, hay que guardarlo.", ["en", "es", "pt"])
        'es'

    Args:
        text: one answer; a sentence is enough.
        languages: ISO 639-1 codes, at least two; with fewer the answers are more certain.

    Raises:
        DataError: fewer than two languages, or one that the classifier doesn't know.
        ImportError: py3langid is not installed (`pip install py3langid`).

    Source: Lui and Baldwin (2012), langid.py.
    """
    identifier = _identifier(tuple(languages))
    return str(identifier.classify(text)[0]) if _LETTERS.search(as_text(text)) else None


@lru_cache(maxsize=8)
def _identifier(codes: tuple[str, ...]) -> Any:
    """The classifier for some languages."""
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise ImportError("find_language needs py3langid: pip install py3langid") from error
    identifier: Any = LanguageIdentifier.from_model_file(MODEL_FILE)
    unknown = sorted(set(codes) - set(identifier.labels))
    if len(set(codes)) < 2 or unknown:
        raise DataError(f"languages={list(codes)}: expected at least two of {sorted(identifier.labels)}")
    identifier.set_languages(list(codes))
    return identifier
