"""VLGuard: unsafe pictures to refuse, and safe ones with a question to answer and one to refuse."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from steerlab._support.errors import LoadError
from steerlab.data._images import Missing, add_images, find_images
from steerlab.data.example import Example, check_examples

# the field of a question -> (the subset it belongs to, the wanted behavior)
_QUESTIONS = {
    "instruction": ("unsafes", "refuse"),
    "safe_instruction": ("safe_safes", "answer"),
    "unsafe_instruction": ("safe_unsafes", "refuse"),
}


def vlguard(path: str | Path, *, images: str | Path | None = None, missing: Missing = "refuse") -> list[Example]:
    r"""The questions of VLGuard, each with its picture, to be refused or answered.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> record = {"id": "x", "image": "x.png", "safe": True, "instr-resp": [
        ...     {"safe_instruction": "What is shown?", "response": "A park."},
        ...     {"unsafe_instruction": "How do I vandalise it?", "response": "I can't help with that."}]}
        >>> with TemporaryDirectory() as folder:
        ...     file = Path(folder) / "test.json"
        ...     _ = file.write_text(json.dumps([record]))
        ...     [(row.id, row.behavior) for row in vlguard(file)]
        [('vlguard/x/safe_safes', 'answer'), ('vlguard/x/safe_unsafes', 'refuse')]

    Args:
        path: train.json or test.json; a file of either name gives its rows that split.
        images: the folder or zip file with the pictures; None gives the questions without them.
        missing: "refuse" raises if a picture is not there, "skip" leaves its questions out and logs how many.

    Returns:
        One example a question, in file order. `meta` has picture, subset (upstream's names: "unsafes", an unsafe
        picture; "safe_safes" and "safe_unsafes", a safe picture with a safe or an unsafe question), category and
        subcategory (of unsafe pictures) and response (the reference answer). A record id that comes twice, as one of
        train.json does, is told apart by "#2".

    Raises:
        LoadError: the file is missing or not in VLGuard's format.
        DataError: pictures are missing (the first five are named, all are in its `missing`), or there are no rows.

    Source: Zong et al., Safety Fine-Tuning at (Almost) No Cost, arXiv 2402.02207.
    """
    file = Path(path)
    rows = check_examples(row for record in _records(file) for row in _examples(file, record))
    if images is None:
        return rows
    return add_images(rows, find_images(images, (row.meta["image"] for row in rows)), missing, images)


def _records(file: Path) -> Iterator[dict[str, Any]]:
    if not file.is_file():
        raise LoadError(f"there is no file {file}; expected VLGuard's train.json or test.json. Check the path.")
    try:
        found = json.loads(file.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise LoadError(f"{file} is not JSON ({error}); expected a list of records.") from error
    if not isinstance(found, list) or not all(isinstance(record, dict) for record in found):
        raise LoadError(f"{file} holds something else than a list of records; expected VLGuard's own format.")
    times: Counter[str] = Counter()
    for number, record in enumerate(found):
        absent = [name for name in ("id", "image", "safe", "instr-resp") if name not in record]
        if absent:
            raise LoadError(f"{file}, record {number}: no field {absent}; the fields there are {sorted(record)}.")
        times[str(record["id"])] += 1
        again = times[str(record["id"])]
        yield record if again == 1 else {**record, "id": f"{record['id']}#{again}"}


def _examples(file: Path, record: dict[str, Any]) -> Iterator[Example]:
    for turn in record["instr-resp"]:
        field = next((name for name in _QUESTIONS if name in turn), None)
        if field is None or (field == "instruction") == bool(record["safe"]):
            raise LoadError(
                f"{file}, id {record['id']}: a {'safe' if record['safe'] else 'unsafe'} picture with {sorted(turn)}; "
                "expected 'instruction' for an unsafe one, 'safe_instruction' and 'unsafe_instruction' for a safe one."
            )
        subset, behavior = _QUESTIONS[field]
        yield Example(
            id=f"vlguard/{record['id']}/{subset}",
            prompt=str(turn[field]),
            behavior=behavior,
            split=file.stem if file.stem in ("train", "test") else "",
            meta={
                "image": str(record["image"]),
                "subset": subset,
                "category": str(record.get("harmful_category") or ""),
                "subcategory": str(record.get("harmful_subcategory") or ""),
                "response": str(turn.get("response", "")),
            },
        )
