"""COCO's annotations, and questions about images: easy-VQA, NLVR and VLGuard."""

import json
import shutil
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from data_files import VLGUARD_SAFE, VLGUARD_UNSAFE, draw, shared, write

from steerlab import Example
from steerlab._support.images import open_image
from steerlab.data import coco_objects, coco_synonyms, data_hash, easy_vqa, nlvr, vlguard
from steerlab.errors import DataError, LoadError


def test_coco_json_keeps_images_without_annotations(tmp_path):
    dog, images = {"image_id": 1, "category_id": 18}, [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}]
    instances = {"images": images, "annotations": [dog, {**dog, "iscrowd": 1}]}
    file = write(tmp_path / "instances.json", {**instances, "categories": [{"id": 18, "name": "dog"}]})
    assert coco_objects(file) == {"a.jpg": {"dog"}, "b.jpg": set()}


def test_json_lines_hold_names_or_objects_with_a_name(tmp_path):
    one = {"image": "a.jpg", "objects": ["dog", {"name": "cat", "bbox": [0, 0, 1, 1]}], "captions": ["C"]}
    file = write(tmp_path / "lines.jsonl", one, {"image": "b.jpg", "objects": [], "captions": []})
    assert coco_objects(file) == {"a.jpg": {"dog", "cat"}, "b.jpg": set()}


def test_builtin_synonyms_are_eighty_objects_without_a_shared_word():
    found = coco_synonyms()
    names = [name for thing, others in found.items() for name in {thing, *others}]
    assert len(found) == 80 and len(names) == len(set(names))
    assert "cheesecake" in found["cake"] and "" not in names


@pytest.mark.data
def test_real_annotations_are_part_of_the_larger_collection():
    folder = shared("coco_free")
    objects, every = coco_objects(folder / "annotations.jsonl"), coco_objects(folder / "objects_all.jsonl")
    assert (len(objects), len(every)) == (113, 412) and all(every[name] == objects[name] for name in objects)
    assert set().union(*every.values()) == set(coco_synonyms())


QUESTIONS = [
    ["what is the red shape?", "triangle", 0], ["what color is the circle?", "teal", 1],
    ["is there a red shape?", "yes", 0], ["is there a blue shape?", "no", 0], ["is there a gray shape?", "no", 1],
    ["is there a teal shape?", "no", 0], ["is no circle present?", "no", 1],
]  # fmt: skip


def write_easy_vqa(root: Path) -> Path:
    for number in (0, 1):
        draw(root / "train" / "images" / f"{number}.png", (64, 64))
    write(root / "train" / "questions.json", QUESTIONS)
    return root


def answers_per_template(examples: list[Example]) -> dict[str, Counter[str]]:
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for example in examples:
        if example.meta["kind"] == "yes/no":
            found[example.meta["template"]][example.behavior] += 1
    return found


def test_easy_vqa_examples_have_template_kind_and_image(tmp_path):
    examples = easy_vqa(write_easy_vqa(tmp_path))
    assert [e.meta["kind"] for e in examples[:3]] == ["shape", "color", "yes/no"]
    assert examples[0].meta["template"] == "what is the {color} shape?"
    assert examples[-1].meta["template"] == "is no {shape} present?"
    assert (examples[0].id, examples[0].behavior, examples[0].split) == ("easy_vqa/train/0", "triangle", "train")
    assert examples[1].images == (tmp_path / "train" / "images" / "1.png",)


def test_easy_vqa_zip_file_and_package_folder_give_the_same_examples(tmp_path):
    plain = easy_vqa(write_easy_vqa(tmp_path / "package" / "data"))
    assert [e.images for e in easy_vqa(tmp_path / "package")] == [e.images for e in plain]
    shutil.make_archive(str(tmp_path / "train"), "zip", tmp_path / "package" / "data" / "train")
    zipped = easy_vqa(tmp_path)
    assert [e.replace(images=()) for e in zipped] == [e.replace(images=()) for e in plain]
    assert open_image(zipped[0].images[0]).size == (64, 64) and zipped[0].images[0] is zipped[2].images[0]
    assert data_hash(zipped) == data_hash(easy_vqa(tmp_path))


def test_easy_vqa_balanced_keeps_as_many_yes_as_no_and_every_open_question(tmp_path):
    examples = easy_vqa(write_easy_vqa(tmp_path), balanced=True)
    assert answers_per_template(examples) == {"is there a {color} shape?": {"yes": 1, "no": 1}}
    assert [e.behavior for e in examples[:2]] == ["triangle", "teal"]
    assert len({tuple(e.id for e in easy_vqa(tmp_path, balanced=True, seed=s)) for s in range(9)}) == 3


