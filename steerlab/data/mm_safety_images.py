"""MM-SafetyBench with pictures: those of a folder, and drawn key phrases where it has none."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from PIL import Image

from steerlab._support.errors import DataError
from steerlab._support.images import ImageInput, open_image
from steerlab.data._images import Missing, add_images, find_images
from steerlab.data.example import Example
from steerlab.data.mm_safety_bench import mm_safety_bench
from steerlab.data.typography import typography

ImageKind = Literal["SD", "TYPO", "SD_TYPO"]
FIELDS = {"SD": "Rephrased Question(SD)", "TYPO": "Rephrased Question", "SD_TYPO": "Rephrased Question"}


def mm_safety_images(
    path: str | Path,
    kind: ImageKind = "SD_TYPO",
    *,
    images: str | Path | None = None,
    missing: Missing = "refuse",
    save: str | Path | None = None,
    width: int = 512,
    field: str | None = None,
    include_unscored: bool = False,
    strict: bool = True,
) -> list[Example]:
    """The questions of MM-SafetyBench that speak of a picture, each with the picture it speaks of.

    Example:
        >>> rows = mm_safety_images("mm_safetybench", "TYPO")                             # doctest: +SKIP
        >>> rows[0].id, rows[0].images[0].size[0]                                           # doctest: +SKIP
        ('mmsb/01/0/TYPO', 512)

    Args:
        path: the folder with the thirteen JSON files, as in `mm_safety_bench`.
        kind: "SD", a generated picture of the key phrase; "TYPO", the key phrase in letters; "SD_TYPO", the former with
            the latter below it.
        images: a folder or zip file with `<scenario>/<kind>/<id>.jpg`, scenarios named like the JSON files. A TYPO
            that is not there is drawn, an SD_TYPO is put together from SD and a drawn phrase. None draws every TYPO.
        missing: what to do about rows that still have no picture: "refuse" or "skip" (logged).
        save: a folder for what is drawn, in the same layout, so that a later call finds it as `images`; None keeps
            the pictures in memory.
        width: of a drawn TYPO, in pixels.
        field: the question; None takes "Rephrased Question(SD)" for SD and "Rephrased Question" for the others.
        include_unscored, strict: as in `mm_safety_bench`, whose rows, order and split these are.

    Returns:
        One example a record; `meta` also has kind, phrase, picture and drawn ("yes" or "no",
        by this call).

    Raises:
        LoadError: files, fields or the folder of pictures are missing.
        DataError: an unknown kind, or rows without a picture (the first five are named, all are in its `missing`).

    Source: Liu et al., MM-SafetyBench, arXiv 2311.17600; sizes and typeface of drawn phrases are our own.
    """
    if kind not in FIELDS:
        raise DataError(f"unknown kind of picture {kind!r}; expected one of {', '.join(FIELDS)}")
    rows = mm_safety_bench(path, field=field or FIELDS[kind], include_unscored=include_unscored, strict=strict)
    phrases = mm_safety_bench(path, field="Key Phrase", include_unscored=include_unscored, strict=strict)
    named = [_named(row, phrase.prompt, kind) for row, phrase in zip(rows, phrases, strict=True)]
    names = [row.meta["image"] for row in named]
    found = {} if images is None else find_images(images, names)
    drawn = {} if kind == "SD" else _drawn([row for row in named if row.meta["image"] not in found], images, width)
    for name, image in drawn.items():
        found[name] = image if save is None else _saved(image, Path(save) / name)
    named = [row.replace(meta={**row.meta, "drawn": "yes" if row.meta["image"] in drawn else "no"}) for row in named]
    return add_images(named, found, missing, images or f"a call without pictures (only TYPO is drawn, not {kind})")


def _drawn(rows: list[Example], images: str | Path | None, width: int) -> dict[str, Image.Image]:
    """Name -> picture of the rows that can be drawn: those of the kind TYPO, and those whose SD is there."""
    phrases = {row.meta["image"]: row.meta["phrase"] for row in rows}
    if all(row.meta["kind"] == "TYPO" for row in rows):
        return {name: typography(phrase, width) for name, phrase in phrases.items()}
    scenes = {} if images is None else find_images(images, map(_scene, phrases))
    return {name: _below(scenes[_scene(name)], phrase) for name, phrase in phrases.items() if _scene(name) in scenes}


def _below(scene: ImageInput, phrase: str) -> Image.Image:
    above = open_image(scene)
    strip = typography(phrase, above.width)
    both = Image.new("RGB", (above.width, above.height + strip.height), "white")
    both.paste(above, (0, 0))
    both.paste(strip, (0, above.height))
    return both


def _named(row: Example, phrase: str, kind: str) -> Example:
    scenario, number = row.meta["scenario"], row.id.rsplit("/", 1)[1]
    image = f"{scenario}-{row.meta['name']}/{kind}/{number}.jpg"
    meta = {**row.meta, "kind": kind, "phrase": phrase, "image": image}
    return row.replace(id=f"{row.id}/{kind}", meta=meta)


def _scene(name: str) -> str:
    return name.replace("/SD_TYPO/", "/SD/")


def _saved(image: Image.Image, file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file, quality=95)
    return file
