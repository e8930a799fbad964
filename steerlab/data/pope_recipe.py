"""POPE by recipe: balanced yes/no questions from any pictures whose objects are known."""

from __future__ import annotations

import logging
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from steerlab._support.errors import DataError
from steerlab.data._images import Missing, add_images, find_images
from steerlab.data.example import Example, check_examples
from steerlab.data.pope import number_alone, with_instruction

SPLITS = ("random", "popular", "adversarial")

_VOWEL = re.compile(r"[aeiou]|hour|honest|honou?r|heir", re.IGNORECASE)
_LIKE_YOU_OR_WON = re.compile(r"eu|ewe|on(?:e|ce)\b|u(?:ni(?![nm])|k|s[aeu]|t[aei]|r[aeiou])", re.IGNORECASE)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Counts:
    """In how many pictures an object is, and in how many together with another one."""

    alone: Counter[str]
    together: dict[str, Counter[str]]

    @classmethod
    def of(cls, images: Iterable[set[str]]) -> _Counts:
        alone: Counter[str] = Counter()
        together: dict[str, Counter[str]] = {}
        for objects in images:
            alone.update(objects)
            for one in objects:
                together.setdefault(one, Counter()).update(objects - {one})
        return cls(alone, together)

    def ranked(self, candidates: Iterable[str], beside: Iterable[str] = ()) -> list[str]:
        """Most often together with the objects beside (summed) first, then the most frequent, then by alphabet."""
        near = [self.together.get(one, Counter()) for one in beside]
        return sorted(candidates, key=lambda name: (-sum(c[name] for c in near), -self.alone[name], name))


def pope_questions(
    annotations: Mapping[str, Iterable[str]],
    split: str,
    per_image: int = 6,
    seed: int = 0,
    *,
    counts: Mapping[str, Iterable[str]] | None = None,
    ranked_by: Literal["question", "image"] = "question",
    fewer: Literal["skip", "shrink"] = "skip",
    images: str | Path | None = None,
    missing: Missing = "refuse",
    instruction: str = "",
    name: str = "pope",
) -> list[Example]:
    """Questions about objects that are in a picture and about as many that are not.

    Example:
        >>> shown = {"a.jpg": ["dog", "ball"], "b.jpg": ["cat", "dog"], "c.jpg": ["elephant", "dog", "cat"]}
        >>> [(row.behavior, row.prompt) for row in pope_questions(shown, "popular", per_image=2)][3]
        ('no', 'Is there a ball in the image?')

    Args:
        annotations: picture name -> the objects in it.
        split: how absent objects are drawn: "random" from all of them, "popular" the most frequent ones, "adversarial"
            those most often seen together with what is there. Ties go to the more frequent object, then to
            the alphabet. The yes-questions are the same in all three.
        per_image: questions a picture, an even number; half of them about objects that are there, drawn at random.
        seed: another seed, other objects; a picture's questions do not depend on which other pictures there are,
            except through the counts.
        counts: a larger collection to take the vocabulary, frequencies and co-occurrences from.
        ranked_by: for "adversarial"; "question" ranks by co-occurrence with the one object that the preceding
            yes-question is about, as in the published files; "picture" with all of the picture's objects, added up, as
            the paper can be read.
        fewer: a picture with too few objects (or too few absent ones) is left out as published ("skip", logged), or
            asked fewer questions, still balanced ("shrink").
        pictures, missing: as in `pope_file`; None gives questions without pictures.
        instruction: appended to every question, such as `ONE_WORD`.
        name: first part of the ids.

    Returns:
        Yes- and no-questions in turn; `meta` has picture, subset and object. Names are used as they are: "a skis" is
        what POPE asks, too.

    Raises:
        DataError: an unknown split or option, an odd number of questions, or no picture that can be asked about.

    Source: Li et al., POPE, arXiv 2305.10355, section 5.
    """
    _check(split, per_image, ranked_by, fewer)
    shown = {image: set(objects) for image, objects in annotations.items()}
    seen = _Counts.of(shown.values() if counts is None else (set(objects) for objects in counts.values()))
    vocabulary = sorted(set(seen.alone).union(*shown.values()))
    rows: list[Example] = []
    skipped = 0
    for image, objects in shown.items():
        absent = [one for one in vocabulary if one not in objects]
        n = min(per_image // 2, len(objects), len(absent))
        if n == 0 or (n < per_image // 2 and fewer == "skip"):
            skipped += 1
            continue
        asked = random.Random(f"{seed} yes {image}").sample(sorted(objects), n)
        if split == "random":
            others = random.Random(f"{seed} no {image}").sample(absent, n)
        elif split == "popular":
            others = seen.ranked(absent)[:n]
        else:
            others = seen.ranked(absent, objects)[:n] if ranked_by == "image" else _in_turn(seen, asked, absent)
        for there, other in zip(asked, others, strict=True):
            rows.append(_example(name, split, image, there, "yes", instruction))
            rows.append(_example(name, split, image, other, "no", instruction))
    return _finished(rows, skipped, per_image, images, missing)


def article(noun: str) -> str:
    """The article before a noun, "a" or "an", by the sound it begins with."""
    return "an" if _VOWEL.match(noun) and not _LIKE_YOU_OR_WON.match(noun) else "a"


def _in_turn(seen: _Counts, asked: Sequence[str], absent: Sequence[str]) -> list[str]:
    chosen: list[str] = []
    for one in asked:
        chosen.append(next(name for name in seen.ranked(absent, [one]) if name not in chosen))
    return chosen


def _example(name: str, split: str, image: str, noun: str, label: str, instruction: str) -> Example:
    return Example(
        id=f"{name}/{split}/{image}/{noun}",
        prompt=with_instruction(f"Is there {article(noun)} {noun} in the image?", instruction),
        behavior=label,
        meta={"image": image, "subset": split, "object": noun},
    )


def _finished(
    rows: list[Example], skipped: int, per_image: int, images: str | Path | None, missing: Missing
) -> list[Example]:
    if not rows:
        raise DataError(
            f"none of {skipped} pictures has {per_image // 2} objects and as many absent ones: nothing to ask. "
            "Lower per_picture, pass fewer='shrink', or take the counts from a larger collection."
        )
    if skipped:
        log.warning("%d pictures have too few objects for %d questions and are left out", skipped, per_image)
    if images is None:
        return check_examples(rows)
    found = find_images(images, (row.meta["image"] for row in rows), number_alone)
    return add_images(rows, found, missing, images)


def _check(split: str, per_image: int, ranked_by: str, fewer: str) -> None:
    for what, given, known in (
        ("split", split, SPLITS),
        ("ranked_by", ranked_by, ("question", "image")),
        ("fewer", fewer, ("skip", "shrink")),
    ):
        if given not in known:
            raise DataError(f"{what}={given!r} is unknown; expected one of {', '.join(known)}")
    if per_image < 2 or per_image % 2:
        raise DataError(f"per_picture is {per_image}; expected an even number, half yes and half no")
