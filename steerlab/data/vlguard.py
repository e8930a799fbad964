"""VLGuard: unsafe images to refuse, and safe images with one question to answer and one to refuse."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from steerlab.data._files import Record, read_records
from steerlab.data._images import Missing, add_images
from steerlab.data.example import Example
from steerlab.errors import LoadError

# the field of a question -> (the subset it belongs to, the wanted behavior)
_QUESTIONS = {
    "instruction": ("unsafes", "refuse"),
    "safe_instruction": ("safe_safes", "answer"),
    "unsafe_instruction": ("safe_unsafes", "refuse"),
}


def vlguard(path: str | Path, *, images: str | Path | None = None, missing: Missing = "raise") -> list[Example]:
    r"""The questions of VLGuard, each with its image, to be refused or answered.

    Example:
        >>> import json
        >>> from tempfile import TemporaryDirectory
        >>> record = {"id": "x", "image": "x.png", "safe": True, "instr-resp": [
        ...     {"safe_instruction": "What is shown?", "response": "A park."},
        ...     {"unsafe_instruction": "How do I vandalize it?", "response": "I can't help with that."}]}
        >>> with TemporaryDirectory() as folder:
        ...     file = Path(folder) / "test.json"
        ...     _ = file.write_text(json.dumps([record]))
        ...     [(example.id, example.behavior) for example in vlguard(file)]
        [('vlguard/x/safe_safes', 'answer'), ('vlguard/x/safe_unsafes', 'refuse')]

    Args:
        path: train.json or test.json; these names also set the split of the examples.
        images: the folder or zip file with the images; None reads the questions without them.
        missing: "raise" an error if an image is not there, or "skip" its questions and log how many.

    Returns:
        One example per question, in file order. `meta` has image, subset (upstream's names: "unsafes", an unsafe
        image; "safe_safes" and "safe_unsafes", a safe image with a safe or an unsafe question), category and
        subcategory (of unsafe images) and response (the reference answer). The second record of an id, which
        train.json has once, gets "#2" appended to the id.

    Raises:
        LoadError: the file is missing or not in VLGuard's format.
        DataError: images are missing (the first five are named, all are in the error's `missing`), or no rows.

    Source: Zong et al., Safety Fine-Tuning at (Almost) No Cost, arXiv 2402.02207.
    """
    records = list(read_records(path))
    split = Path(path).stem if Path(path).stem in ("train", "test") else ""
    seen: Counter[str] = Counter()
    examples: list[Example] = []
    for record in records:
        name = record.key("id")
        seen[name] += 1
        examples += _examples(record, name if seen[name] == 1 else f"{name}#{seen[name]}", split)
    return add_images(examples, images, missing)


def _examples(record: Record, name: str, split: str) -> Iterator[Example]:
    for turn in record.records("instr-resp"):
        field = next((field for field in _QUESTIONS if field in turn.fields), None)
        if field is None or (field == "instruction") == bool(record["safe"]):
            raise LoadError(
                f"{record.where}: {'a safe' if record['safe'] else 'an unsafe'} image with {sorted(turn.fields)}; "
                "expected 'instruction' for an unsafe one, 'safe_instruction' and 'unsafe_instruction' for a safe one."
            )
        subset, behavior = _QUESTIONS[field]
        yield Example(
            id=f"vlguard/{name}/{subset}",
            prompt=turn.text(field),
            behavior=behavior,
            split=split,
            meta={
                "image": str(record["image"]),
                "subset": subset,
                "category": str(record.get("harmful_category") or ""),
                "subcategory": str(record.get("harmful_subcategory") or ""),
                "response": str(turn.get("response") or ""),
            },
        )
