"""Objects and captions of images, in COCO's JSON or as JSON lines, and synonyms of COCO's object names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from steerlab.data._files import BUILTIN, Record, read_records, read_text
from steerlab.errors import LoadError


def coco_objects(path: str | Path) -> dict[str, set[str]]:
    """The objects annotated in each image.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     file = Path(folder) / "objects.jsonl"
        ...     _ = file.write_text('{"image": "a.jpg", "objects": ["dog", {"name": "ball"}, "dog"]}')
        ...     sorted(coco_objects(file)["a.jpg"])
        ['ball', 'dog']

    Args:
        path: COCO's instances as one JSON object (images, annotations, categories), or JSON lines with `image` and
            `objects`, a list of names or of objects with a `name`. Crowds count as objects.

    Returns:
        Image file name -> object names; an image without annotations has an empty set.

    Raises:
        LoadError: the file or a field is missing, or it is not JSON.

    Source: format of Lin et al., COCO, arXiv 1405.0312.
    """
    coco = _coco_json(path)
    if coco is None:
        found: dict[str, set[str]] = {}
        for record in _image_records(path, "objects"):
            found.setdefault(str(record["image"]), set()).update(_name(record, one) for one in record["objects"])
        return found
    if "categories" not in coco:
        raise LoadError(f"{path} has no categories; expected COCO's instances, not its captions or images alone.")
    by_image = _by_image(path, coco, "category_id")
    try:
        name_of = {category["id"]: str(category["name"]) for category in coco["categories"]}
        return {image: {name_of[category] for category in categories} for image, categories in by_image.items()}
    except (KeyError, TypeError) as error:
        raise LoadError(f"{path} is not in COCO's format: a category without {error}, or an unknown one") from error


def coco_synonyms(path: str | Path | None = None) -> dict[str, tuple[str, ...]]:
    """The eighty objects of COCO, each with the other words people use for it.

    Example:
        >>> coco_synonyms()["couch"][:2]
        ('sofa', 'recliner')

    Args:
        path: one object per line, its name first, then its synonyms, separated by commas; None reads the copy in the
            package.

    Raises:
        LoadError: no such file.

    Source: Rohrbach et al., Object Hallucination in Image Captioning, arXiv 1809.02156; BSD-2-Clause.
    """
    text = read_text(BUILTIN / "coco_synonyms.txt" if path is None else path)
    lines = [[name.strip() for name in line.split(",")] for line in text.splitlines()]
    return {names[0]: tuple(dict.fromkeys(n for n in names[1:] if n)) for names in lines if names[0]}


def _coco_json(path: str | Path) -> dict[str, Any] | None:
    """The file as one JSON object in COCO's format; None for other formats, such as JSON lines."""
    try:
        found = json.loads(read_text(path))
    except json.JSONDecodeError:
        return None
    return found if isinstance(found, dict) and "annotations" in found else None


def _by_image(path: str | Path, coco: dict[str, Any], field: str) -> dict[str, list[Any]]:
    """Image file name -> one field of its annotations, in file order."""
    try:
        images = {image["id"]: str(image["file_name"]) for image in coco["images"]}
        wrong = [one for one in coco["annotations"] if one["image_id"] not in images or field not in one]
    except (KeyError, TypeError) as error:
        raise LoadError(f"{path} is not in COCO's format: {error!r}; expected images and annotations.") from error
    if wrong:
        raise LoadError(f"{path} has {len(wrong)} annotations without {field!r} or of an image it does not list.")
    found: dict[str, list[Any]] = {name: [] for name in images.values()}
    for one in coco["annotations"]:
        found[images[one["image_id"]]].append(one[field])
    return found


def _image_records(path: str | Path, field: str) -> list[Record]:
    records = list(read_records(path))
    for record in records:
        if not isinstance(record[field], list):
            raise LoadError(f"{record.where}: {field!r} is {record[field]!r}; expected a list.")
    return records


def _name(record: Record, one: object) -> str:
    name = one.get("name") if isinstance(one, dict) else one
    if not isinstance(name, str):
        raise LoadError(f"{record.where}: an object is {one!r}; expected its name, or an object with a name.")
    return name
