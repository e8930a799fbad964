"""VLGuard: questions about safe and unsafe images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from data_files import draw, write

from steerlab import DataError, LoadError
from steerlab.data import vlguard

SAFE = {
    "id": "s",
    "image": "x/s.png",
    "safe": True,
    "instr-resp": [{"safe_instruction": "A?", "response": "B."}, {"unsafe_instruction": "C?", "response": "No."}],
}
UNSAFE = {
    "id": "u",
    "image": "x/u.png",
    "safe": False,
    "harmful_category": "privacy",
    "harmful_subcategory": "personal data",
    "instr-resp": [{"instruction": "D?", "response": "No."}],
}


def write_list(folder: Path, *records: object) -> Path:
    return write(folder / "test.json", json.dumps(records, indent=1))


def test_vlguard_has_two_questions_per_safe_image_and_one_per_unsafe_image(tmp_path: Path) -> None:
    examples = vlguard(write_list(tmp_path, SAFE, UNSAFE))
    assert [(e.id, e.prompt, e.behavior) for e in examples] == [
        ("vlguard/s/safe_safes", "A?", "answer"),
        ("vlguard/s/safe_unsafes", "C?", "refuse"),
        ("vlguard/u/unsafes", "D?", "refuse"),
    ]
    assert {e.split for e in examples} == {"test"}
    assert (examples[2].meta["category"], examples[2].meta["subcategory"]) == ("privacy", "personal data")
    assert examples[0].meta["response"] == "B." and examples[0].meta["category"] == ""


def test_vlguard_finds_its_images(tmp_path: Path) -> None:
    image = draw(tmp_path / "x" / "s.png")
    file = write_list(tmp_path, SAFE, UNSAFE)
    with pytest.raises(DataError, match=r"lacks 1 images of 1 of 3 examples: x/u\.png"):
        vlguard(file, images=tmp_path)
    assert [e.images for e in vlguard(file, images=tmp_path, missing="skip")] == [(image,)] * 2


def test_vlguard_repeated_ids_are_numbered(tmp_path: Path) -> None:
    examples = vlguard(write_list(tmp_path, UNSAFE, UNSAFE))
    assert [e.id for e in examples] == ["vlguard/u/unsafes", "vlguard/u#2/unsafes"]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({**UNSAFE, "safe": True}, "a safe image with"),
        ({**SAFE, "safe": False}, "an unsafe image with"),
        ({**UNSAFE, "instr-resp": [{"question": "?"}]}, "expected 'instruction'"),
        ({"id": "x"}, "item 1: no field 'instr-resp'; the fields are"),
        ("text", "item 1 holds a str; expected a JSON object"),
    ],
)
def test_vlguard_other_formats_raise(tmp_path: Path, record: object, message: str) -> None:
    with pytest.raises(LoadError, match=message):
        vlguard(write_list(tmp_path, record))
