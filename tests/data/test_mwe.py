from __future__ import annotations

import doctest
import gzip
import importlib
import json
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from real_data import shared

from steerlab._support.errors import DataError
from steerlab.data import (
    DEFAULT_SYSTEM,
    PAPER_SETS,
    VARIANTS,
    Contrast,
    Example,
    answer_position_counts,
    balance_options,
    check_balance,
    mwe,
    paper_split,
    persona_prompts,
    prompt_variant,
    truthfulqa_mc,
)

NOT_HERE = {"sycophancy_train", "sycophancy_test", "truthfulqa"}
PERSONAS = {"openness": ("You are open.", "You are not open.")}
CHOICES = "What now?\n\nChoices:\n (A) Yes, go.\n (B) No, stay."


def item(question: str, wanted: str, other: str) -> dict[str, str]:
    return {"question": question, "answer_matching_behavior": wanted, "answer_not_matching_behavior": other}


def statements(n: int) -> list[dict[str, str]]:
    words = (" Yes", " No")
    return [item(f"Statement {i}?", words[i % 2], words[1 - i % 2]) for i in range(n)]


def write(file: Path, *items: object) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(one if isinstance(one, str) else json.dumps(one) + "\n" for one in items)
    file.write_bytes(gzip.compress(text.encode()) if file.suffix == ".gz" else text.encode())
    return file


def at(letters: str, words: str = "") -> list[Example]:
    return [
        Example(f"toy/{i}", "?", behavior="toy", meta={"option": letter, "word": words})
        for i, letter in enumerate(letters)
    ]


def cells(rows: list[Example]) -> dict[tuple[str, str], int]:
    return {(option, word): n for option, word, n in answer_position_counts(rows).itertuples(index=False)}


@pytest.mark.parametrize("name", ["mwe", "_mwe_balance", "_mwe_sets", "_mwe_variants"])
def test_docstring_examples_are_true(name: str) -> None:
    assert doctest.testmod(importlib.import_module(f"steerlab.data.{name}")).failed == 0


def test_the_paper_has_forty_sets() -> None:
    groups = Counter(PAPER_SETS.values())
    assert (groups.pop("advanced-ai-risk"), groups.pop("caa")) == (16, 3)
    assert len(groups) == 7 and set(groups.values()) == {3}


def test_persona_items_get_choices_that_swap_in_blocks_of_two(tmp_path: Path) -> None:
    write(tmp_path / "persona" / "openness.jsonl.gz", *statements(8))
    rows = mwe(tmp_path, "openness")
    assert [row.id for row in rows] == [f"openness/{i}" for i in range(8)]
    assert rows[1].prompt == "Statement 1?\n\nChoices:\n (A) Yes\n (B) No"
    assert rows[2].prompt == "Statement 2?\n\nChoices:\n (A) No\n (B) Yes"
    assert rows[0].contrast == Contrast("(A)", "(B)", position="first_difference")
    assert rows[2].contrast == Contrast("(B)", "(A)", position="first_difference")
    assert rows[1].meta == {"set": "openness", "option": "B", "word": "No"}
    assert rows[0].behavior == "openness" and rows[0].system is None and rows[0].split == ""
    assert set(cells(rows).values()) == {2}


def test_choices_of_the_file_are_left_as_they_are(tmp_path: Path) -> None:
    third = CHOICES.replace("No, stay.", "None of it.")
    earlier = "Old?\n (A) Right\n (B) Wrong\n\n" + CHOICES
    write(
        tmp_path / "xrisk_lm" / "risky.jsonl",
        item(CHOICES, " (B)", " (A)"),
        "\n",
        item(third, "(A)", "(B)"),
        item(earlier, " (A)", " (B)"),
        item("Do you choose (A) or (B)?", " (A)", " (B)"),
    )
    rows = mwe(tmp_path, "risky", system=DEFAULT_SYSTEM)
    assert [row.prompt for row in rows] == [CHOICES, third, earlier, "Do you choose (A) or (B)?"]
    assert [(row.id, row.meta["option"], row.meta["word"]) for row in rows] == [
        ("risky/0", "B", "No"),
        ("risky/1", "A", ""),  # one option that begins with Yes does not make it a question of Yes or No
        ("risky/2", "A", "Yes"),
        ("risky/3", "A", ""),
    ]
    assert {row.system for row in rows} == {DEFAULT_SYSTEM}


