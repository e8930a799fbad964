"""POPE's recipe: balanced yes/no questions for images whose objects are known."""

from __future__ import annotations

import logging
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from steerlab.data._files import check_option
from steerlab.data._images import Missing, add_images
from steerlab.data.example import Example
from steerlab.data.pope import coco_number, replace_instruction
from steerlab.errors import DataError

SPLITS = ("random", "popular", "adversarial")

_VOWEL = re.compile(r"[aeiou]|hour|honest|honou?r|heir", re.IGNORECASE)
_LIKE_YOU_OR_WON = re.compile(r"eu|ewe|on(?:e|ce)\b|u(?:ni(?![nm])|k|s[aeu]|t[aei]|r[aeiou])", re.IGNORECASE)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Counts:
    """The number of images with an object, and with two objects together."""

    single: Counter[str]
    together: Mapping[str, Counter[str]]

    @classmethod
    def of(cls, images: Iterable[Iterable[str]]) -> _Counts:
        single: Counter[str] = Counter()
        together: dict[str, Counter[str]] = defaultdict(Counter)
        for objects in map(set, images):
            single.update(objects)
            for one in objects:
                together[one].update(objects - {one})
        return cls(single, together)

    def rank(self, candidates: Iterable[str], given: Iterable[str] = ()) -> list[str]:
        """Candidates by co-occurrence with the given objects (summed), then by frequency, then alphabetically."""
        near = [self.together.get(one, Counter()) for one in given]
        return sorted(candidates, key=lambda name: (-sum(c[name] for c in near), -self.single[name], name))


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
    missing: Missing = "raise",
    instruction: str = "",
    name: str = "pope",
) -> list[Example]:
    """Questions about objects that are in an image and about as many that are not.

    Example:
        >>> objects = {"a.jpg": ["dog", "ball"], "b.jpg": ["cat", "dog"], "c.jpg": ["elephant", "dog", "cat"]}
        >>> examples = pope_questions(objects, "popular", per_image=2)
        >>> examples[3].behavior, examples[3].prompt
        ('no', 'Is there a ball in the image?')

    Args:
        annotations: image name -> the objects in it.
        split: how absent objects are chosen: "random" from all of them, "popular" the most frequent ones,
            "adversarial" those that co-occur most often with the objects present. Ties go to the more frequent
            object, then to the alphabet. The yes-questions are the same in all three.
        per_image: questions per image, an even number; half of them about objects present, drawn at random.
        seed: of the draws; the draws for one image do not depend on the other images, except through the counts.
        counts: a larger collection from which to take vocabulary, frequencies and co-occurrences.
        ranked_by: for "adversarial": "question" ranks by co-occurrence with the object of the preceding yes-question,
            as in the published files; "image" with all objects of the image (summed), another reading of the paper.
        fewer: leave out images with too few objects present or absent, as published ("skip", logged), or ask fewer
            questions about them, still balanced ("shrink").
        images, missing: as in `pope_file`; None gives questions without images.
        instruction: appended to every question, such as `ONE_WORD`.
        name: first part of the ids.

    Returns:
        Yes- and no-questions in turn; `meta` has image, subset and object. Object names are not changed: "a skis" is
        what POPE asks, too.

    Raises:
        DataError: an unknown split or option, an odd number of questions, or no image with enough objects.

    Source: Li et al., POPE, arXiv 2305.10355, section 5.
    """
    check_option("split", split, SPLITS)
    check_option("ranked_by", ranked_by, ("question", "image"))
    check_option("fewer", fewer, ("skip", "shrink"))
    if per_image < 2 or per_image % 2:
        raise DataError(f"per_image is {per_image}; expected an even number, half yes and half no")
    if lone := [image for image, objects in annotations.items() if isinstance(objects, str)]:
        raise DataError(f"the objects of {lone[0]!r} are one text, {annotations[lone[0]]!r}: give a list of names")
    objects_of = {image: set(objects) for image, objects in annotations.items()}
    seen = _Counts.of((objects_of if counts is None else counts).values())
    vocabulary = sorted(set(seen.single).union(*objects_of.values()))
    rows: list[Example] = []
    skipped = 0
    for image, objects in objects_of.items():
        absent = [one for one in vocabulary if one not in objects]
        n = min(per_image // 2, len(objects), len(absent))
        if n == 0 or (n < per_image // 2 and fewer == "skip"):
            skipped += 1
            continue
        present = random.Random(f"{seed} yes {image}").sample(sorted(objects), n)
        if split == "random":
            others = random.Random(f"{seed} no {image}").sample(absent, n)
        elif split == "adversarial" and ranked_by == "question":
            others = _rank_by_question(seen, present, absent)
        else:
            others = seen.rank(absent, objects if split == "adversarial" else ())[:n]
        for noun, other in zip(present, others, strict=True):
            rows.append(_example(name, split, image, noun, "yes", instruction))
            rows.append(_example(name, split, image, other, "no", instruction))
    if skipped:
        log.warning("%d images have too few objects for %d questions and are left out", skipped, per_image)
    if not rows:
        raise DataError(
            f"none of {skipped} images has {per_image // 2} objects and as many absent ones: nothing to ask. "
            "Lower per_image, pass fewer='shrink', or take the counts from a larger collection."
        )
    return add_images(rows, images, missing, coco_number)


def article(noun: str) -> str:
    """The article before a noun, "a" or "an", by the sound it begins with."""
    return "an" if _VOWEL.match(noun) and not _LIKE_YOU_OR_WON.match(noun) else "a"


def _rank_by_question(seen: _Counts, present: Sequence[str], absent: Sequence[str]) -> list[str]:
    """For each object present, the absent object that co-occurs with it most often and is not yet taken."""
    chosen: list[str] = []
    for one in present:
        chosen.append(next(name for name in seen.rank(absent, [one]) if name not in chosen))
    return chosen


def _example(name: str, split: str, image: str, noun: str, label: str, instruction: str) -> Example:
    return Example(
        id=f"{name}/{split}/{image}/{noun}",
        prompt=replace_instruction(f"Is there {article(noun)} {noun} in the image?", instruction),
        behavior=label,
        meta={"image": image, "subset": split, "object": noun},
    )
