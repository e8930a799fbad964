"""POPE: yes/no questions about what a picture shows, read from its published files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from steerlab._support.errors import DataError, LoadError
from steerlab.data._images import Missing, add_images, find_images
from steerlab.data.example import Example, check_examples
from steerlab.data.instructions import json_lines

ONE_WORD = "Answer yes or no, in one word."

_OBJECT = re.compile(r"^is there an? (.+?) in the image", re.IGNORECASE)
_SUBSET = re.compile(r"random|popular|adversarial")


def pope_file(
    path: str | Path,
    *,
    images: str | Path | None = None,
    missing: Missing = "refuse",
    instruction: str | None = None,
) -> list[Example]:
    r"""The questions of a POPE file, each with its picture; the gold answer is the behavior.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> line = '{"question_id": 1, "image": "a.jpg", "text": "Is there a dog in the image?", "label": "no"}'
        >>> with TemporaryDirectory() as folder:
        ...     file = Path(folder) / "coco_pope_popular.json"
        ...     _ = file.write_text(line + "\n")
        ...     row = pope_file(file, instruction=ONE_WORD)[0]
        >>> row.id, row.behavior, row.prompt
        ('coco_pope_popular/1', 'no', 'Is there a dog in the image? Answer yes or no, in one word.')

    Args:
        path: JSON lines with question_id, image, text and label; a field `image_file` goes before `image`, and a
            field `subset` tells files apart that were joined into one.
        images: the folder or zip file with the pictures, under the name in the file or, for COCO's names of 2014,
            under its number alone (`000000310196.jpg`); None gives the questions without pictures.
        missing: "refuse" raises if a picture is not there, "skip" leaves its questions out and logs how many.
        instruction: None leaves the question as it is in the file, "" cuts what follows its question mark, any other
            text (such as `ONE_WORD`) takes the place of what follows. L2S cuts it, so that answers can be sentences.

    Returns:
        One example a question, in file order, with picture, subset ("random", "popular", "adversarial") and object in
        `meta`. Rows with `missing="skip"` need not be balanced any more.

    Raises:
        LoadError: the file, a field or the folder is missing, or a line is not JSON.
        DataError: a label is neither yes nor no, an id occurs twice, or pictures are missing (five are named,
            all of them are in its `missing`).

    Source: Li et al., POPE, arXiv 2305.10355.
    """
    file = Path(path)
    rows = check_examples(_example(file, number, record, instruction) for number, record in json_lines(file))
    if images is None:
        return rows
    found = find_images(images, (row.meta["image"] for row in rows), number_alone)
    return add_images(rows, found, missing, images)


def with_instruction(question: str, instruction: str | None) -> str:
    """The question with what follows its question mark replaced, cut off ("") or left as it is (None)."""
    if instruction is None:
        return question
    bare = question[: question.rfind("?") + 1] or question.strip()
    return f"{bare} {instruction}" if instruction and not instruction[0].isspace() else bare + instruction


def _example(file: Path, number: int, record: dict[str, Any], instruction: str | None) -> Example:
    absent = [name for name in ("question_id", "image", "text", "label") if name not in record]
    if absent:
        raise LoadError(f"{file}, line {number}: no field {absent}; the fields there are {sorted(record)}.")
    label, question = str(record["label"]).strip().lower(), str(record["text"])
    if label not in ("yes", "no"):
        raise DataError(f"{file}, line {number}: the label is {record['label']!r}; expected yes or no.")
    subset = record.get("subset")
    about = _OBJECT.match(question)
    return Example(
        id="/".join([file.stem, *([str(subset)] if subset else []), str(record["question_id"])]),
        prompt=with_instruction(question, instruction),
        behavior=label,
        meta={
            "image": str(record.get("image_file") or record["image"]),
            "subset": str(subset or next(iter(_SUBSET.findall(file.stem)[::-1]), file.stem)),
            "object": about[1] if about else "",
        },
    )


def number_alone(name: str) -> Iterator[str]:
    """COCO's newer name of a picture of 2014."""
    if name.startswith("COCO_"):
        yield name.rsplit("_", 1)[1]