def test_source_chooses_the_folder_and_questions_of_people_may_be_sifted(tmp_path: Path) -> None:
    more = item(CHOICES + "\n (C) Wait.", " (C)", " (A)")
    write(tmp_path / "xrisk_human" / "risky.jsonl", more, item(CHOICES, " (A)", " (B)"))
    with pytest.raises(DataError, match=r"no set 'risky'.*persona/ and xrisk_lm/"):
        mwe(tmp_path, "risky")
    with pytest.raises(DataError, match=r"line 1: the answers are '\(C\)' and '\(A\)'.*two_only"):
        mwe(tmp_path, "risky", source="human")
    assert [row.id for row in mwe(tmp_path, "risky", source="human", two_only=True)] == ["risky/1"]


def test_sycophancy_is_read_from_a_file_of_its_own(tmp_path: Path) -> None:
    rows = [item("I'm Bob.\nWhich?\n(A) Agree\n(B) Disagree", "(A)", "(B)")] * 2
    lines = mwe(write(tmp_path / "caa.jsonl", *rows), "sycophancy_train")
    listed = mwe(write(tmp_path / "generate_dataset.json", rows), "sycophancy_train")
    assert lines == listed and [row.id for row in lines] == ["sycophancy_train/0", "sycophancy_train/1"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("opennes", r"no set 'opennes'.*looked for opennes\.jsonl\.gz.*'openness'"),
        ("qqqq", r"The names there are \['openness'\]"),
        ("sycophancy_test", r"published with CAA .*datasets/test/sycophancy.*Give that file"),
        ("sycophancy_train", r"datasets/generate/sycophancy"),
        ("truthfulqa", "truthfulqa_mc"),
        ("narcissism", r"looked for narcissism\.jsonl"),
    ],
)
def test_sets_that_are_not_there_are_refused(tmp_path: Path, name: str, message: str) -> None:
    write(tmp_path / "persona" / "openness.jsonl", *statements(2))
    with pytest.raises(DataError, match=message):
        mwe(tmp_path, name)


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="neither a folder nor a file"):
        mwe(tmp_path / "nowhere", "openness")
    with pytest.raises(DataError, match="'people' is unknown; expected 'lm'"):
        mwe(tmp_path, "openness", source="people")
    with pytest.raises(DataError, match="the split 'dev' is unknown"):
        mwe(tmp_path, "openness", split="dev")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("oops\n", r"set\.jsonl, line 2 is not JSON"),
        ("[1]\n", "line 2 holds a list"),
        ({"question": "?"}, r"line 2: there is no 'answer_matching_behavior' among \['question'\]"),
        (item("", " Yes", " No"), "line 2: 'question' is ''; expected a text"),
        (
            {**item("?", " Yes", " No"), "answer_not_matching_behavior": 3},
            "line 2: 'answer_not_matching_behavior' is 3",
        ),
        (item("?", " Maybe", " No"), "line 2: the answers are 'Maybe' and 'No'; expected"),
        (item("?", " Yes", " Yes"), "line 2: the answers are 'Yes' and 'Yes'"),
        (item(CHOICES, " (A)", " No"), r"line 2: the answers are '\(A\)' and 'No'"),
        (item("No options?", " (A)", " (B)"), r"line 2: the question does not show \(A\) and \(B\)"),
    ],
)
def test_lines_that_are_no_item_are_refused(tmp_path: Path, line: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        mwe(write(tmp_path / "set.jsonl", *statements(1), line), "mine")


def test_files_that_are_no_set_are_refused(tmp_path: Path) -> None:
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b"{}" * 99)[:-9])
    (tmp_path / "latin.jsonl").write_bytes(b"\xff\xfe\xfd")
    write(tmp_path / "empty.jsonl")
    write(tmp_path / "object.json", {})
    for file, message in [
        ("cut.jsonl.gz", "cannot be read"),
        ("latin.jsonl", "cannot be read"),
        ("empty.jsonl", "empty"),
        ("object.json", "expected a JSON list"),
    ]:
        with pytest.raises(DataError, match=message):
            mwe(tmp_path / file, "mine")


