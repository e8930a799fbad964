"""CHAIR: how much of what a caption names is not in the picture."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

from steerlab._support.errors import DataError
from steerlab.data.coco import coco_synonyms
from steerlab.metrics._nouns import Lexicon, lexicon, mentions, words_of

Synonyms = Mapping[str, Iterable[str]]

_ANIMALS = ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe")
_NOBODY = ("baby animal", "adult animal", "baby cub", "adult cub")  # no person, and no kind of animal either
_PHRASES = {"passenger jet": "airplane", "passenger train": "train", "toilet seat": "toilet"}


@dataclass(frozen=True)
class CaptionObjects:
    """What one caption names: the objects, those of them that are not in the picture, and how often."""

    mentioned: frozenset[str]
    hallucinated: frozenset[str]
    n_mentions: int
    n_hallucinated: int


@dataclass(frozen=True)
class ChairScores:
    """Invented objects in captions.

    Attributes:
        chair_s: share of captions that name at least one object that is not in their picture.
        chair_i: share of mentions that are of such objects; NaN if nothing was mentioned.
        recall: share of the pictures' objects that their caption mentions; NaN if there are none.
        length: mean number of words.
        n: captions.
        captions: what each of them names, by id.
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
    """Invented objects in captions of pictures whose objects are known.

    Example:
        >>> scores = chair({"a": "Two puppies on a sofa.", "b": "A cat."}, {"a": ["dog"], "b": ["cat"]})
        >>> scores.chair_s, round(scores.chair_i, 2), scores.recall, sorted(scores.captions["a"].hallucinated)
        (0.5, 0.33, 1.0, ['couch'])

    Args:
        captions: id -> caption.
        objects: id -> what is in its picture, under any of the names in the vocabulary; other ids are ignored.
        synonyms: the vocabulary, object -> its other names (an empty list where it has none); None takes COCO's eighty
            objects with the published words, and reads "baby bird" as a bird alone and "toilet seat" as a toilet.
        references: id -> captions by people; what they name counts as being in the picture, as published.

    Returns:
        Every occurrence of a name is a mention: a word said twice counts twice. Names are found as whole words, in
        singular and plural, the longest first ("hot dog" is no dog); meaning is not looked at, so an orange cat
        mentions an orange.

    Raises:
        DataError: no captions, a caption whose picture is unknown, an object outside the vocabulary, or one name for
            two objects.

    Source: Rohrbach et al., arXiv 1809.02156 (CHAIR_s, CHAIR_i); recall as in L2S, arXiv 2508.12815.
    """
    if not captions:
        raise DataError("chair got no captions; expected at least one. Check the filters that chose them.")
    names = _coco() if synonyms is None else lexicon(synonyms)
    unknown = [key for key in captions if key not in objects]
    if unknown:
        raise DataError(f"the objects of {len(unknown)} of {len(captions)} captions are not given: {unknown[:5]}")
    named, n_gold, n_found = {}, 0, 0
    for key, caption in captions.items():
        gold = _gold(key, objects[key], names)
        gold |= {thing for text in (references or {}).get(key, ()) for thing in mentions(text, names)}
        said = mentions(caption, names)
        wrong = [thing for thing in said if thing not in gold]
        named[key] = CaptionObjects(frozenset(said), frozenset(wrong), len(said), len(wrong))
        n_gold, n_found = n_gold + len(gold), n_found + len(gold & set(said))
    return ChairScores(
        chair_s=sum(bool(one.hallucinated) for one in named.values()) / len(named),
        chair_i=_ratio(
            sum(one.n_hallucinated for one in named.values()), sum(one.n_mentions for one in named.values())
        ),
        recall=_ratio(n_found, n_gold),
        length=sum(len(caption.split()) for caption in captions.values()) / len(captions),
        n=len(named),
        captions=named,
    )


def mentioned_objects(text: str, synonyms: Synonyms | None = None) -> list[str]:
    """The objects a text names, in order and as often as it names them.

    Example:
        >>> mentioned_objects("A man eats hot dogs, his dog a pizza.")
        ['person', 'hot dog', 'dog', 'pizza']

    Args:
        text: a caption, or any answer.
        synonyms: as in `chair`.

    Raises:
        DataError: one name for two objects.

    Source: as `chair`.
    """
    return mentions(text, _coco() if synonyms is None else lexicon(synonyms))


@cache
def _coco() -> Lexicon:
    names = lexicon(coco_synonyms())
    phrases: dict[str, str | None] = {f"{age} {one}": one for age in ("baby", "adult") for one in _ANIMALS}
    phrases |= _PHRASES | dict.fromkeys(_NOBODY)
    for phrase, thing in phrases.items():
        names |= dict.fromkeys(lexicon({phrase: ()}), thing)
    return names


def _gold(key: str, objects: Iterable[str], names: Lexicon) -> set[str]:
    if isinstance(objects, str):
        raise DataError(f"the objects of {key!r} are one string; pass a list of names, which may be empty")
    given = {name: names.get(tuple(words_of(name))) for name in objects}
    strange = sorted(name for name, thing in given.items() if thing is None)
    if strange:
        raise DataError(f"{key!r} has objects outside the vocabulary: {strange[:5]}. Pass synonyms that name them.")
    return {thing for thing in given.values() if thing is not None}


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
