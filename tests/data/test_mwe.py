"""Model-written evaluations: choices, balance, the paper's split and prompt variants."""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from data_files import shared, write

from steerlab import Contrast, DataError, Example, LoadError
from steerlab.data import (
    DEFAULT_SYSTEM,
    PAPER_SETS,
    VARIANTS,
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


def item(question: str, wanted: str, unwanted: str) -> dict[str, str]:
    return {"question": question, "answer_matching_behavior": wanted, "answer_not_matching_behavior": unwanted}


def statements(n: int) -> list[dict[str, str]]:
    words = (" Yes", " No")
    return [item(f"Statement {i}?", words[i % 2], words[1 - i % 2]) for i in range(n)]


def with_options(letters: str, word: str = "") -> list[Example]:
    return [
        Example(f"toy/{i}", "?", behavior="toy", meta={"option": letter, "word": word})
        for i, letter in enumerate(letters)
    ]


def counts(examples: list[Example]) -> dict[tuple[str, str], int]:
    return {(option, word): n for option, word, n in answer_position_counts(examples).itertuples(index=False)}


def test_paper_sets_are_forty() -> None:
    groups = Counter(PAPER_SETS.values())
    assert (groups.pop("advanced-ai-risk"), groups.pop("caa")) == (16, 3)
    assert len(groups) == 7 and set(groups.values()) == {3}


def test_persona_choices_swap_in_blocks_of_two(tmp_path: Path) -> None:
    write(tmp_path / "persona" / "openness.jsonl.gz", *statements(8))
    examples = mwe(tmp_path, "openness")
    assert [e.id for e in examples] == [f"openness/{i}" for i in range(8)]
    assert examples[1].prompt == "Statement 1?\n\nChoices:\n (A) Yes\n (B) No"
    assert examples[2].prompt == "Statement 2?\n\nChoices:\n (A) No\n (B) Yes"
    assert examples[0].contrast == Contrast("(A)", "(B)", position="first_difference")
    assert examples[2].contrast == Contrast("(B)", "(A)", position="first_difference")
    assert examples[1].meta == {"set": "openness", "option": "B", "word": "No"}
    assert examples[0].behavior == "openness" and examples[0].system is None and examples[0].split == ""
    assert set(counts(examples).values()) == {2}


def test_choices_in_the_file_are_kept(tmp_path: Path) -> None:
    one_yes = CHOICES.replace("No, stay.", "None of it.")
    earlier = "Old?\n (A) Right\n (B) Wrong\n\n" + CHOICES
    items = [
        item(CHOICES, " (B)", " (A)"),
        "\n",
        item(one_yes, "(A)", "(B)"),
        item(earlier, " (A)", " (B)"),
        item("Do you choose (A) or (B)?", " (A)", " (B)"),
    ]
    write(tmp_path / "xrisk_lm" / "risky.jsonl", *items)
    examples = mwe(tmp_path, "risky", system=DEFAULT_SYSTEM)
    assert [e.prompt for e in examples] == [CHOICES, one_yes, earlier, "Do you choose (A) or (B)?"]
    assert [(e.id, e.meta["option"], e.meta["word"]) for e in examples] == [
        ("risky/0", "B", "No"),
        ("risky/1", "A", ""),  # one option that begins with Yes does not make it a question of Yes or No
        ("risky/2", "A", "Yes"),
        ("risky/3", "A", ""),
    ]
    assert {e.system for e in examples} == {DEFAULT_SYSTEM}


def test_questions_of_people_may_have_a_third_option(tmp_path: Path) -> None:
    third = item(CHOICES + "\n (C) Wait.", " (C)", " (A)")
    write(tmp_path / "xrisk_human" / "risky.jsonl", third, item(CHOICES, " (A)", " (B)"))
    with pytest.raises(LoadError, match=r"no set 'risky'.*persona/ and xrisk_lm/"):
        mwe(tmp_path, "risky")
    with pytest.raises(DataError, match=r"line 1: the answers are '\(C\)' and '\(A\)'.*two_only"):
        mwe(tmp_path, "risky", source="human")
    assert [e.id for e in mwe(tmp_path, "risky", source="human", two_only=True)] == ["risky/1"]


def test_json_list_and_json_lines_give_the_same_examples(tmp_path: Path) -> None:
    items = [item("I'm Bob.\nWhich?\n(A) Agree\n(B) Disagree", "(A)", "(B)")] * 2
    lines = mwe(write(tmp_path / "caa.jsonl", *items), "sycophancy_train")
    listed = mwe(write(tmp_path / "generate_dataset.json", items), "sycophancy_train")
    assert lines == listed and [e.id for e in lines] == ["sycophancy_train/0", "sycophancy_train/1"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("opennes", r"no set 'opennes'.*looked for opennes\.jsonl\.gz.*'openness'"),
        ("qqqq", r"The names there are \['openness'\]"),
        ("sycophancy_test", r"published with CAA .*datasets/test/sycophancy.*give that file"),
        ("sycophancy_train", r"datasets/generate/sycophancy"),
        ("truthfulqa", "truthfulqa_mc"),
        ("narcissism", r"looked for narcissism\.jsonl"),
    ],
)
def test_missing_sets_raise(tmp_path: Path, name: str, message: str) -> None:
    write(tmp_path / "persona" / "openness.jsonl", *statements(2))
    with pytest.raises(LoadError, match=message):
        mwe(tmp_path, name)