def test_truthfulqa_takes_the_first_false_answer_and_turns(tmp_path: Path) -> None:
    targets = [{"Yes.": 1, "No.": 0, "Never.": 0}, {"Wrong": 0, "Right": 1}]
    file = write(tmp_path / "mc_task.json", [{"question": "Q", "mc1_targets": one} for one in targets])
    rows = truthfulqa_mc(file, system="S")
    assert [row.prompt for row in rows] == [
        "Q\n\nChoices:\n (A) Yes.\n (B) No.",
        "Q\n\nChoices:\n (A) Wrong\n (B) Right",
    ]
    assert [(row.id, row.meta["option"], row.meta["word"], row.system) for row in rows] == [
        ("truthfulqa/0", "A", "Yes", "S"),
        ("truthfulqa/1", "B", "", "S"),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"question": "Q", "mc1_targets": {"a": 1}}], "item 1: mc1_targets is .*; expected a true"),
        ([{"question": "Q"}], "item 1: mc1_targets is None"),
        ([{"mc1_targets": {"a": 1, "b": 0}}], "item 1: there is no 'question'"),
        ([], "empty"),
    ],
)
def test_broken_truthfulqa_is_refused(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        truthfulqa_mc(write(tmp_path / "mc_task.json", content))
    with pytest.raises(DataError, match="no file"):
        truthfulqa_mc(tmp_path / "nowhere.json")


def test_placement_counts_every_cell() -> None:
    rows = [*at("AAB", "Yes"), *at("B")]
    assert cells(rows) == {("A", ""): 0, ("A", "Yes"): 2, ("B", ""): 1, ("B", "Yes"): 1}
    with pytest.raises(DataError, match="no rows"):
        answer_position_counts([])
    with pytest.raises(DataError, match=r"'x' has '' as meta\['option'\]"):
        answer_position_counts([Example("x", "?")])


def test_unbalanced_letters_are_flagged_with_their_counts() -> None:
    with pytest.warns(UserWarning, match=r"toy: .*\(A\) in 3 and \(B\) in 1 of 4 items \(A-Yes 3, B-Yes 1\)"):
        frame = check_balance(at("AAAB", "Yes"))
    assert frame["n"].tolist() == [3, 1]
    check_balance(at("AAAB"), tolerance=0.25)  # warnings are errors here
    check_balance(at("AB" * 4), tolerance=0.0)
    with pytest.raises(DataError, match="must lie between 0 and"):
        check_balance(at("AB"), tolerance=2.0)


def test_balanced_drops_the_same_rows_each_time() -> None:
    rows = at("AAAAAABBAB")
    kept = balance_options(rows)
    assert Counter(row.meta["option"] for row in kept) == {"A": 3, "B": 3}
    assert kept == balance_options(rows) and kept == [row for row in rows if row in kept]
    assert any(balance_options(rows, seed=seed) != kept for seed in range(1, 5))
    with pytest.raises(DataError, match=r"cannot be balanced.*'B': 0"):
        balance_options(at("AAA"))


def test_paper_split_is_the_shuffle_of_the_paper() -> None:
    rows = at("AB" * 50)
    divided = paper_split(rows)
    shuffled = [row.id for row in rows]
    random.Random(0).shuffle(shuffled)
    by_split = {part: {row.id for row in divided if row.split == part} for part in ("train", "validation", "test")}
    assert by_split == {"train": {*shuffled[:40]}, "validation": {*shuffled[40:50]}, "test": {*shuffled[50:]}}
    assert [row.id for row in divided] == [row.id for row in rows]
    assert divided == paper_split(rows) and divided != paper_split(rows, seed=1)
    assert Counter(row.split for row in paper_split(rows, (0.5, 0.0, 0.5))) == {"train": 50, "test": 50}


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        ((0.4, 0.1, 0.6), "sum to 1"),
        ((1.1, -0.1, 0.0), "sum to 1"),
        ((0.4, 0.6), "three shares"),
        ((0.9, 0.05, 0.05), "leaves none for 'validation'"),
    ],
)
def test_bad_fractions_are_refused(fractions: tuple[float, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        paper_split(at("AB" * 5), fractions)


def test_split_argument_gives_one_part(tmp_path: Path) -> None:
    file = write(tmp_path / "openness.jsonl", *statements(20))
    parts = [mwe(file, "openness", split=part) for part in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [8, 2, 10]
    assert sorted(row.id for part in parts for row in part) == sorted(row.id for row in mwe(file, "openness"))


def test_variants_change_the_prompt_and_keep_the_ids(tmp_path: Path) -> None:
    rows = mwe(write(tmp_path / "openness.jsonl", *statements(2)), "openness", system="Plain.")
    by_kind = {kind: prompt_variant(rows, kind, PERSONAS)[0] for kind in VARIANTS}
    assert {row.id for row in by_kind.values()} == {"openness/0"}
    assert {kind: row.meta["variant"] for kind, row in by_kind.items()} == {kind: kind for kind in VARIANTS}
    assert [row.system for row in by_kind.values()] == ["Plain.", *PERSONAS["openness"], "Plain.", "Plain."]
    asked = rows[0].prompt
    assert [row.prompt for row in by_kind.values()] == [
        *[asked] * 3,
        f"You are open.\n\n{asked}",
        f"You are not open.\n\n{asked}",
    ]
    assert prompt_variant(rows, "base", system=DEFAULT_SYSTEM)[0].system == DEFAULT_SYSTEM
    assert prompt_variant(rows, "user_pos", PERSONAS, system="Other.")[0].system == "Other."
    assert "variant" not in rows[0].meta
    assert prompt_variant([by_kind["base"]], "sys_pos", PERSONAS)[0].system == "You are open."


def test_impossible_variants_are_refused() -> None:
    rows = at("A")
    with pytest.raises(DataError, match="'sys' is unknown; expected one of"):
        prompt_variant(rows, "sys", PERSONAS)
    with pytest.raises(DataError, match="'toy/0': there is no persona sentence for the set 'toy' among 1"):
        prompt_variant(rows, "sys_pos", PERSONAS)
    with pytest.raises(DataError, match="persona_prompts"):
        prompt_variant(rows, "user_neg")
    with pytest.raises(DataError, match="is the variant 'sys_pos' already"):
        prompt_variant(prompt_variant(rows, "sys_pos", {"toy": ("a", "b")}), "user_pos", {"toy": ("a", "b")})


@pytest.mark.parametrize(
    ("content", "message"),
    [("oops", "is not JSON"), ([], "holds a list"), ({"a": ["one"]}, "'a' has"), ({"a": ["one", " "]}, "'a' has")],
)
def test_broken_persona_sentences_are_refused(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        persona_prompts(write(tmp_path / "personas.json", content))
    with pytest.raises(DataError, match="no file"):
        persona_prompts(tmp_path / "nowhere.json")


@pytest.mark.data
def test_real_names_are_those_of_the_paper() -> None:
    listed = json.loads(shared("mwe", "steerability_paper_40.json").read_text(encoding="utf-8"))
    assert {entry["dataset"]: entry["group"] for entry in listed} == PAPER_SETS
    assert {entry["dataset"] for entry in listed if entry["file"] is None} == NOT_HERE


@pytest.mark.data
@pytest.mark.parametrize("name", sorted(PAPER_SETS.keys() - NOT_HERE))
def test_real_sets_are_balanced(name: str) -> None:
    rows = mwe(shared("mwe"), name)
    assert len({row.id for row in rows}) == len(rows)
    counts = cells(rows)
    if PAPER_SETS[name] == "advanced-ai-risk":
        check_balance(rows, tolerance=0.0)
        assert len(rows) == {"corrigible-less-HHH": 468, "self-awareness-training-web-gpt": 934}.get(name, 1000)
    else:
        assert counts == {(letter, word): 250 for letter in "AB" for word in ("No", "Yes")}
        assert Counter(row.split for row in paper_split(rows)) == {"train": 400, "validation": 100, "test": 500}
    check_balance(mwe(shared("mwe"), name, split="test"))
    personas = persona_prompts(shared("mwe", "persona_prompts.json"))
    assert len(prompt_variant(rows, "user_neg", personas)) == len(rows)


@pytest.mark.data
def test_real_statements_alternate() -> None:
    words = [row.meta["word"] for row in mwe(shared("mwe"), "openness")]
    assert all(first != second for first, second in pairwise(words))


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "counts"),
    [("power-seeking-inclination", (254, 348)), ("survival-instinct", (493, 213)), ("coordinate-itself", (161, 161))],
)
def test_real_questions_of_people(name: str, counts: tuple[int, int]) -> None:
    rows = mwe(shared("mwe"), name, source="human", two_only=True)
    letters = Counter(row.meta["option"] for row in rows)
    assert (letters["A"], letters["B"]) == counts
    if counts[0] != counts[1]:
        with pytest.warns(UserWarning, match=name):
            check_balance(rows)
        check_balance(balance_options(rows), tolerance=0.0)


@pytest.mark.data
def test_real_truthfulqa() -> None:
    rows = truthfulqa_mc(shared("truthfulqa", "mc_task.json"))
    letters = Counter(row.meta["option"] for row in rows)
    assert letters == {"A": 409, "B": 408}
