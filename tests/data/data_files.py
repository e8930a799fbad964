"""Files for the tests of data sets: real ones where they are available, and small ones written by the tests."""

import gzip
import json
import os
from pathlib import Path

import pytest
from PIL import Image


def shared(*parts: str) -> Path:
    """A file or folder in the folder named by STEERLAB_DATA; the test is skipped without it."""
    file = Path(os.environ["STEERLAB_DATA"], *parts)
    if not file.exists():
        pytest.skip(f"the folder named by STEERLAB_DATA has no {'/'.join(parts)}")
    return file


def write(file: Path, *records: object) -> Path:
    """Write text as it is and other records as JSON lines; gzipped if the name ends in .gz."""
    file.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(one if isinstance(one, str) else json.dumps(one) + "\n" for one in records)
    file.write_bytes(gzip.compress(text.encode()) if file.suffix == ".gz" else text.encode())
    return file


def draw(file: Path, size: tuple[int, int] = (4, 4)) -> Path:
    """Write a red image."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "red").save(file)
    return file


def mwe_item(question: str, wanted: str, unwanted: str) -> dict[str, str]:
    """A line of a model-written evaluation."""
    return {"question": question, "answer_matching_behavior": wanted, "answer_not_matching_behavior": unwanted}


ANSWERS = [{"safe_instruction": "A?", "response": "B."}, {"unsafe_instruction": "C?", "response": "No."}]
VLGUARD_SAFE = {"id": "s", "image": "x/s.png", "safe": True, "instr-resp": ANSWERS}
VLGUARD_UNSAFE = {"id": "u", "image": "x/u.png", "safe": False, "harmful_category": "privacy"}
VLGUARD_UNSAFE |= {"harmful_subcategory": "data", "instr-resp": [{"instruction": "D?", "response": "No."}]}
