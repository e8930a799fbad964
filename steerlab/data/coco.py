"""What pictures show: object names and captions, in COCO's JSON or one picture a line, and words for the objects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from steerlab._support.errors import LoadError
from steerlab.data.instructions import json_lines
from steerlab.data.xstest import BUILTIN


def coco_objects(path: str | Path) -> dict[str, set[str]]:
    """The objects annotated in each picture.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     file = Path(folder) / "objects.jsonl"
        ...     _ = file.write_text('{"image": "a.jpg", "objects": ["dog", {"name": "ball"}, "dog"]}')
        ...     sorted(coco_objects(file)["a.jpg"])
        ['ball', 'dog']

    Args:
        path: COCO's instances as one JSON object (images, annotations, categories), or JSON lines with `image` and
            `objects`, the latter a list of names or of objects with a `name`. Crowds count as objects.

    Returns:
        Picture file name -> object names; a picture without annotations has an empty set.

    Raises:
        LoadError: the file or a field is missing, or it is not JSON.

    Source: own; format of Lin et al., COCO, arXiv 1405.0312.
    """
    file = Path(path)
    whole = _whole(file)
    if whole is None:
        found: dict[str, set[str]] = {}
        for where, record in _lines(file, "objects"):
            names = [_name(where, one) for one in record["objects"]]
            found.setdefault(str(record["image"]), set()).update(names)
        return found
    images, annotations = _indexed(file, whole, "category_id")
    if "categories" not in whole:
        raise LoadError(f"{file} has no categories; expected COCO's instances, not its captions or images alone.")
    names_of = {category["id"]: str(category["name"]) for category in whole["categories"]}
    found = {name: set() for name in images.values()}
    for one in annotations:
        found[images[one["image_id"]]].add(names_of[one["category_id"]])
    return found


def coco_captions(path: str | Path) -> dict[str, list[str]]:
    """The captions people wrote for each picture.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     file = Path(folder) / "captions.jsonl"
        ...     _ = file.write_text('{"image": "a.jpg", "captions": ["A dog with a ball."]}')
        ...     coco_captions(file)
        {'a.jpg': ['A dog with a ball.']}

    Args:
        path: COCO's captions as one JSON object (images, annotations), or JSON lines with `image` and `captions`.

    Returns:
        Picture file name -> captions, in file order; a picture without captions has an empty list.

    Raises:
        LoadError: the file or a field is missing, or it is not JSON.

    Source: own; format of Lin et al., COCO, arXiv 1405.0312.
    """
    file = Path(path)
    whole = _whole(file)
    if whole is None:
        lines: dict[str, list[str]] = {}
        for _, record in _lines(file, "captions"):
            lines.setdefault(str(record["image"]), []).extend(str(caption) for caption in record["captions"])
        return lines
    images, annotations = _indexed(file, whole, "caption")
    found: dict[str, list[str]] = {name: [] for name in images.values()}
    for one in annotations:
        found[images[one["image_id"]]].append(str(one["caption"]))
    return found


def coco_synonyms(path: str | Path | None = None) -> dict[str, tuple[str, ...]]:
    """The eighty objects of COCO, each with the other words people use for it.

    Example:
        >>> coco_synonyms()["couch"][:2]
        ('sofa', 'recliner')

    Args:
        path: one object a line, its name first, then its other names, separated by commas; None reads the copy in the
            package.

    Raises:
        LoadError: no such file.

    Source: Rohrbach et al., Object Hallucination in Image Captioning, arXiv 1809.02156; BSD-2-Clause.
    """
    file = BUILTIN / "coco_synonyms.txt" if path is None else Path(path)
    if not file.is_file():
        raise LoadError(f"there is no file {file}; expected one object a line, or None for the built-in copy.")
    lines = [[name.strip() for name in line.split(",")] for line in file.read_text(encoding="utf-8").splitlines()]
    return {names[0]: tuple(dict.fromkeys(n for n in names[1:] if n)) for names in lines if names[0]}


def _whole(file: Path) -> dict[str, Any] | None:
    """The file as one JSON object of COCO's making; None where it is something else, such as JSON lines."""
    if not file.is_file():
        raise LoadError(f"there is no file {file}; expected COCO's JSON or JSON lines. Check the path.")
    try:
        found = json.loads(file.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError:
        return None
    return found if isinstance(found, dict) and "annotations" in found else None


def _indexed(file: Path, whole: dict[str, Any], field: str) -> tuple[dict[Any, str], list[dict[str, Any]]]:
    try:
        images = {image["id"]: str(image["file_name"]) for image in whole["images"]}
        strange = [one for one in whole["annotations"] if one["image_id"] not in images or field not in one]
    except (KeyError, TypeError) as error:
        raise LoadError(f"{file} is not in COCO's format: {error!r}; expected images and annotations.") from error
    if strange:
        raise LoadError(f"{file} has {len(strange)} annotations without {field!r} or of an image it does not list.")
    return images, whole["annotations"]


def _lines(file: Path, field: str) -> list[tuple[str, dict[str, Any]]]:
    found = [(f"{file}, line {number}", record) for number, record in json_lines(file)]
    for where, record in found:
        if "image" not in record or not isinstance(record.get(field), list):
            raise LoadError(f"{where}: expected 'image' and a list {field!r}; the fields there are {sorted(record)}.")
    return found


def _name(where: str, one: object) -> str:
    name = one.get("name") if isinstance(one, dict) else one
    if not isinstance(name, str):
        raise LoadError(f"{where}: an object is {one!r}; expected its name, or an object with a name.")
    return name
