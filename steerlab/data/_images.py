"""Find the images of a data set in a folder or a zip file."""

from __future__ import annotations

import logging
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

from steerlab._support.images import ImageInput, ZippedImage
from steerlab.data._files import check_option
from steerlab.data.example import Example, check_examples
from steerlab.errors import DataError, LoadError

Missing = Literal["raise", "skip"]
Aliases = Callable[[str], Iterable[str]]
MAX_LISTED = 5  # missing images named in a message

log = logging.getLogger(__name__)


def add_images(
    examples: Iterable[Example], images: str | Path | None, missing: Missing = "raise", aliases: Aliases | None = None
) -> list[Example]:
    """The examples, each with the image that `meta["image"]` names, or without any where `images` is None.

    Args:
        examples: each with a file name in `meta["image"]`.
        images: the folder or zip file with the images.
        missing: "raise" an error for images that are not there, or "skip" their examples.
        aliases: other names under which an image may be stored.

    Raises:
        LoadError: there is no such folder or zip file.
        DataError: images are missing; all their names are in the error's `missing`.
    """
    rows = check_examples(examples)
    if images is None:
        return rows
    return attach_images(rows, find_images(images, (row.meta["image"] for row in rows), aliases), missing, images)


def find_images(place: str | Path, names: Iterable[str], aliases: Aliases | None = None) -> dict[str, ImageInput]:
    """Name -> image, for the names found: files of a folder, or members of a zip, decoded each time they are used.

    A zip may hold its files in folders: `val2014/a.jpg` is found as `a.jpg`.
    """
    root = Path(place)
    candidates = {name: (name, *(aliases(name) if aliases else ())) for name in names}
    if root.is_dir():
        files = {name: [root / n for n in some if (root / n).is_file()] for name, some in candidates.items()}
        return {name: found[0] for name, found in files.items() if found}
    if not zipfile.is_zipfile(root):
        raise LoadError(f"there are no images at {root}; expected a folder or a zip file. Check the path.")
    with zipfile.ZipFile(root) as archive:
        by_base: dict[str, list[str]] = {}
        for member in archive.namelist():
            by_base.setdefault(PurePosixPath(member).name, []).append(member)
        members = {name: [m for n in some if (m := _member(root, by_base, n))] for name, some in candidates.items()}
        return {name: _zipped(root, archive, found[0]) for name, found in members.items() if found}


def _member(root: Path, by_base: Mapping[str, Sequence[str]], name: str) -> str | None:
    """The member with that name, or the one whose path ends in it."""
    near = by_base.get(PurePosixPath(name).name, [])
    found = [name] if name in near else [member for member in near if member.endswith(f"/{name}")]
    if len(found) > 1:
        raise DataError(f"{root} holds {len(found)} files for {name!r}: {', '.join(found[:MAX_LISTED])}; keep one")
    return found[0] if found else None


def _zipped(root: Path, archive: zipfile.ZipFile, member: str) -> ZippedImage:
    try:
        return ZippedImage(f"{root}/{member}", archive.read(member))
    except (zipfile.BadZipFile, zlib.error, RuntimeError, OSError, EOFError) as error:  # damaged, encrypted, exotic
        raise DataError(f"{member} can't be read from {root} ({error}): pack it again") from error


def attach_images(
    rows: Sequence[Example], found: Mapping[str, ImageInput], missing: Missing, where: str | Path
) -> list[Example]:
    """The examples with the images in `found`; the others raise an error or are dropped with a warning.

    The message names the first five missing images; `error.missing`, or the log at DEBUG level, holds all.
    """
    check_option("missing", missing, ("raise", "skip"))
    kept = [row.replace(images=(found[row.meta["image"]],)) for row in rows if row.meta["image"] in found]
    if len(kept) == len(rows):
        return kept
    absent = list(dict.fromkeys(row.meta["image"] for row in rows if row.meta["image"] not in found))
    listed = ", ".join(absent[:MAX_LISTED]) + (", ..." if len(absent) > MAX_LISTED else "")
    message = f"{where} lacks {len(absent)} images of {len(rows) - len(kept)} of {len(rows)} examples: {listed}"
    if missing == "raise" or not kept:
        error = DataError(f"{message}. Add them, or pass missing='skip' to go on without these examples.")
        error.missing = tuple(absent)
        raise error
    log.warning("%s; these examples are left out", message)
    log.debug("images missing from %s: %s", where, ", ".join(absent))
    return kept
