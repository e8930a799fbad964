"""POPE's files, images found in folders and zip files, and the recipe against its published definitions."""

import io
import json
import logging
import zipfile
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from data_files import draw, shared, write
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from steerlab import Example, capture
from steerlab._support.images import open_image
from steerlab.data import ONE_WORD, coco_objects, data_hash, pope_file, pope_questions
from steerlab.data.pope_recipe import SPLITS, article
from steerlab.errors import DataError, LoadError
from steerlab.testing import tiny_vlm

NUMBERED = "COCO_val2014_000000000042.jpg"
Image.new("RGB", (4, 4), "red").save(buffer := io.BytesIO(), "JPEG")
JPEG = buffer.getvalue()


def line(number: int, image: str = "a.jpg", text: str = "Is there a dog in the image?", **more: str) -> str:
    return json.dumps({"question_id": number, "image": image, "text": text, "label": "yes", **more}) + "\n"


def write_pope(folder: Path, *lines: str) -> Path:
    return write(folder / "coco_pope_popular.jsonl", *lines)


def write_zip(place: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(place, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return place


def test_pope_question_becomes_an_example(tmp_path):
    image = draw(tmp_path / "a.jpg")
    file = write_pope(tmp_path, line(7, label="No"))
    (example,) = pope_file(file, images=tmp_path)
    found = (example.id, example.behavior, example.prompt)
    assert found == ("coco_pope_popular/7", "no", "Is there a dog in the image?")
    assert example.meta == {"image": "a.jpg", "subset": "popular", "object": "dog"}
    assert example.images == (image,) and pope_file(file)[0].images == ()


def test_instruction_is_kept_cut_or_replaced(tmp_path):
    file = write_pope(tmp_path, line(1, text="Is it? One word please."))
    prompts = [pope_file(file, instruction=instruction)[0].prompt for instruction in (None, "", ONE_WORD, "\nBriefly.")]
    assert prompts == ["Is it? One word please.", "Is it?", f"Is it? {ONE_WORD}", "Is it?\nBriefly."]


def test_zipped_images_are_decoded_when_used_and_not_kept(tmp_path, monkeypatch):
    place, file = write_zip(tmp_path / "all.zip", {"a.jpg": JPEG}), write_pope(tmp_path, line(1), line(2))
    with monkeypatch.context() as patched:
        patched.setattr(Image, "open", lambda *_: pytest.fail("decoded"))
        examples = pope_file(file, images=place)
    assert data_hash(examples) == data_hash(pope_file(file, images=place))
    (tmp_path / "a.jpg").write_bytes(JPEG)
    assert data_hash(examples) == data_hash(pope_file(file, images=tmp_path)), "as in a folder"
    image = examples[0].images[0]
    opened = open_image(image)
    assert opened.size == (4, 4) and opened is not open_image(image) and "PNG" not in repr(examples)
    assert vars(image) == {"name": f"{place}/a.jpg", "data": JPEG}, "the file and nothing else"
    assert examples[1].images[0] is image


@pytest.mark.parametrize("content", [b"", b"no image", JPEG[:200]])
def test_broken_zipped_image_is_named_with_its_zip(tmp_path, content):
    place = write_zip(tmp_path / "all.zip", {"a.jpg": content, "b.jpg": JPEG})
    examples = pope_file(write_pope(tmp_path, line(1), line(2, "b.jpg")), images=place)
    model = tiny_vlm("llava", backend="hooks")
    for use in (
        lambda: model.encode("Hi", images=examples[0].images),
        lambda: capture(model, examples, progress=False),
    ):
        with pytest.raises(DataError, match="broken, empty or no") as caught:
            use()
        assert f"{place}/a.jpg" in str(caught.value)
    assert len(capture(model, examples[1:], progress=False)) == 1


def test_damaged_zip_file_is_named(tmp_path):
    place = write_zip(tmp_path / "all.zip", {"a.jpg": JPEG})
    place.write_bytes(place.read_bytes().replace(JPEG[20:60], bytes(40)))
    with pytest.raises(DataError, match=r"a\.jpg can't be read from .*all\.zip .*: pack it again"):
        pope_file(write_pope(tmp_path, line(1)), images=place)


def test_images_are_found_by_name_and_number_in_folders_and_zip_files(tmp_path):
    file = write_pope(tmp_path, line(1, NUMBERED))
    image = draw(tmp_path / "000000000042.jpg")
    assert pope_file(file, images=tmp_path)[0].images == (image,)
    named = write_zip(tmp_path / "val2014.zip", {f"val2014/{NUMBERED}": JPEG, "test/other.jpg": JPEG})
    assert str(pope_file(file, images=named)[0].images[0]) == f"{named}/val2014/{NUMBERED}"
    numbered = write_zip(tmp_path / "new.zip", {"val/000000000042.jpg": JPEG})
    assert "000000000042.jpg" in str(pope_file(file, images=numbered)[0].images[0])


def test_zip_members_of_equal_name_in_other_folders_are_other_images(tmp_path):
    file = write_pope(tmp_path, line(1, "SD/1.jpg"))
    with pytest.raises(DataError, match="lacks 1 images"):
        pope_file(file, images=write_zip(tmp_path / "other.zip", {"TYPO/1.jpg": JPEG}))
    both = write_zip(tmp_path / "both.zip", {"x/SD/1.jpg": JPEG, "y/SD/1.jpg": JPEG})
    with pytest.raises(DataError, match=r"holds 2 files for 'SD/1\.jpg': x/SD/1\.jpg, y/SD/1\.jpg; keep one"):
        pope_file(file, images=both)
    exact = write_zip(tmp_path / "exact.zip", {"SD/1.jpg": JPEG, "old/SD/1.jpg": JPEG})
    assert str(pope_file(file, images=exact)[0].images[0]).endswith("exact.zip/SD/1.jpg")


def test_missing_images_raise_or_are_skipped(tmp_path, caplog):
    file = write_pope(tmp_path, *(line(i, f"{i}.jpg") for i in range(8)), line(8))
    for missing in ("raise", "skip"):  # nothing is left
        with pytest.raises(DataError, match=r"lacks 9 images of 9 of 9 examples: 0\.jpg, .*4\.jpg, \.\.\.") as caught:
            pope_file(file, images=tmp_path, missing=missing)
    assert caught.value.missing == (*(f"{i}.jpg" for i in range(8)), "a.jpg")
    assert DataError("anything else").missing == ()
    draw(tmp_path / "a.jpg")
    with caplog.at_level(logging.DEBUG):
        examples = pope_file(file, images=tmp_path, missing="skip")
    assert [e.id for e in examples] == ["coco_pope_popular/8"]
    messages = {record.levelname: record.getMessage() for record in caplog.records}
    assert "lacks 8 images of 8 of 9 examples" in messages["WARNING"]
    assert "4.jpg, ..." in messages["WARNING"] and "7.jpg" not in messages["WARNING"]
    assert ", ".join(f"{i}.jpg" for i in range(8)) in messages["DEBUG"]
    with pytest.raises(LoadError, match="no images at"):
        pope_file(file, images=tmp_path / "nowhere")


@pytest.mark.data
def test_articles_are_the_published_ones_but_for_one_slip():
    odd = Counter(
        example.prompt
        for file in sorted(shared("pope").glob("*_pope_*.jsonl"))
        for example in pope_file(file)
        if not example.prompt.startswith(f"Is there {article(example.meta['object'])} {example.meta['object']} in")
    )
    assert odd == {"Is there an traffic light in the image?": 1}


@pytest.mark.data
def test_real_questions_find_the_free_images():
    folder = shared("coco_free")
    examples = pope_file(folder / "pope_official_aokvqa_seem.jsonl", images=folder / "images")
    assert len(examples) == 144 and Counter(e.meta["subset"] for e in examples)["random"] == 48
    assert len({e.images for e in examples}) == 8


OBJECTS = {
    "a.jpg": ["dog", "ball", "person"], "b.jpg": ["cat", "sofa", "person"], "c.jpg": ["dog", "cat", "person", "orange"],
    "d.jpg": ["dog", "leash"],
}  # fmt: skip
NOUNS = ["person", "dog", "cat", "apple", "car", "bus", "chair", "elephant"]
annotations = st.dictionaries(
    st.sampled_from([f"{i}.jpg" for i in range(8)]), st.lists(st.sampled_from(NOUNS), max_size=6), min_size=1
)


def objects_by_image(examples: list[Example], label: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for example in examples:
        if example.behavior == label:
            found[example.meta["image"]].append(example.meta["object"])
    return found


def rank(split: str, objects_of: dict[str, set[str]], one: str, shown: set[str]) -> int:
    """The number of images with `one`, or of those with `one` and another shown object, summed over the others."""
    counted = {"random": set(), "popular": {one}, "adversarial": shown - {one}}[split]
    return sum(len(objects & counted) for objects in objects_of.values() if one in objects)


@given(annotations, st.sampled_from(SPLITS), st.sampled_from([2, 4, 6]), st.sampled_from(["image", "question"]))
def test_answers_agree_with_the_annotations_and_are_balanced(objects_of, split, per_image, ranked_by):
    options = {"per_image": per_image, "ranked_by": ranked_by, "fewer": "shrink"}
    try:
        examples = pope_questions(objects_of, split, **options)
    except DataError:
        everything = set().union(*objects_of.values())
        assert all(not objects or everything <= set(objects) for objects in objects_of.values())
        return
    assert [e.behavior for e in examples] == ["yes", "no"] * (len(examples) // 2)
    assert all((e.meta["object"] in objects_of[e.meta["image"]]) == (e.behavior == "yes") for e in examples)
    for label in ("yes", "no"):
        for objects in objects_by_image(examples, label).values():
            assert len(set(objects)) == len(objects) <= per_image // 2
    yes_questions = objects_by_image(pope_questions(objects_of, "random", **options), "yes")
    assert objects_by_image(examples, "yes") == yes_questions, "the same in all splits"


@given(annotations, st.sampled_from(["popular", "adversarial"]))
def test_absent_objects_are_the_most_frequent_or_cooccur_most_often(objects_of, split):
    sets = {image: set(objects) for image, objects in objects_of.items()}
    try:
        examples = pope_questions(objects_of, split, fewer="shrink", ranked_by="image")
    except DataError:
        return
    for image, chosen in objects_by_image(examples, "no").items():
        ranks = {one: rank(split, sets, one, sets[image]) for one in set().union(*sets.values()) - sets[image]}
        others = [ranks[one] for one in ranks.keys() - set(chosen)]
        assert min(ranks[one] for one in chosen) >= max(others, default=0)


def test_ranked_by_question_takes_the_object_seen_with_the_object_in_question():
    objects_of = {
        "a.jpg": ["dog", "car"],
        **dict.fromkeys(["b.jpg", "c.jpg"], ("dog", "leash")),
        **dict.fromkeys(["d.jpg", "e.jpg", "f.jpg"], ("car", "road")),
    }
    examples = [e for e in pope_questions(objects_of, "adversarial", 4) if e.meta["image"] == "a.jpg"]
    pairs = {examples[i].meta["object"]: examples[i + 1].meta["object"] for i in (0, 2)}
    assert pairs == {"dog": "leash", "car": "road"}


def test_equal_seeds_give_equal_questions_whatever_the_order():
    turned = {image: list(reversed(objects)) for image, objects in OBJECTS.items()}
    assert pope_questions(OBJECTS, "random", 2) == pope_questions(turned, "random", 2)
    assert len({tuple(e.id for e in pope_questions(OBJECTS, "random", 2, seed)) for seed in range(8)}) > 1


def test_ties_go_to_the_more_frequent_object_and_then_to_the_alphabet():
    examples = pope_questions(OBJECTS, "popular", 4)
    assert objects_by_image(examples, "no")["a.jpg"] == ["cat", "leash"]  # leash, orange and sofa occur once each
    examples = pope_questions(OBJECTS, "popular", 4, counts={**OBJECTS, "x": ["orange"]})
    assert objects_by_image(examples, "no")["a.jpg"] == ["cat", "orange"]
    examples = pope_questions({"a.jpg": ["dog"]}, "popular", 2, counts={"x": ["zebra", "dog"], "y": ["zebra"]})
    assert objects_by_image(examples, "no") == {"a.jpg": ["zebra"]}


def test_images_with_too_few_objects_are_skipped_or_get_fewer_questions(caplog):
    with caplog.at_level(logging.WARNING):
        assert "d.jpg" not in objects_by_image(pope_questions(OBJECTS, "random"), "yes")
    assert "1 images have too few objects for 6 questions" in caplog.text
    assert len(objects_by_image(pope_questions(OBJECTS, "random", fewer="shrink"), "no")["d.jpg"]) == 2


def test_article_follows_the_sound():
    for expected, nouns in {
        "an": "orange, umbrella, hourglass, uninvited guest, onion, Apple, urn",
        "a": "utensil, unicycle, one-way sign, skis, house, urinal",
    }.items():
        assert {noun: article(noun) for noun in nouns.split(", ")} == dict.fromkeys(nouns.split(", "), expected)


def test_pope_questions_bad_options_raise():
    with pytest.raises(DataError, match="split='hard' is unknown; expected one of random, popular, adversarial"):
        pope_questions(OBJECTS, "hard")
    with pytest.raises(DataError, match="expected an even number"):
        pope_questions(OBJECTS, "random", per_image=5)
    with pytest.raises(DataError, match="none of 1 images has 3 objects"):
        pope_questions({"a.jpg": ["dog"]}, "random")


def contradictions(examples: list[Example], absent: dict[str, set[str]], per_question: bool) -> tuple[int, int]:
    """How often one absent object was chosen before another, and how often it was the other way round elsewhere."""
    before: set[tuple[str, str, str]] = set()
    present = objects_by_image(examples, "yes")
    for image, others in objects_by_image(examples, "no").items():
        for i, (noun, chosen) in enumerate(zip(present[image], others, strict=True), start=1):
            before |= {(noun * per_question, chosen, left) for left in absent[image].difference(others[:i])}
    return len(before), sum((key, left, chosen) in before for key, chosen, left in before)


@pytest.mark.data
@pytest.mark.parametrize("source", ["coco_pope", "aokvqa_pope_seem", "gqa_pope_seem"])
def test_published_files_are_balanced_and_rank_absent_objects_the_same_way(source):
    parts = {split: pope_file(shared("pope", f"{source}_{split}.jsonl")) for split in SPLITS}
    yes_half = []
    absent: dict[str, set[str]] = defaultdict(set)
    for split, examples in parts.items():
        assert len(examples) == 3000 and {e.meta["subset"] for e in examples} == {split}
        yes, no = (objects_by_image(examples, label) for label in ("yes", "no"))
        assert len(yes) == 500 and yes.keys() == no.keys()
        assert all(len(objects) == 3 and all(objects) for objects in [*yes.values(), *no.values()])
        yes_half.append({image: sorted(objects) for image, objects in yes.items()})
        for image, objects in no.items():
            absent[image].update(objects)
    if source == "coco_pope":
        assert yes_half[0] == yes_half[1] == yes_half[2]
    seen, against = contradictions(parts["popular"], absent, per_question=False)
    assert seen > 500 and against == 0  # one order for all images
    seen, against = contradictions(parts["adversarial"], absent, per_question=True)
    assert seen > 3000 and against == 0  # one order for each object asked about, as ranked_by="question"
    assert contradictions(parts["adversarial"], absent, per_question=False)[1] > 500
    assert contradictions(parts["random"], absent, per_question=False)[1] > 500


@pytest.mark.data
@pytest.mark.parametrize("split", SPLITS)
def test_questions_match_those_of_an_independent_implementation(split):
    folder = shared("coco_free")
    objects_of, counts = coco_objects(folder / "annotations.jsonl"), coco_objects(folder / "objects_all.jsonl")
    theirs = pope_file(folder / f"pope_style_{split}.jsonl", images=folder / "images")
    options = {"counts": counts, "fewer": "shrink", "ranked_by": "image", "images": folder / "images"}
    ours = pope_questions(objects_of, split, **options)
    absent, expected = objects_by_image(ours, "no"), objects_by_image(theirs, "no")
    assert set(expected) <= set(absent)
    for image, others in expected.items():
        assert not set(others) & objects_of[image]
        ranks = [
            sorted(rank(split, counts, one, objects_of[image]) for one in names) for names in (others, absent[image])
        ]
        assert ranks[0] == ranks[1]
    assert {e.meta["object"] for e in theirs if e.behavior == "yes"} <= set().union(*objects_of.values())
    assert len(ours) == 536 + 22  # eleven images with one object get questions, too
