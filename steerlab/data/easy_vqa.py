"""easy-VQA: small drawings of one shape each, with questions made from templates."""

from __future__ import annotations

import importlib.util
import json
import random
import re
import zipfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from steerlab._support.errors import LoadError
from steerlab.data._images import add_images, find_images
from steerlab.data.example import Example, check_examples

_COLOUR = re.compile(r"\b(?:black|blue|brown|gray|green|red|teal|yellow)\b")
_SHAPE = re.compile(r"\b(?:circle|rectangle|triangle)\b")


def easy_vqa(
    path: str | Path | None = None, *, split: str = "train", balanced: bool = False, seed: int = 0
) -> list[Example]:
    """Questions about the color and the shape in 64 x 64 pictures; the gold answer is the behavior.

    Example:
        >>> rows = easy_vqa("easy_vqa", split="test", balanced=True)                        # doctest: +SKIP
        >>> rows[0].prompt, rows[0].behavior, rows[0].meta["template"]                     # doctest: +SKIP
        ('what is the red shape?', 'triangle', 'what is the {color} shape?')

    Args:
        path: a folder with train.zip and test.zip, or with train/ and test/ (as in the package easy-vqa), each with
            questions.json and images/; None looks into the installed package.
        split: "train" or "test", two sets of pictures.
        balanced: keep as many yes- as no-questions of every template. As published the wording gives the answer away:
            "is there a red shape?" is answered no 88 times in 100, "is there not ..." yes as often, so that a model
            that never looks at the picture is right on 82 of 100 yes/no-questions.
        seed: another seed drops other questions of the more frequent answer.

    Returns:
        One example a question, in file order, with picture, template and kind ("yes/no", "color", "shape") in `meta`.
        Several questions share a picture.

    Raises:
        LoadError: the data are not there or broken.
        DataError: an image is missing.

    Source: easy-VQA 1.0, the package easy-vqa; MIT.
    """
    place = _place(path, split)
    rows = check_examples(_example(split, number, *entry) for number, entry in enumerate(_questions(place)))
    if balanced:
        rows = _balanced(rows, seed)
    return add_images(rows, find_images(place, (row.meta["image"] for row in rows)), "refuse", place)


def _place(path: str | Path | None, split: str) -> Path:
    if path is None:
        spec = importlib.util.find_spec("easy_vqa")
        if spec is None or spec.origin is None:
            raise LoadError("the package easy-vqa is not installed: pip install easy-vqa, or give the folder")
        root = Path(spec.origin).parent
    else:
        root = Path(path)
    candidates = (root / f"{split}.zip", root / split, root / "data" / split)
    found = next((one for one in candidates if one.is_file() or (one / "questions.json").is_file()), None)
    if found is None:
        expected = " or ".join(str(one) for one in candidates)
        raise LoadError(f"there is no split {split!r} of easy-VQA at {root}; expected {expected}, with questions.json.")
    return found


def _questions(place: Path) -> list[tuple[str, str, int]]:
    try:
        if place.is_file():
            with zipfile.ZipFile(place) as box:
                found = json.loads(box.read("questions.json"))
        else:
            found = json.loads((place / "questions.json").read_text(encoding="utf-8"))
        return [(str(text), str(answer), int(image)) for text, answer, image in found]
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError) as error:
        raise LoadError(f"{place} is broken ({error!r}); expected questions.json with [text, answer, image]") from error


def _example(split: str, number: int, text: str, answer: str, image: int) -> Example:
    kind = "yes/no" if answer in ("yes", "no") else "color" if _COLOUR.fullmatch(answer) else "shape"
    meta: dict[str, Any] = {
        "image": f"images/{image}.png",
        "template": _SHAPE.sub("{shape}", _COLOUR.sub("{color}", text)),
        "kind": kind,
    }
    return Example(id=f"easy_vqa/{split}/{number}", prompt=text, behavior=answer, split=split, meta=meta)


def _balanced(rows: list[Example], seed: int) -> list[Example]:
    groups: dict[str, dict[str, list[str]]] = defaultdict(lambda: {"yes": [], "no": []})
    for row in rows:
        if row.meta["kind"] == "yes/no":
            groups[row.meta["template"]][row.behavior].append(row.id)
    kept: set[str] = {row.id for row in rows if row.meta["kind"] != "yes/no"}
    for template, answers in groups.items():
        n = min(len(ids) for ids in answers.values())
        for answer, ids in answers.items():
            kept.update(random.Random(f"{seed} {template} {answer}").sample(ids, n))
    return check_examples(row for row in rows if row.id in kept)
