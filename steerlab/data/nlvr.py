"""NLVR: what people said about drawings of blocks, true or false of the drawing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from steerlab._support.errors import DataError, LoadError
from steerlab.data._images import add_images, find_images
from steerlab.data.example import Example, check_examples
from steerlab.data.instructions import json_lines

_FIELDS = ("image", "sentence", "label", "identifier", "structured_rep")


def nlvr(path: str | Path, split: str = "dev", *, prompt: str = "{sentence}") -> list[Example]:
    r"""Sentences that are true or false of a picture of three boxes; the gold label is the behavior.

    Example:
        >>> rows = nlvr("nlvr", "dev", prompt="Is this true of the image? {sentence}")    # doctest: +SKIP
        >>> rows[0].id, rows[0].behavior                                                   # doctest: +SKIP
        ('nlvr/dev/1572-0', 'true')

    Args:
        path: a folder with `<split>.jsonl` and its pictures in `<split>_images.zip`, `<split>_images/` or `images/`.
        split: "dev" or "test".
        prompt: what the model is asked; `{sentence}` stands for the sentence, which people wrote, typing errors
            included.

    Returns:
        One example a sentence, in file order. `meta` has picture, sentence and structured_rep: JSON text, for each box
        the list of its objects with type, color, size and place.

    Raises:
        LoadError: a file or a field is missing.
        DataError: a label is neither true nor false, a picture is missing, or the prompt has no `{sentence}`.

    Source: Suhr et al., A Corpus of Natural Language for Visual Reasoning, ACL 2017; CC BY 4.0.
    """
    if "{sentence}" not in prompt:
        raise DataError(f"the prompt {prompt!r} has no place for the sentence; write {{sentence}} where it belongs")
    folder = Path(path)
    file = folder / f"{split}.jsonl"
    rows = check_examples(_example(file, number, record, split, prompt) for number, record in json_lines(file))
    candidates = (folder / f"{split}_images.zip", folder / f"{split}_images", folder / "images")
    place = next((one for one in candidates if one.exists()), None)
    if place is None:
        raise LoadError(f"there are no pictures: expected one of {', '.join(str(one) for one in candidates)}.")
    return add_images(rows, find_images(place, (row.meta["image"] for row in rows)), "refuse", place)


def _example(file: Path, number: int, record: dict[str, Any], split: str, prompt: str) -> Example:
    absent = [name for name in _FIELDS if name not in record]
    if absent:
        raise LoadError(f"{file}, line {number}: no field {absent}; the fields there are {sorted(record)}.")
    label, sentence = str(record["label"]).lower(), str(record["sentence"])
    if label not in ("true", "false"):
        raise DataError(f"{file}, line {number}: the label is {record['label']!r}; expected true or false.")
    return Example(
        id=f"nlvr/{split}/{record['identifier']}",
        prompt=prompt.replace("{sentence}", sentence),
        behavior=label,
        split="validation" if split == "dev" else split,
        meta={
            "image": str(record["image"]),
            "sentence": sentence,
            "structured_rep": json.dumps(record["structured_rep"]),
        },
    )