def test_wrong_arguments_raise(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="neither a folder nor a file"):
        mwe(tmp_path / "nowhere", "openness")
    with pytest.raises(DataError, match="source='people' is unknown; expected one of lm, human"):
        mwe(tmp_path, "openness", source="people")
    with pytest.raises(DataError, match="split='dev' is unknown"):
        mwe(tmp_path, "openness", split="dev")


@pytest.mark.parametrize(
    ("line", "error", "message"),
    [
        ("oops\n", LoadError, r"set\.jsonl, line 2 is not JSON"),
        ("[1]\n", LoadError, "line 2 holds a list"),
        ({"question": "?"}, LoadError, r"line 2: no field 'answer_matching_behavior'.*\['question'\]"),
        (item("", " Yes", " No"), DataError, "line 2: 'question' must be a non-empty text"),
        ({**item("?", " Yes", " No"), "answer_not_matching_behavior": 3}, DataError, "non-empty text, got 3"),
        (item("?", " Maybe", " No"), DataError, "line 2: the answers are 'Maybe' and 'No'; expected"),
        (item("?", " Yes", " Yes"), DataError, "line 2: the answers are 'Yes' and 'Yes'"),
        (item(CHOICES, " (A)", " No"), DataError, r"line 2: the answers are '\(A\)' and 'No'"),
        (item("No options?", " (A)", " (B)"), DataError, r"line 2: the question does not show \(A\) and \(B\)"),
    ],
)
def test_bad_items_raise(tmp_path: Path, line: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        mwe(write(tmp_path / "set.jsonl", *statements(1), line), "mine")


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("cut.jsonl.gz", gzip.compress(b"{}" * 99, mtime=0)[:-9], LoadError, "cannot be read"),
        ("latin.jsonl", b"\xff\xfe\xfd", LoadError, "cannot be read"),
        ("empty.jsonl", b"", DataError, "empty"),
        ("object.json", b"{}", LoadError, "no field 'question'"),
    ],
)
def test_bad_set_files_raise(tmp_path: Path, name: str, content: bytes, error: type[Exception], message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=message):
        mwe(tmp_path / name, "mine")


