"""Files in another format raise an error that names the line and the field."""

import gzip

import pytest
from data_files import VLGUARD_SAFE, VLGUARD_UNSAFE, mwe_item, write

from steerlab import data
from steerlab.errors import DataError, LoadError

COCO = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 9, "category_id": 18}]}
CSV = "id,prompt,type,label,focus,note\n"
POPE = '{"question_id": 1, "image": "a.jpg", "text": "Is it?", "label": "yes"}\n'
REFUSAL = {"id": "v2-1", "prompt": "Q", "completion_start": "A", "strmatch_label": "2_full_refusal"}
ITEM = mwe_item("?", " Yes", " No")
SHOWN = "Now?\n\nChoices:\n (A) Yes.\n (B) No."


def by_id(file):
    return data.read_jsonl(file, id_field="id")


def my_set(file):
    return data.mwe(file, "mine")


CASES = {
    (data.coco_objects, "file.json", LoadError): [
        (COCO, "no categories"),
        ({**COCO, "categories": [], "annotations": [{"image_id": 1}] * 2}, "2 annotations without 'category_id'"),
        ({**COCO, "categories": [{"id": 18, "name": "dog"}]}, "does not list"),
        ({**COCO, "categories": [{"id": 18, "name": "dog"}], "images": 3}, "not in COCO's format"),
        ('{"image": "a.jpg"}', "no field 'objects'"), ('{"image": "a.jpg", "objects": 1}', "expected a list"),
        ('{"image": "a.jpg", "objects": [3]}', "an object is 3"), ("nonsense", "not JSON"),
    ],
    (data.vlguard, "test.json", LoadError): [
        ([{**VLGUARD_UNSAFE, "safe": True}], "a safe image with"),
        ([{**VLGUARD_SAFE, "safe": False}], "an unsafe image with"),
        ([{**VLGUARD_UNSAFE, "instr-resp": [{"question": "?"}]}], "expected 'instruction'"),
        ([{"id": "x"}], "item 1: no field 'instr-resp'; the fields are"),
        (["text"], "item 1 holds a str; expected a JSON object"),
    ],
    (data.xstest, "prompts.csv", LoadError): [("id,prompt\n1,a\n", r"\['focus', 'label', 'type'\]")],
    (data.xstest, "prompts.csv", DataError): [
        (CSV, "empty"), (CSV + "1,a,t,safe,f,\n1,b,t,safe,f,\n", "'xstest/1' occurs twice"),
        (CSV + "1,a,t,maybe,f,\n", "label='maybe' is unknown"),
    ],
    (data.xstest_refusal_labels, "labels.jsonl", DataError): [
        ({**REFUSAL, "human_label": "4_odd"}, "'4_odd' is unknown")
    ],
    (data.read_jsonl, "tasks.jsonl", LoadError): [
        ('{"prompt": "a"}\noops\n', "line 2 is not JSON"), ('{"prompt": "a"}\n3\n', "line 2 holds a int"),
        ("[1]\n", "item 1 holds a int"), ('{"text": "a"}\n', r"no field 'prompt'.*\['text'\]"),
    ],
    (data.read_jsonl, "tasks.jsonl", DataError): [
        ("", "empty"), ('{"prompt": " "}\n', "must be a non-empty text"),
        ('{"prompt": 3}\n', "must be a non-empty text, got 3"),
    ],
    (by_id, "tasks.jsonl", DataError): [([{"prompt": "a", "id": 1}] * 2, "'tasks/1' occurs twice")],
    (data.trivia_pairs, "pairs.jsonl", LoadError): [({"q": "?"}, "question")],
    (data.pope_file, "coco_pope_popular.jsonl", LoadError): [
        ('{"image": "a"}\n', r"line 1: no field 'text'; the fields are \['image'\]")
    ],
    (data.pope_file, "coco_pope_popular.jsonl", DataError): [
        (POPE.replace("yes", "maybe"), "line 1: label='maybe' is unknown; expected one of yes, no"),
        (POPE + POPE, "occurs twice"), ("", "empty"),
    ],
    (my_set, "set.jsonl", LoadError): [
        ((ITEM, "oops\n"), r"set\.jsonl, line 2 is not JSON"), ((ITEM, "[1]\n"), "line 2 holds a list"),
        ((ITEM, {"question": "?"}), r"line 2: no field 'answer_matching_behavior'.*\['question'\]"),
        (b"\xff\xfe\xfd", "cannot be read"),
    ],
    (my_set, "set.jsonl", DataError): [
        ((ITEM, mwe_item("", " Yes", " No")), "line 2: 'question' must be a non-empty text"),
        ((ITEM, mwe_item("?", " Yes", 3)), "non-empty text, got 3"),
        ((ITEM, mwe_item("?", " Maybe", " No")), "line 2: the answers are 'Maybe' and 'No'; expected"),
        ((ITEM, mwe_item("?", " Yes", " Yes")), "line 2: the answers are 'Yes' and 'Yes'"),
        ((ITEM, mwe_item(SHOWN, " (A)", " No")), r"line 2: the answers are '\(A\)' and 'No'"),
        ((ITEM, mwe_item("No options?", " (A)", " (B)")), r"line 2: the question does not show \(A\) and \(B\)"),
        ("", "empty"),
    ],
    (my_set, "cut.jsonl.gz", LoadError): [(gzip.compress(b"{}" * 99, mtime=0)[:-9], "cannot be read")],
    (my_set, "object.json", LoadError): [("{}", "no field 'question'")],
    (data.truthfulqa_mc, "mc_task.json", LoadError): [
        ([{"question": "Q"}], "item 1: no field 'mc1_targets'"),
        ([{"mc1_targets": {"a": 1, "b": 0}}], "item 1: no field 'question'"),
    ],
    (data.truthfulqa_mc, "mc_task.json", DataError): [
        ([{"question": "Q", "mc1_targets": {"a": 1}}], "item 1: mc1_targets is .*; expected a true"), ([], "empty"),
    ],
    (data.persona_prompts, "personas.json", LoadError): [("oops", "is not JSON"), ([], "holds a list")],
    (data.persona_prompts, "personas.json", DataError): [({"a": ["one"]}, "'a' has"), ({"a": ["one", " "]}, "'a' has")],
}  # fmt: skip


@pytest.mark.parametrize(
    ("read", "name", "error", "content", "message"), [(*key, *case) for key, cases in CASES.items() for case in cases]
)
def test_files_in_another_format_raise(tmp_path, read, name, error, content, message):
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        write(tmp_path / name, *(content if isinstance(content, tuple) else (content,)))
    with pytest.raises(error, match=message):
        read(tmp_path / name)


@pytest.mark.parametrize(
    "read", [data.xstest, data.xstest_refusal_labels, data.read_jsonl, data.persona_prompts, my_set]
)
def test_missing_files_raise(tmp_path, read):
    with pytest.raises(LoadError, match=r"no file|neither a folder nor a file"):
        read(tmp_path / "nowhere")
