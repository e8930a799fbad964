"""Objects and captions from COCO's JSON and from JSON lines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from data_files import shared, write

from steerlab import LoadError
from steerlab.data import coco_captions, coco_objects, coco_synonyms

IMAGES = [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}]
INSTANCES = {
    "images": IMAGES,
    "annotations": [{"image_id": 1, "category_id": 18}, {"image_id": 1, "category_id": 18, "iscrowd": 1}],
    "categories": [{"id": 18, "name": "dog"}],
}
CAPTIONS = {"images": IMAGES, "annotations": [{"image_id": 2, "caption": "A cat."}, {"image_id": 2, "caption": "B"}]}


def test_coco_json_keeps_images_without_annotations(tmp_path: Path) -> None:
    assert coco_objects(write(tmp_path / "instances.json", INSTANCES)) == {"a.jpg": {"dog"}, "b.jpg": set()}
    assert coco_captions(write(tmp_path / "captions.json", CAPTIONS)) == {"a.jpg": [], "b.jpg": ["A cat.", "B"]}


def test_json_lines_hold_names_or_objects_with_a_name(tmp_path: Path) -> None:
    one = {"image": "a.jpg", "objects": ["dog", {"name": "cat", "bbox": [0, 0, 1, 1]}], "captions": ["C"]}
    file = write(tmp_path / "lines.jsonl", one, {"image": "b.jpg", "objects": [], "captions": []})
    assert coco_objects(file) == {"a.jpg": {"dog", "cat"}, "b.jpg": set()}
    assert coco_captions(file) == {"a.jpg": ["C"], "b.jpg": []}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (CAPTIONS, "no categories"),
        ({**CAPTIONS, "categories": []}, "2 annotations without 'category_id'"),
        ({**INSTANCES, "annotations": [{"image_id": 9, "category_id": 1}]}, "does not list"),
        ({**INSTANCES, "images": 3}, "not in COCO's format"),
        ('{"image": "a.jpg"}', "no field 'objects'"),
        ('{"image": "a.jpg", "objects": 1}', "expected a list"),
        ('{"image": "a.jpg", "objects": [3]}', "an object is 3"),
        ("nonsense", "not JSON"),
    ],
)
def test_coco_other_formats_raise(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(LoadError, match=message):
        coco_objects(write(tmp_path / "file.json", content if isinstance(content, str) else json.dumps(content)))


def test_builtin_synonyms_are_eighty_objects_without_a_shared_word() -> None:
    found = coco_synonyms()
    names = [name for thing, others in found.items() for name in {thing, *others}]
    assert len(found) == 80 and len(names) == len(set(names))
    assert "cheesecake" in found["cake"] and "" not in names


@pytest.mark.data
def test_real_annotations_are_part_of_the_larger_collection() -> None:
    folder = shared("coco_free")
    objects, every = coco_objects(folder / "annotations.jsonl"), coco_objects(folder / "objects_all.jsonl")
    assert (len(objects), len(every)) == (113, 412) and all(every[name] == objects[name] for name in objects)
    assert set().union(*every.values()) == set(coco_synonyms())
    captions = coco_captions(folder / "annotations.jsonl")
    assert sum(map(bool, captions.values())) == 87 and sum(map(len, captions.values())) == 435