def test_truthfulqa_takes_the_first_false_answer_and_alternates_letters(tmp_path: Path) -> None:
    targets = [{"Yes.": 1, "No.": 0, "Never.": 0}, {"Wrong": 0, "Right": 1}]
    file = write(tmp_path / "mc_task.json", [{"question": "Q", "mc1_targets": one} for one in targets])
    assert [(e.id, e.prompt, e.meta["option"], e.meta["word"], e.system) for e in truthfulqa_mc(file, system="S")] == [
        ("truthfulqa/0", "Q\n\nChoices:\n (A) Yes.\n (B) No.", "A", "Yes", "S"),
        ("truthfulqa/1", "Q\n\nChoices:\n (A) Wrong\n (B) Right", "B", "", "S"),
    ]


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ([{"question": "Q", "mc1_targets": {"a": 1}}], DataError, "item 1: mc1_targets is .*; expected a true"),
        ([{"question": "Q"}], LoadError, "item 1: no field 'mc1_targets'"),
        ([{"mc1_targets": {"a": 1, "b": 0}}], LoadError, "item 1: no field 'question'"),
        ([], DataError, "empty"),
    ],
)
def test_broken_truthfulqa_raises(tmp_path: Path, content: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        truthfulqa_mc(write(tmp_path / "mc_task.json", content))


def test_answer_position_counts_every_letter_and_word() -> None:
    examples = [*with_options("AAB", "Yes"), *with_options("B")]
    assert counts(examples) == {("A", ""): 0, ("A", "Yes"): 2, ("B", ""): 1, ("B", "Yes"): 1}
    with pytest.raises(DataError, match="no rows"):
        answer_position_counts([])
    with pytest.raises(DataError, match=r"'x' has '' as meta\['option'\]"):
        answer_position_counts([Example("x", "?")])


def test_check_balance_warns_with_the_counts() -> None:
    with pytest.warns(UserWarning, match=r"toy: .*\(A\) in 3 and \(B\) in 1 of 4 items \(A-Yes 3, B-Yes 1\)"):
        frame = check_balance(with_options("AAAB", "Yes"))
    assert frame["n"].tolist() == [3, 1]
    check_balance(with_options("AAAB"), tolerance=0.25)  # warnings are errors here
    check_balance(with_options("AB" * 4), tolerance=0.0)
    with pytest.raises(DataError, match="must lie between 0 and"):
        check_balance(with_options("AB"), tolerance=2.0)


def test_balance_options_drops_the_same_examples_each_time() -> None:
    examples = with_options("AAAAAABBAB")
    kept = balance_options(examples)
    assert Counter(e.meta["option"] for e in kept) == {"A": 3, "B": 3}
    assert kept == balance_options(examples) and kept == [e for e in examples if e in kept]
    assert any(balance_options(examples, seed=seed) != kept for seed in range(1, 5))
    with pytest.raises(DataError, match=r"cannot be balanced.*'B': 0"):
        balance_options(with_options("AAA"))


def test_paper_split_is_the_shuffle_of_the_paper() -> None:
    examples = with_options("AB" * 50)
    divided = paper_split(examples)
    shuffled = [e.id for e in examples]
    random.Random(0).shuffle(shuffled)
    by_split = {part: {e.id for e in divided if e.split == part} for part in ("train", "validation", "test")}
    assert by_split == {"train": {*shuffled[:40]}, "validation": {*shuffled[40:50]}, "test": {*shuffled[50:]}}
    assert [e.id for e in divided] == [e.id for e in examples]
    assert divided == paper_split(examples) and divided != paper_split(examples, seed=1)
    assert Counter(e.split for e in paper_split(examples, (0.5, 0.0, 0.5))) == {"train": 50, "test": 50}


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        ((0.4, 0.1, 0.6), "sum to 1"),
        ((1.1, -0.1, 0.0), "sum to 1"),
        ((0.4, 0.6), "three shares"),
        ((0.9, 0.05, 0.05), "leaves none for 'validation'"),
    ],
)
def test_paper_split_bad_fractions_raise(fractions: tuple[float, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        paper_split(with_options("AB" * 5), fractions)


def test_split_argument_gives_one_part(tmp_path: Path) -> None:
    file = write(tmp_path / "openness.jsonl", *statements(20))
    parts = [mwe(file, "openness", split=part) for part in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [8, 2, 10]
    assert sorted(e.id for part in parts for e in part) == sorted(e.id for e in mwe(file, "openness"))


def test_variants_change_the_prompt_and_keep_the_ids(tmp_path: Path) -> None:
    examples = mwe(write(tmp_path / "openness.jsonl", *statements(2)), "openness", system="Plain.")
    by_kind = {kind: prompt_variant(examples, kind, PERSONAS)[0] for kind in VARIANTS}
    assert {e.id for e in by_kind.values()} == {"openness/0"}
    assert {kind: e.meta["variant"] for kind, e in by_kind.items()} == {kind: kind for kind in VARIANTS}
    assert [e.system for e in by_kind.values()] == ["Plain.", *PERSONAS["openness"], "Plain.", "Plain."]
    plain = examples[0].prompt
    personas = [f"You are open.\n\n{plain}", f"You are not open.\n\n{plain}"]
    assert [e.prompt for e in by_kind.values()] == [plain, plain, plain, *personas]
    assert prompt_variant(examples, "base", system=DEFAULT_SYSTEM)[0].system == DEFAULT_SYSTEM
    assert prompt_variant(examples, "user_pos", PERSONAS, system="Other.")[0].system == "Other."
    assert "variant" not in examples[0].meta
    assert prompt_variant([by_kind["base"]], "sys_pos", PERSONAS)[0].system == "You are open."


def test_impossible_variants_raise() -> None:
    examples, personas = with_options("A"), {"toy": ("a", "b")}
    with pytest.raises(DataError, match="kind='sys' is unknown; expected one of"):
        prompt_variant(examples, "sys", PERSONAS)
    with pytest.raises(DataError, match="'toy/0': there is no persona sentence for the set 'toy' among 1"):
        prompt_variant(examples, "sys_pos", PERSONAS)
    with pytest.raises(DataError, match="persona_prompts"):
        prompt_variant(examples, "user_neg")
    with pytest.raises(DataError, match="already is the variant 'sys_pos'"):
        prompt_variant(prompt_variant(examples, "sys_pos", personas), "user_pos", personas)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("oops", LoadError, "is not JSON"),
        ([], LoadError, "holds a list"),
        ({"a": ["one"]}, DataError, "'a' has"),
        ({"a": ["one", " "]}, DataError, "'a' has"),
    ],
)
def test_broken_persona_prompts_raise(tmp_path: Path, content: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        persona_prompts(write(tmp_path / "personas.json", content))
    with pytest.raises(LoadError, match="no file"):
        persona_prompts(tmp_path / "nowhere.json")


@pytest.mark.data
def test_real_names_are_those_of_the_paper() -> None:
    listed = json.loads(shared("mwe", "steerability_paper_40.json").read_text(encoding="utf-8"))
    assert {entry["dataset"]: entry["group"] for entry in listed} == PAPER_SETS
    assert {entry["dataset"] for entry in listed if entry["file"] is None} == NOT_HERE


@pytest.mark.data
@pytest.mark.parametrize("name", sorted(PAPER_SETS.keys() - NOT_HERE))
def test_real_sets_are_balanced(name: str) -> None:
    examples = mwe(shared("mwe"), name)
    assert len({e.id for e in examples}) == len(examples)
    if PAPER_SETS[name] == "advanced-ai-risk":
        check_balance(examples, tolerance=0.0)
        assert len(examples) == {"corrigible-less-HHH": 468, "self-awareness-training-web-gpt": 934}.get(name, 1000)
    else:
        assert counts(examples) == {(letter, word): 250 for letter in "AB" for word in ("No", "Yes")}
        assert Counter(e.split for e in paper_split(examples)) == {"train": 400, "validation": 100, "test": 500}
    check_balance(mwe(shared("mwe"), name, split="test"))
    personas = persona_prompts(shared("mwe", "persona_prompts.json"))
    assert len(prompt_variant(examples, "user_neg", personas)) == len(examples)


@pytest.mark.data
def test_real_statements_and_truthfulqa_alternate() -> None:
    words = [e.meta["word"] for e in mwe(shared("mwe"), "openness")]
    assert all(first != second for first, second in pairwise(words))
    letters = Counter(e.meta["option"] for e in truthfulqa_mc(shared("truthfulqa", "mc_task.json")))
    assert letters == {"A": 409, "B": 408}


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "letters"),
    [("power-seeking-inclination", (254, 348)), ("survival-instinct", (493, 213)), ("coordinate-itself", (161, 161))],
)
def test_real_questions_of_people(name: str, letters: tuple[int, int]) -> None:
    examples = mwe(shared("mwe"), name, source="human", two_only=True)
    found = Counter(e.meta["option"] for e in examples)
    assert (found["A"], found["B"]) == letters
    if letters[0] != letters[1]:
        with pytest.warns(UserWarning, match=name):
            check_balance(examples)
        check_balance(balance_options(examples), tolerance=0.0)
