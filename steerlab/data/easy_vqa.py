"""easy-VQA: small drawings of one shape each, with questions made from templates."""

from __future__ import annotations

import importlib.util
import json
import random
import re
import zipfile
from collections import defaultdict
from pathlib import Path

from steerlab.data._images import add_images
from steerlab.data.example import Example, check_examples
from steerlab.errors import LoadError

_COLOR = re.compile(r"\b(?:black|blue|brown|gray|green|red|teal|yellow)\b")
_SHAPE = re.compile(r"\b(?:circle|rectangle|triangle)\b")


def easy_vqa(
    path: str | Path | None = None, *, split: str = "train", balanced: bool = False, seed: int = 0
) -> list[Example]:
    """Questions about the color and the shape in 64 x 64 images; the gold answer is the behavior.

    Example:
        >>> examples = easy_vqa("easy_vqa", split="test", balanced=True)                        # doctest: +SKIP
        >>> examples[0].prompt, examples[0].behavior, examples[0].meta["template"]              # doctest: +SKIP
        ('what is the red shape?', 'triangle', 'what is the {color} shape?')

    Args:
        path: a folder with train.zip and test.zip, or with train/ and test/ (as in the package easy-vqa), each with
            questions.json and images/; None looks into the installed package.
        split: "train" or "test", which have different images.
        balanced: keep as many yes- as no-questions of every template. As published, the wording predicts the answer:
            "is there a red shape?" is answered no 88 times in 100, "is there not ..." yes as often, so that a model
            that ignores the image is right on 82 of 100 yes/no-questions.
        seed: selects which questions of the more frequent answer are dropped.

    Returns:
        One example per question, in file order, with image, template and kind ("yes/no", "color", "shape") in `meta`.
        Several questions share an image.

    Raises:
        LoadError: the data are missing or broken.
        DataError: an image is missing.

    Source: easy-VQA 1.0, the package easy-vqa; MIT.
    """
    place = _split_path(path, split)
    rows = check_examples(_example(split, number, *entry) for number, entry in enumerate(_questions(place)))
    return add_images(_balance(rows, seed) if balanced else rows, place)


def _split_path(path: str | Path | None, split: str) -> Path:
    """The zip file or the folder of a split."""
    if path is None:
        spec = importlib.util.find_spec("easy_vqa")
        if spec is None or spec.origin is None:
            raise LoadError("the package easy-vqa is not installed: pip install easy-vqa, or give the folder")
        path = Path(spec.origin).parent
    candidates = [Path(path, *parts) for parts in ((f"{split}.zip",), (split,), ("data", split))]
    for place in candidates:
        if place.is_file() or (place / "questions.json").is_file():
            return place
    expected = " or ".join(map(str, candidates))
    raise LoadError(f"there is no split {split!r} of easy-VQA at {path}; expected {expected}, with questions.json.")


def _questions(place: Path) -> list[tuple[str, str, int]]:
    try:
        if place.is_file():
            with zipfile.ZipFile(place) as archive:
                found = json.loads(archive.read("questions.json"))
        else:
            found = json.loads((place / "questions.json").read_text(encoding="utf-8"))
        return [(str(text), str(answer), int(image)) for text, answer, image in found]
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError) as error:
        raise LoadError(f"{place} is broken ({error!r}); expected questions.json with [text, answer, image]") from error


def _example(split: str, number: int, text: str, answer: str, image: int) -> Example:
    kind = "yes/no" if answer in ("yes", "no") else "color" if _COLOR.fullmatch(answer) else "shape"
    template = _SHAPE.sub("{shape}", _COLOR.sub("{color}", text))
    meta = {"image": f"images/{image}.png", "template": template, "kind": kind}
    return Example(id=f"easy_vqa/{split}/{number}", prompt=text, behavior=answer, split=split, meta=meta)


def _balance(rows: list[Example], seed: int) -> list[Example]:
    ids: dict[str, dict[str, list[str]]] = defaultdict(lambda: {"yes": [], "no": []})
    for row in rows:
        if row.meta["kind"] == "yes/no":
            ids[row.meta["template"]][row.behavior].append(row.id)
    kept = {row.id for row in rows if row.meta["kind"] != "yes/no"}
    for template, by_answer in ids.items():
        n = min(map(len, by_answer.values()))
        for answer, candidates in by_answer.items():
            # the spelling in the seed is that of the committed results: another would draw other questions
            draw = random.Random(f"{seed} {template.replace('{color}', '{colour}')} {answer}")
            kept.update(draw.sample(candidates, n))
    return [row for row in rows if row.id in kept]
