"""Finding names of things in a text: whole words, plurals, the longest name first."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from steerlab._support.errors import DataError

Lexicon = Mapping[tuple[str, ...], str | None]

_WORD = re.compile(r"[^\W_]+")
_POSSESSIVE = re.compile(r"['’]s?\b")
_IRREGULAR = {
    "child": "children",
    "grandchild": "grandchildren",
    "foot": "feet",
    "goose": "geese",
    "mouse": "mice",
    "ox": "oxen",
    "person": "people",
    "tooth": "teeth",
}
_TO_VES = ("calf", "knife", "leaf", "loaf", "scarf", "shelf", "wolf")
_NO_MEN = ("human", "german", "roman", "ottoman")


def words_of(text: str) -> list[str]:
    """The words of a text in small letters; hyphens part them, a possessive ending is dropped."""
    return _WORD.findall(_POSSESSIVE.sub("", text.lower()))


def plurals(noun: str) -> set[str]:
    """What more than one of it is called, in every way this knows.

    Example:
        >>> plurals("wine glass"), sorted(plurals("mouse"))
        ({'wine glasses'}, ['mice', 'mouses'])
    """
    head, _, last = noun.rpartition(" ")
    forms = {last + ("es" if re.search(r"(?:s|x|z|ch|sh)$", last) else "s")}
    if last in _IRREGULAR:
        forms.add(_IRREGULAR[last])
    if last.endswith("man") and last not in _NO_MEN:
        forms.add(last[:-3] + "men")
    if re.search(r"[^aeiou]y$", last):
        forms = {last[:-1] + "ies"}
    if last in _TO_VES or last.endswith("knife"):
        forms.add(re.sub(r"fe?$", "ves", last))
    if last.endswith("o"):
        forms.add(last + "es")
    return {f"{head} {form}".strip() for form in forms}


def lexicon(synonyms: Mapping[str, Iterable[str]]) -> dict[tuple[str, ...], str | None]:
    """The words of each name, and of its plurals, to the thing it names; a name of two things is refused."""
    exact: dict[tuple[str, ...], str | None] = {}
    derived: dict[tuple[str, ...], str | None] = {}
    for thing, others in synonyms.items():
        if isinstance(others, str):
            raise DataError(f"the synonyms of {thing!r} are one string; pass a list of names, which may be empty")
        for name in (thing, *others):
            words = tuple(words_of(name))
            if not words:
                raise DataError(f"{thing!r} has the name {name!r}, in which there is no word; leave it out")
            if exact.setdefault(words, thing) != thing:
                raise DataError(f"{name!r} names both {exact[words]!r} and {thing!r}; leave it to one of them")
            for plural in plurals(" ".join(words)):
                derived.setdefault(tuple(plural.split()), thing)
    return derived | exact


def mentions(text: str, names: Lexicon) -> list[str]:
    """The things a text names, in order and as often as it names them."""
    words, longest = words_of(text), max(map(len, names), default=0)
    found: list[str] = []
    at = 0
    while at < len(words):
        spans = (tuple(words[at : at + n]) for n in range(min(longest, len(words) - at), 0, -1))
        name = next((span for span in spans if span in names), None)
        thing = names[name] if name else None
        if thing is not None:
            found.append(thing)
        at += len(name) if name else 1
    return found
