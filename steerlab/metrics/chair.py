"""CHAIR: the share of objects mentioned in captions that are not in the image."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

from steerlab._support.checks import as_text
from steerlab.data.coco import coco_synonyms
from steerlab.errors import DataError

Synonyms = Mapping[str, Iterable[str]]
Lexicon = Mapping[tuple[str, ...], str | None]

_WORD = re.compile(r"[^\W_]+")
_POSSESSIVE = re.compile(r"['’]s?\b")
_IRREGULAR = {
    "child": "children", "grandchild": "grandchildren", "foot": "feet", "goose": "geese", "mouse": "mice",
    "ox": "oxen", "person": "people", "tooth": "teeth",
}  # fmt: skip
_TO_VES = ("calf", "knife", "leaf", "loaf", "scarf", "shelf", "wolf")
_NO_MEN = ("human", "german", "roman", "ottoman")

_ANIMALS = ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe")
_NOBODY = ("baby animal", "adult animal", "baby cub", "adult cub")  # neither a person nor a kind of animal
_PHRASES = {"passenger jet": "airplane", "passenger train": "train", "toilet seat": "toilet"}


@dataclass(frozen=True)
class CaptionObjects:
    """The objects one caption mentions, those of them that are not in its image, and both counts of mentions.

    Example:
        >>> chair({"1": "A dog and a dog."}, {"1": {"cat"}}).captions["1"].n_hallucinated
        2
    """

    mentioned: frozenset[str]
    hallucinated: frozenset[str]
    n_mentions: int
    n_hallucinated: int


@dataclass(frozen=True)
class ChairScores:
    """Object hallucination in captions.

    Example:
        >>> chair({"1": "A dog on a bench."}, {"1": {"dog", "bench"}}).chair_s
        0.0

    Attributes:
        chair_s: share of captions that mention at least one object that is not in their image.
        chair_i: share of mentions that are of such objects; NaN if nothing was mentioned.
        recall: share of the images' objects that their caption mentions; NaN if there are none.
        length: mean number of words.
        n: number of captions.
        captions: the objects of each caption, by id.
    """

    chair_s: float
    chair_i: float
    recall: float
    length: float
    n: int
    captions: Mapping[str, CaptionObjects]


def chair(
    captions: Mapping[str, str],
    objects: Mapping[str, Iterable[str]],
    synonyms: Synonyms | None = None,
    *,
    references: Mapping[str, Iterable[str]] | None = None,
) -> ChairScores:
    """Object hallucination in captions of images whose objects are known.

    Example:
        >>> scores = chair({"a": "Two puppies on a sofa.", "b": "A cat."}, {"a": ["dog"], "b": ["cat"]})
        >>> scores.chair_s, round(scores.chair_i, 2), scores.recall, sorted(scores.captions["a"].hallucinated)
        (0.5, 0.33, 1.0, ['couch'])

    Args:
        captions: id -> caption.
        objects: id -> objects in its image, under any name in the vocabulary; other ids are ignored.
        synonyms: the vocabulary, object -> its other names (an empty list where it has none); None takes COCO's eighty
            objects with the published words, and reads "baby bird" as a bird alone and "toilet seat" as a toilet.
        references: id -> human captions; objects they mention count as being in the image, as published.

    Returns:
        Every occurrence of a name is a mention: a name that occurs twice counts twice. Names are matched as whole
        words, in singular and plural, the longest first ("hot dog" is not a dog). The meaning of a word is not
        considered, so an orange cat mentions an orange.

    Raises:
        DataError: no captions, a caption whose image is unknown, an object outside the vocabulary, or one name for
            two objects.

    Source: Rohrbach et al., arXiv 1809.02156 (CHAIR_s, CHAIR_i); recall as in L2S, arXiv 2508.12815.
    """
    if not captions:
        raise DataError("chair got no captions; expected at least one. Check the filters that chose them.")
    names = _coco() if synonyms is None else _lexicon(synonyms)
    if unknown := [key for key in captions if key not in objects]:
        raise DataError(f"the objects of {len(unknown)} of {len(captions)} captions are not given: {unknown[:5]}")
    if references is not None and (lone := [key for key in captions if isinstance(references.get(key), str)]):
        raise DataError(f"references of {lone[:3]}: give each caption a list of human captions, which may be empty")
    found, n_present, n_recalled = {}, 0, 0
    for key, caption in captions.items():
        present = _present_objects(key, objects[key], names)
        present.update(*(_mentions(text, names) for text in (references or {}).get(key, ())))
        said = _mentions(caption, names)
        wrong = [obj for obj in said if obj not in present]
        found[key] = CaptionObjects(frozenset(said), frozenset(wrong), len(said), len(wrong))
        n_present, n_recalled = n_present + len(present), n_recalled + len(present & set(said))
    n_mentions, n_wrong = (sum(getattr(one, key) for one in found.values()) for key in ("n_mentions", "n_hallucinated"))
    return ChairScores(
        chair_s=sum(bool(one.hallucinated) for one in found.values()) / len(found),
        chair_i=n_wrong / n_mentions if n_mentions else math.nan,
        recall=n_recalled / n_present if n_present else math.nan,
        length=sum(len(caption.split()) for caption in captions.values()) / len(captions),
        n=len(found),
        captions=found,
    )


def mentioned_objects(text: str, synonyms: Synonyms | None = None) -> list[str]:
    """The objects a text mentions, in order; an object mentioned twice is listed twice.

    Example:
        >>> mentioned_objects("A man eats hot dogs, his dog a pizza.")
        ['person', 'hot dog', 'dog', 'pizza']

    Args:
        text: a caption or any other answer.
        synonyms: as in `chair`.

    Raises:
        DataError: one name for two objects.

    Source: as `chair`.
    """
    return _mentions(text, _coco() if synonyms is None else _lexicon(synonyms))


@cache
def _coco() -> Lexicon:
    names = _lexicon(coco_synonyms())
    phrases: dict[str, str | None] = {f"{age} {animal}": animal for age in ("baby", "adult") for animal in _ANIMALS}
    for phrase, obj in (phrases | _PHRASES | dict.fromkeys(_NOBODY)).items():
        names |= dict.fromkeys(_lexicon({phrase: ()}), obj)
    return names


def _present_objects(key: str, objects: Iterable[str], names: Lexicon) -> set[str]:
    if isinstance(objects, str):
        raise DataError(f"the objects of {key!r} are one string; pass a list of names, which may be empty")
    found = {name: names.get(tuple(_words_of(name))) for name in objects}
    if unknown := sorted(name for name, obj in found.items() if obj is None):
        raise DataError(f"{key!r} has objects outside the vocabulary: {unknown[:5]}. Pass synonyms that name them.")
    return {obj for obj in found.values() if obj is not None}


def _words_of(text: str) -> list[str]:
    """The lower-cased words of a text; hyphens separate words and possessive endings are dropped."""
    return _WORD.findall(_POSSESSIVE.sub("", as_text(text).lower()))


def _plurals(noun: str) -> set[str]:
    """The plural forms of a noun, regular and irregular.

    Example:
        >>> _plurals("wine glass"), sorted(_plurals("mouse"))
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