def test_easy_vqa_missing_or_broken_data_raise(tmp_path):
    with pytest.raises(LoadError, match="no split 'test'"):
        easy_vqa(write_easy_vqa(tmp_path), split="test")
    (tmp_path / "train" / "images" / "1.png").unlink()
    with pytest.raises(DataError, match=r"lacks 1 images of 3 of 7 examples: images/1\.png"):
        easy_vqa(tmp_path)
    (tmp_path / "train" / "questions.json").write_text('[["what?", "yes"]]', encoding="utf-8")
    with pytest.raises(LoadError, match="broken"):
        easy_vqa(tmp_path)


@pytest.mark.data
@pytest.mark.nightly
@pytest.mark.parametrize(("split", "count", "kept"), [("train", 38575, 20466), ("test", 9673, 5029)])
def test_real_templates_predict_the_answer_unless_balanced(split, count, kept):
    examples = easy_vqa(shared("easy_vqa"), split=split)
    assert len(examples) == count and len({e.meta["template"] for e in examples}) == 24
    counts = answers_per_template(examples).values()
    assert len(counts) == 16 and sum(max(c.values()) for c in counts) / sum(map(Counter.total, counts)) > 0.8
    balanced = easy_vqa(shared("easy_vqa"), split=split, balanced=True)
    assert len(balanced) == kept and all(c["yes"] == c["no"] for c in answers_per_template(balanced).values())


def write_nlvr(root: Path, label: str = "true") -> Path:
    boxes = [[{"type": "square", "color": "Black", "x_loc": 1, "y_loc": 2, "size": 20}], [], []]
    fields = {"image": "d.png", "sentence": "There is a black squere.", "identifier": "1-0", "structured_rep": boxes}
    write(root / "dev.jsonl", {**fields, "label": label})
    draw(root / "images" / "d.png", (400, 100))
    return root


def test_nlvr_example_keeps_sentence_and_drawing(tmp_path):
    (example,) = nlvr(write_nlvr(tmp_path), prompt="True or false? {sentence}")
    assert (example.id, example.behavior, example.split) == ("nlvr/dev/1-0", "true", "validation")
    assert example.prompt == "True or false? There is a black squere." and example.meta["sentence"] in example.prompt
    assert json.loads(example.meta["structured_rep"])[0][0]["color"] == "Black"
    assert example.images == (tmp_path / "images" / "d.png",)


def test_nlvr_bad_labels_prompts_and_folders_raise(tmp_path):
    with pytest.raises(DataError, match="label='perhaps' is unknown; expected one of true, false"):
        nlvr(write_nlvr(tmp_path, "perhaps"))
    with pytest.raises(DataError, match="no place for the sentence"):
        nlvr(tmp_path, prompt="True?")
    with pytest.raises(LoadError, match="no file"):
        nlvr(tmp_path, "test")


@pytest.mark.data
@pytest.mark.parametrize(("split", "count", "true"), [("dev", 989, 547), ("test", 990, 556)])
def test_real_statements_have_their_images(split, count, true):
    examples = nlvr(shared("nlvr"), split)
    assert (len(examples), sum(e.behavior == "true" for e in examples)) == (count, true)
    assert open_image(examples[0].images[0]).size == (400, 100)
    assert {len(json.loads(e.meta["structured_rep"])) for e in examples} == {3}


def test_vlguard_has_two_questions_per_safe_image_and_one_per_unsafe_image(tmp_path):
    examples = vlguard(write(tmp_path / "test.json", [VLGUARD_SAFE, VLGUARD_UNSAFE]))
    assert [(e.id, e.prompt, e.behavior) for e in examples] == [
        ("vlguard/s/safe_safes", "A?", "answer"),
        ("vlguard/s/safe_unsafes", "C?", "refuse"),
        ("vlguard/u/unsafes", "D?", "refuse"),
    ]
    assert {e.split for e in examples} == {"test"}
    assert (examples[2].meta["category"], examples[2].meta["subcategory"]) == ("privacy", "data")
    assert examples[0].meta["response"] == "B." and examples[0].meta["category"] == ""
    twice = vlguard(write(tmp_path / "test.json", [VLGUARD_UNSAFE, VLGUARD_UNSAFE]))
    assert [e.id for e in twice] == ["vlguard/u/unsafes", "vlguard/u#2/unsafes"]


def test_vlguard_finds_its_images(tmp_path):
    image = draw(tmp_path / "x" / "s.png")
    file = write(tmp_path / "test.json", [VLGUARD_SAFE, VLGUARD_UNSAFE])
    with pytest.raises(DataError, match=r"lacks 1 images of 1 of 3 examples: x/u\.png"):
        vlguard(file, images=tmp_path)
    assert [e.images for e in vlguard(file, images=tmp_path, missing="skip")] == [(image,)] * 2
