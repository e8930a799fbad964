"""Pictures by name, out of a folder or a zip file, and what to do about those that are not there."""

from __future__ import annotations

import logging
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

from steerlab._support.errors import DataError, LoadError
from steerlab._support.images import ImageInput, ZippedImage
from steerlab.data.example import Example, check_examples

Missing = Literal["refuse", "skip"]
NAMED = 5  # of the missing pictures, in a message

log = logging.getLogger(__name__)


def find_images(
    place: str | Path, names: Iterable[str], aliases: Callable[[str], Iterable[str]] = lambda name: ()
) -> dict[str, ImageInput]:
    """Those of the names that are there: paths in a folder, or files out of a zip, each decoded when it is used.

    A zip may hold everything in folders of its own: `val2014/a.jpg` is found as `a.jpg`.
    """
    root = Path(place)
    if root.is_dir():
        return {
            name: root / found
            for name in dict.fromkeys(names)
            if (found := next((n for n in (name, *aliases(name)) if (root / n).is_file()), None))
        }
    if not root.is_file() or not zipfile.is_zipfile(root):
        raise LoadError(f"there are no pictures at {root}; expected a folder or a zip file. Check the path.")
    with zipfile.ZipFile(root) as box:
        inside = _Inside(root, box.namelist())
        return {
            name: _unpacked(root, box, member)
            for name in dict.fromkeys(names)
            if (member := next(filter(None, map(inside.find, (name, *aliases(name)))), None))
        }


class _Inside:
    """The files of a zip by the last part of their path."""

    def __init__(self, root: Path, members: Iterable[str]) -> None:
        self.root = root
        self.by_base: dict[str, list[str]] = {}
        for member in members:
            self.by_base.setdefault(PurePosixPath(member).name, []).append(member)

    def find(self, name: str) -> str | None:
        """The member of that name, or the one whose path ends in it: another folder's file is another picture."""
        near = self.by_base.get(PurePosixPath(name).name, [])
        found = [name] if name in near else [member for member in near if member.endswith(f"/{name}")]
        if len(found) > 1:
            raise DataError(f"{self.root} holds {len(found)} files for {name!r}: {', '.join(found[:NAMED])}; keep one")
        return found[0] if found else None


def _unpacked(root: Path, box: zipfile.ZipFile, member: str) -> ZippedImage:
    try:
        return ZippedImage(f"{root}/{member}", box.read(member))
    except (zipfile.BadZipFile, zlib.error, RuntimeError, OSError, EOFError) as error:  # damaged, encrypted, exotic
        raise DataError(f"{member} can't be taken out of {root} ({error}): pack it again") from error


def add_images(
    examples: Sequence[Example], found: Mapping[str, ImageInput], missing: Missing, where: str | Path
) -> list[Example]:
    """The examples with the picture that `meta["image"]` names; others are refused or dropped, and counted.

    A message names the first five that are missing; `error.missing`, or the log at DEBUG, all of them.
    """
    if missing not in ("refuse", "skip"):
        raise DataError(f"missing={missing!r} is unknown; expected 'refuse' or 'skip'")
    rows = check_examples(examples)
    kept = [row.replace(images=(found[row.meta["image"]],)) for row in rows if row.meta["image"] in found]
    if len(kept) == len(rows):
        return kept
    absent = list(dict.fromkeys(row.meta["image"] for row in rows if row.meta["image"] not in found))
    listed = ", ".join(absent[:NAMED]) + (", ..." if len(absent) > NAMED else "")
    said = f"{where} lacks {len(absent)} pictures of {len(rows) - len(kept)} of {len(rows)} rows: {listed}"
    if missing == "refuse" or not kept:
        error = DataError(f"{said}. Add them, or pass missing='skip' to go on with the rows whose pictures are there.")
        error.missing = tuple(absent)
        raise error
    log.warning("%s; these rows are left out", said)
    log.debug("the pictures that %s lacks: %s", where, ", ".join(absent))
    return kept
