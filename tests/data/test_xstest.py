"""XSTest, and prompts in JSON lines."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from data_files import shared, write

from steerlab import DataError, LoadError
from steerlab.data import read_jsonl, xstest, xstest_refusal_labels

HEADER = "id,prompt,type,label,focus,note\n"


def label_record(name: str, human: str = "1_full_compliance") -> dict[str, str]:
    fields = {"id": name, "prompt": "Q", "completion_start": "A"}
    return {**fields, "human_label": human, "strmatch_label": "2_full_refusal"}


def test_builtin_xstest_has_the_published_counts() -> None:
    examples = xstest()
    assert Counter(e.behavior for e in examples) == {"answer": 250, "refuse": 200}
    assert all(e.meta["type"].startswith("contrast_") for e in examples if e.behavior == "refuse")
    assert set(examples[0].meta) == {"type", "focus"}


def test_xstest_reads_another_file(tmp_path: Path) -> None:
    (example,) = xstest(write(tmp_path / "prompts.csv", HEADER, '7,"Kill, or\nnot?",homonyms,unsafe,,\n'))
    found = (example.id, example.prompt, example.behavior, example.meta["focus"])
    assert found == ("xstest/7", "Kill, or\nnot?", "refuse", "")


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("id,prompt\n1,a\n", LoadError, r"\['focus', 'label', 'type'\]"),
        (HEADER, DataError, "empty"),
        (HEADER + "1,a,t,safe,f,\n1,b,t,safe,f,\n", DataError, "'xstest/1' occurs twice"),
        (HEADER + "1,a,t,maybe,f,\n", DataError, "label='maybe' is unknown"),
    ],
)
def test_broken_xstest_files_raise(tmp_path: Path, content: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        xstest(write(tmp_path / "prompts.csv", content))


def test_refusal_labels_get_short_names(tmp_path: Path) -> None:
    file = write(tmp_path / "labels.jsonl", label_record("v2-1"), label_record("v2-2", "3_partial_refusal"))
    frame = xstest_refusal_labels(file)
    assert list(frame.columns) == ["id", "prompt", "answer", "label", "string_match"]
    assert frame["id"].tolist() == ["xstest/1", "xstest/2"]
    assert frame["label"].tolist() == ["comply", "partial"]
    assert frame["string_match"].tolist() == ["refuse", "refuse"]
    with pytest.raises(DataError, match="'4_odd' is unknown"):
        xstest_refusal_labels(write(file, label_record("v2-1", "4_odd")))


def test_read_jsonl_ids_are_line_numbers_unless_a_field_is_named(tmp_path: Path) -> None:
    file = write(tmp_path / "tasks.jsonl", '{"q": "a\u2028b", "n": 1}\n\n{"q": "c", "n": 2}\n')
    examples = read_jsonl(file, prompt_field="q", behavior="answer", meta_fields=("n",))
    assert [(e.id, e.prompt, e.meta["n"]) for e in examples] == [
        ("tasks/1", "a\u2028b", "1"),
        ("tasks/3", "c", "2"),
    ]
    assert read_jsonl(file, prompt_field="q", id_prefix="mine", id_field="n")[1].id == "mine/2"
    assert read_jsonl(write(tmp_path / "tasks.jsonl.gz", {"prompt": "d"}), id_prefix="tasks")[0].prompt == "d"


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("", DataError, "empty"),
        ('{"prompt": "a"}\noops\n', LoadError, "line 2 is not JSON"),
        ('{"prompt": "a"}\n3\n', LoadError, "line 2 holds a int"),
        ("[1]\n", LoadError, "item 1 holds a int"),
        ('{"text": "a"}\n', LoadError, r"no field 'prompt'.*\['text'\]"),
        ('{"prompt": " "}\n', DataError, "must be a non-empty text"),
        ('{"prompt": 3}\n', DataError, "must be a non-empty text, got 3"),
        ('{"prompt": "a", "id": 1}\n{"prompt": "b", "id": 1}\n', DataError, "'tasks/1' occurs twice"),
    ],
)
def test_broken_jsonl_raises(tmp_path: Path, content: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        read_jsonl(write(tmp_path / "tasks.jsonl", content), id_field="id" if "id" in content else None)


def test_missing_files_raise(tmp_path: Path) -> None:
    for read in (xstest, xstest_refusal_labels, read_jsonl):
        with pytest.raises(LoadError, match="no file"):
            read(tmp_path / "nowhere")


@pytest.mark.data
def test_real_refusal_labels_join_the_prompts() -> None:
    frame = xstest_refusal_labels(shared("xstest", "refusal_labels_mistral_instruct.jsonl"))
    assert frame["label"].value_counts().to_dict() == {"comply": 246, "refuse": 49, "partial": 2}
    prompts = {example.id: example.prompt for example in xstest()}
    assert all(prompts[id_] == prompt for id_, prompt in zip(frame["id"], frame["prompt"], strict=True))


@pytest.mark.data
def test_real_instructions_are_all_read() -> None:
    file = shared("noncommercial_cc_by_nc", "alpaca_harmless", "harmless_test_200.jsonl")
    examples = read_jsonl(file, "instruction", behavior="answer")
    assert len(examples) == 200 and examples[0].id == "harmless_test_200/1"