def _lexicon(synonyms: Mapping[str, Iterable[str]]) -> dict[tuple[str, ...], str | None]:
    """Map the words of each name and of its plurals to the object it names.

    Raises:
        DataError: a name without a word, or one that names two objects.
    """
    exact: dict[tuple[str, ...], str | None] = {}
    derived: dict[tuple[str, ...], str | None] = {}
    for obj, others in synonyms.items():
        if isinstance(others, str):
            raise DataError(f"the synonyms of {obj!r} are one string; pass a list of names, which may be empty")
        for name in (obj, *others):
            words = tuple(_words_of(name))
            if not words:
                raise DataError(f"{obj!r} has the name {name!r}, which contains no word; leave it out")
            if exact.setdefault(words, obj) != obj:
                raise DataError(f"{name!r} names both {exact[words]!r} and {obj!r}; assign it to one of them")
            for plural in _plurals(" ".join(words)):
                derived.setdefault(tuple(plural.split()), obj)
    return derived | exact


def _mentions(text: str, names: Lexicon) -> list[str]:
    """The objects a text mentions, in order; an object mentioned twice is listed twice."""
    words, longest = _words_of(text), max(map(len, names), default=0)
    found: list[str] = []
    start = 0
    while start < len(words):
        spans = (tuple(words[start : start + n]) for n in range(longest, 0, -1))
        name = next((span for span in spans if span in names), ("",))
        obj = names.get(name)
        if obj is not None:
            found.append(obj)
        start += len(name)
    return found
