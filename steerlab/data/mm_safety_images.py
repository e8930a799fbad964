"""MM-SafetyBench with images: those of a folder, and key phrases drawn as images."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from PIL import Image

from steerlab._support.images import ImageInput, open_image
from steerlab.data._files import check_option
from steerlab.data._images import Missing, attach_images, find_images
from steerlab.data.example import Example
from steerlab.data.mm_safety_bench import mm_safety_bench
from steerlab.data.typography import draw_phrase

ImageKind = Literal["SD", "TYPO", "SD_TYPO"]
FIELDS = {"SD": "Rephrased Question(SD)", "TYPO": "Rephrased Question", "SD_TYPO": "Rephrased Question"}


def mm_safety_images(
    path: str | Path,
    kind: ImageKind = "SD_TYPO",
    *,
    images: str | Path | None = None,
    missing: Missing = "raise",
    save: str | Path | None = None,
    width: int = 512,
    field: str | None = None,
    include_unscored: bool = False,
    strict: bool = True,
) -> list[Example]:
    """The questions of MM-SafetyBench that refer to an image, each with that image.

    Example:
        >>> examples = mm_safety_images("mm_safetybench", "TYPO")                               # doctest: +SKIP
        >>> examples[0].id, examples[0].images[0].size[0]                                       # doctest: +SKIP
        ('mmsb/01/0/TYPO', 512)

    Args:
        path: the folder with the thirteen JSON files, as in `mm_safety_bench`.
        kind: "SD", a generated image of the key phrase; "TYPO", the key phrase in letters; "SD_TYPO", the former with
            the latter below it.
        images: a folder or zip file with `<scenario>/<kind>/<id>.jpg`, scenarios named like the JSON files. A missing
            TYPO image is drawn, a missing SD_TYPO is combined from SD and a drawn phrase. None draws every TYPO.
        missing: for examples that still have no image: "raise" an error, or "skip" them and log how many.
        save: a folder for the drawn images, in the same layout, so that a later call finds them as `images`; None
            keeps them in memory.
        width: of a drawn TYPO, in pixels.
        field: the question; None takes "Rephrased Question(SD)" for SD and "Rephrased Question" for the others.
        include_unscored, strict: as in `mm_safety_bench`, which decides examples, order and split.

    Returns:
        One example per record; `meta` also has kind, phrase, image and drawn ("yes" or "no", by this call).

    Raises:
        LoadError: files, fields or the folder of images are missing.
        DataError: an unknown kind, or examples without an image (five are named, all are in the error's `missing`).

    Source: Liu et al., MM-SafetyBench, arXiv 2311.17600; sizes and typeface of drawn phrases differ from theirs.
    """
    check_option("kind", kind, FIELDS)
    questions = mm_safety_bench(path, field=field or FIELDS[kind], include_unscored=include_unscored, strict=strict)
    phrases = mm_safety_bench(path, field="Key Phrase", include_unscored=include_unscored, strict=strict)
    rows = [_with_image_name(row, str(phrase.prompt), kind) for row, phrase in zip(questions, phrases, strict=True)]
    found = {} if images is None else find_images(images, (row.meta["image"] for row in rows))
    drawn = _draw([row for row in rows if row.meta["image"] not in found], kind, images, width)
    for name, image in drawn.items():
        found[name] = image if save is None else _save(image, Path(save) / name)
    rows = [row.replace(meta={**row.meta, "drawn": "yes" if row.meta["image"] in drawn else "no"}) for row in rows]
    return attach_images(rows, found, missing, images or f"a call without images (only TYPO is drawn, not {kind})")


def _with_image_name(row: Example, phrase: str, kind: str) -> Example:
    image = f"{row.meta['scenario']}-{row.meta['name']}/{kind}/{row.id.rsplit('/', 1)[1]}.jpg"
    return row.replace(id=f"{row.id}/{kind}", meta={**row.meta, "kind": kind, "phrase": phrase, "image": image})


def _draw(rows: list[Example], kind: str, images: str | Path | None, width: int) -> dict[str, Image.Image]:
    """Name -> image of the rows that can be drawn: all of the kind TYPO, and SD_TYPO where the SD image is there."""
    phrases = {row.meta["image"]: row.meta["phrase"] for row in rows}
    if kind == "TYPO":
        return {name: draw_phrase(phrase, width) for name, phrase in phrases.items()}
    if kind == "SD" or images is None:
        return {}
    photos = find_images(images, map(_sd_name, phrases))
    return {n: _stack(photos[_sd_name(n)], phrase) for n, phrase in phrases.items() if _sd_name(n) in photos}


def _stack(photo: ImageInput, phrase: str) -> Image.Image:
    """The image with the drawn phrase below it."""
    above = open_image(photo)
    strip = draw_phrase(phrase, above.width)
    both = Image.new("RGB", (above.width, above.height + strip.height), "white")
    both.paste(above, (0, 0))
    both.paste(strip, (0, above.height))
    return both


def _sd_name(name: str) -> str:
    return name.replace("/SD_TYPO/", "/SD/")


def _save(image: Image.Image, file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file, quality=95)
    return file
