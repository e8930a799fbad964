"""Objects and captions from COCO's JSON and from JSON lines."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from steerlab._support.errors import LoadError
from steerlab.data import coco_captions, coco_objects, coco_synonyms

IMAGES = [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}]
INSTANCES = {
    "images": IMAGES,
    "annotations": [{"image_id": 1, "category_id": 18}, {"image_id": 1, "category_id": 18, "iscrowd": 1}],
    "categories": [{"id": 18, "name": "dog"}],
}
CAPTIONS = {"images": IMAGES, "annotations": [{"image_id": 2, "caption": "A cat."}, {"image_id": 2, "caption": "B"}]}


def write(folder: Path, content: object) -> Path:
    file = folder / "file.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return file


def test_instances_become_sets_and_empty_pictures_stay(tmp_path: Path) -> None:
    assert coco_objects(write(tmp_path, INSTANCES)) == {"a.jpg": {"dog"}, "b.jpg": set()}


def test_captions_are_collected_by_picture(tmp_path: Path) -> None:
    assert coco_captions(write(tmp_path, CAPTIONS)) == {"a.jpg": [], "b.jpg": ["A cat.", "B"]}


def test_json_lines_hold_names_or_objects_with_a_name(tmp_path: Path) -> None:
    one = {"image": "a.jpg", "objects": ["dog", {"name": "cat", "bbox": [0, 0, 1, 1]}], "captions": ["C"]}
    file = write(tmp_path, json.dumps(one) + "\n" + json.dumps({"image": "b.jpg", "objects": [], "captions": []}))
    assert coco_objects(file) == {"a.jpg": {"dog", "cat"}, "b.jpg": set()}
    assert coco_captions(file) == {"a.jpg": ["C"], "b.jpg": []}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (CAPTIONS, "2 annotations without 'category_id'"),
        ({**INSTANCES, "categories": None} | {"annotations": [{"image_id": 9, "category_id": 1}]}, "does not list"),
        ({"images": IMAGES, "annotations": []}, "no categories"),
        ({"annotations": []}, "not in COCO's format"),
        ('{"image": "a.jpg"}', "a list 'objects'"),
        ('{"image": "a.jpg", "objects": [3]}', "an object is 3"),
        ("nonsense", "not JSON"),
    ],
)
def test_other_formats_are_refused(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(LoadError, match=message):
        coco_objects(write(tmp_path, content))


def test_missing_files_are_refused(tmp_path: Path) -> None:
    for read in (coco_objects, coco_captions, coco_synonyms):
        with pytest.raises(LoadError, match="no file"):
            read(tmp_path / "nowhere")


def test_builtin_synonyms_are_eighty_objects_without_a_shared_word() -> None:
    found = coco_synonyms()
    names = [name for thing, others in found.items() for name in {thing, *others}]
    assert len(found) == 80 and len(names) == len(set(names))
    assert "cheesecake" in found["cake"] and "" not in names


@pytest.mark.data
def test_real_annotations_are_part_of_the_larger_collection() -> None:
    folder = Path(os.environ.get("STEERLAB_DATA", "nowhere")) / "coco_free"
    if not folder.is_dir():
        pytest.skip("STEERLAB_DATA names no folder with coco_free")
    shown, every = coco_objects(folder / "annotations.jsonl"), coco_objects(folder / "objects_all.jsonl")
    assert (len(shown), len(every)) == (113, 412) and all(every[name] == shown[name] for name in shown)
    assert set().union(*every.values()) == set(coco_synonyms())
    captions = coco_captions(folder / "annotations.jsonl")
    assert sum(map(bool, captions.values())) == 87 and sum(map(len, captions.values())) == 435
