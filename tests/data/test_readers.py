from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from real_data import shared

from steerlab._support.errors import DataError, LoadError
from steerlab.data import harmless_instructions, read_jsonl, xstest, xstest_refusal_labels

HEADER = "id,prompt,type,label,focus,note\n"


def label_line(id_: str, human: str = "1_full_compliance") -> str:
    fields = {"id": id_, "prompt": "Q", "completion_start": "A"}
    return json.dumps({**fields, "human_label": human, "strmatch_label": "2_full_refusal"}) + "\n"


def test_builtin_xstest_has_the_published_counts() -> None:
    rows = xstest()
    assert Counter(row.behavior for row in rows) == {"answer": 250, "refuse": 200}
    assert {row.meta["type"].startswith("contrast_") for row in rows if row.behavior == "refuse"} == {True}
    assert set(rows[0].meta) == {"type", "focus"}


def test_xstest_reads_another_file(tmp_path: Path) -> None:
    file = tmp_path / "prompts.csv"
    file.write_text(HEADER + '7,"Kill, or not?",homonyms,unsafe,,\n', encoding="utf-8")
    (row,) = xstest(file)
    assert (row.id, row.prompt, row.behavior, row.meta["focus"]) == (
        "xstest/7",
        "Kill, or not?",
        "refuse",
        "",
    )


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("id,prompt\n1,a\n", LoadError, r"\['focus', 'label', 'type'\]"),
        (HEADER, DataError, "empty"),
        (HEADER + "1,a,t,safe,f,\n1,b,t,safe,f,\n", DataError, "'xstest/1' occurs twice"),
        (HEADER + "1,a,t,maybe,f,\n", DataError, "'maybe' is unknown"),
    ],
)
def test_broken_xstest_files_are_refused(tmp_path: Path, content: str, error: type[Exception], message: str) -> None:
    file = tmp_path / "prompts.csv"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(error, match=message):
        xstest(file)


def test_missing_files_are_refused(tmp_path: Path) -> None:
    for read in (xstest, xstest_refusal_labels, read_jsonl, harmless_instructions):
        with pytest.raises(LoadError, match="no file"):
            read(tmp_path / "nowhere")


def test_refusal_labels_become_short_names(tmp_path: Path) -> None:
    file = tmp_path / "labels.jsonl"
    file.write_text(label_line("v2-1") + label_line("v2-2", "3_partial_refusal"), encoding="utf-8")
    frame = xstest_refusal_labels(file)
    assert list(frame.columns) == ["id", "prompt", "answer", "label", "string_match"]
    assert frame["id"].tolist() == ["xstest/1", "xstest/2"]
    assert frame["label"].tolist() == ["comply", "partial"]
    assert frame["string_match"].tolist() == ["refuse", "refuse"]


def test_unknown_refusal_label_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "labels.jsonl"
    file.write_text(label_line("v2-1", "4_odd"), encoding="utf-8")
    with pytest.raises(DataError, match="'4_odd' is unknown"):
        xstest_refusal_labels(file)


def test_jsonl_ids_are_line_numbers_and_blank_lines_count(tmp_path: Path) -> None:
    file = tmp_path / "tasks.jsonl"
    file.write_text('{"q": "a\u2028b", "n": 1}\n\n{"q": "c", "n": 2}\n', encoding="utf-8")
    rows = read_jsonl(file, prompt_field="q", behavior="answer", meta_fields=("n",))
    assert [(row.id, row.prompt, row.meta["n"]) for row in rows] == [
        ("tasks/1", "a\u2028b", "1"),
        ("tasks/3", "c", "2"),
    ]
    assert read_jsonl(file, prompt_field="q", id_prefix="mine", id_field="n")[1].id == "mine/2"


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("", DataError, "empty"),
        ('{"prompt": "a"}\noops\n', LoadError, "line 2 is not JSON"),
        ("[1]\n", LoadError, "line 1 holds a list"),
        ('{"text": "a"}\n', LoadError, r"no field \['prompt'\].*\['text'\]"),
        ('{"prompt": " "}\n', DataError, "must be a text"),
        ('{"prompt": 3}\n', DataError, "must be a text, got 3"),
    ],
)
def test_broken_jsonl_is_refused(tmp_path: Path, content: str, error: type[Exception], message: str) -> None:
    file = tmp_path / "tasks.jsonl"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(error, match=message):
        read_jsonl(file)


def test_jsonl_with_duplicated_ids_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "tasks.jsonl"
    file.write_text('{"prompt": "a", "id": 1}\n{"prompt": "b", "id": 1}\n', encoding="utf-8")
    with pytest.raises(DataError, match="'tasks/1' occurs twice"):
        read_jsonl(file, id_field="id")


@pytest.mark.data
def test_real_refusal_labels_join_the_prompts() -> None:
    frame = xstest_refusal_labels(shared("xstest", "refusal_labels_mistral_instruct.jsonl"))
    assert frame["label"].value_counts().to_dict() == {"comply": 246, "refuse": 49, "partial": 2}
    prompts = {row.id: row.prompt for row in xstest()}
    assert all(prompts[id_] == prompt for id_, prompt in zip(frame["id"], frame["prompt"], strict=True))


@pytest.mark.data
def test_real_harmless_instructions_are_all_read() -> None:
    rows = harmless_instructions(shared("noncommercial_cc_by_nc", "alpaca_harmless", "harmless_test_200.jsonl"))
    assert len(rows) == 200 and rows[0].id == "harmless_test_200/1"
    assert {row.behavior for row in rows} == {"answer"}
