"""Pictures by name, out of a folder or a zip file, and what to do about those that are not there."""

from __future__ import annotations

import io
import logging
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from PIL import Image

from steerlab._support.errors import DataError, LoadError
from steerlab._support.pictures import Picture
from steerlab.data.example import Example, check_examples

Missing = Literal["refuse", "skip"]
NAMED = 5  # of the missing pictures, in a message

log = logging.getLogger(__name__)


def find_pictures(
    place: str | Path, names: Iterable[str], aliases: Callable[[str], Iterable[str]] = lambda name: ()
) -> dict[str, Picture]:
    """Those of the names that are there: paths in a folder, or pictures read from a zip file and decoded when used."""
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
        inside = set(box.namelist())
        return {
            name: Image.open(io.BytesIO(box.read(found)))
            for name in dict.fromkeys(names)
            if (found := next((n for n in (name, *aliases(name)) if n in inside), None))
        }


def add_pictures(
    examples: Sequence[Example], found: Mapping[str, Picture], missing: Missing, where: str | Path
) -> list[Example]:
    """The examples with the picture that `meta["picture"]` names; others are refused or dropped, and counted."""
    if missing not in ("refuse", "skip"):
        raise DataError(f"missing={missing!r} is unknown; expected 'refuse' or 'skip'")
    rows = check_examples(examples)
    kept = [row.with_(images=(found[row.meta["picture"]],)) for row in rows if row.meta["picture"] in found]
    if len(kept) == len(rows):
        return kept
    absent = list(dict.fromkeys(row.meta["picture"] for row in rows if row.meta["picture"] not in found))
    listed = ", ".join(absent[:NAMED]) + (", ..." if len(absent) > NAMED else "")
    said = f"{where} lacks {len(absent)} pictures of {len(rows) - len(kept)} of {len(rows)} rows: {listed}"
    if missing == "refuse" or not kept:
        raise DataError(f"{said}. Add them, or pass missing='skip' to go on with the rows whose pictures are there.")
    log.warning("%s; these rows are left out", said)
    return kept
