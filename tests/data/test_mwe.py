"""Model-written evaluations: choices, balance, the paper's split and prompt variants."""

import json
import random
from collections import Counter
from itertools import pairwise

import pytest
from data_files import mwe_item, shared, write

from steerlab import Contrast, Example, data
from steerlab.errors import DataError, LoadError

NOT_HERE = {"sycophancy_train", "sycophancy_test", "truthfulqa"}
PERSONAS = {"openness": ("You are open.", "You are not open.")}
CHOICES = "What now?\n\nChoices:\n (A) Yes, go.\n (B) No, stay."


def statements(n: int) -> list[dict[str, str]]:
    words = (" Yes", " No")
    return [mwe_item(f"Statement {i}?", words[i % 2], words[1 - i % 2]) for i in range(n)]


def with_options(letters: str, word: str = "") -> list[Example]:
    return [
        Example("?", id=f"toy/{i}", behavior="toy", meta={"option": one, "word": word}) for i, one in enumerate(letters)
    ]


def counts(examples: list[Example]) -> dict[tuple[str, str], int]:
    return {(option, word): n for option, word, n in data.answer_position_counts(examples).itertuples(index=False)}


def test_paper_sets_are_forty():
    groups = Counter(data.PAPER_SETS.values())
    assert (groups.pop("advanced-ai-risk"), groups.pop("caa")) == (16, 3)
    assert len(groups) == 7 and set(groups.values()) == {3}


def test_persona_choices_swap_in_blocks_of_two(tmp_path):
    write(tmp_path / "persona" / "openness.jsonl.gz", *statements(8))
    examples = data.mwe(tmp_path, "openness")
    assert [e.id for e in examples] == [f"openness/{i}" for i in range(8)]
    assert examples[1].prompt == "Statement 1?\n\nChoices:\n (A) Yes\n (B) No"
    assert examples[2].prompt == "Statement 2?\n\nChoices:\n (A) No\n (B) Yes"
    assert examples[0].contrast == Contrast("(A)", "(B)", position="first_difference")
    assert examples[2].contrast == Contrast("(B)", "(A)", position="first_difference")
    assert examples[1].meta == {"set": "openness", "option": "B", "word": "No"}
    assert examples[0].behavior == "openness" and examples[0].system is None and examples[0].split == ""
    assert set(counts(examples).values()) == {2}


def test_choices_in_the_file_are_kept(tmp_path):
    one_yes = CHOICES.replace("No, stay.", "None of it.")
    earlier = "Old?\n (A) Right\n (B) Wrong\n\n" + CHOICES
    rest = [mwe_item(question, " (A)", " (B)") for question in (earlier, "Do you choose (A) or (B)?")]
    items = [mwe_item(CHOICES, " (B)", " (A)"), "\n", mwe_item(one_yes, "(A)", "(B)"), *rest]
    write(tmp_path / "xrisk_lm" / "risky.jsonl", *items)
    examples = data.mwe(tmp_path, "risky", system=data.DEFAULT_SYSTEM)
    assert [e.prompt for e in examples] == [CHOICES, one_yes, earlier, "Do you choose (A) or (B)?"]
    assert [(e.id, e.meta["option"], e.meta["word"]) for e in examples] == [
        ("risky/0", "B", "No"),
        ("risky/1", "A", ""),  # one option that begins with Yes does not make it a question of Yes or No
        ("risky/2", "A", "Yes"),
        ("risky/3", "A", ""),
    ]
    assert {e.system for e in examples} == {data.DEFAULT_SYSTEM}


def test_questions_of_people_may_have_a_third_option(tmp_path):
    third = mwe_item(CHOICES + "\n (C) Wait.", " (C)", " (A)")
    write(tmp_path / "xrisk_human" / "risky.jsonl", third, mwe_item(CHOICES, " (A)", " (B)"))
    with pytest.raises(LoadError, match=r"no set 'risky'.*persona/ and xrisk_lm/"):
        data.mwe(tmp_path, "risky")
    with pytest.raises(DataError, match=r"line 1: the answers are '\(C\)' and '\(A\)'.*two_only"):
        data.mwe(tmp_path, "risky", source="human")
    assert [e.id for e in data.mwe(tmp_path, "risky", source="human", two_only=True)] == ["risky/1"]


def test_json_list_and_json_lines_give_the_same_examples(tmp_path):
    items = [mwe_item("I'm Bob.\nWhich?\n(A) Agree\n(B) Disagree", "(A)", "(B)")] * 2
    lines = data.mwe(write(tmp_path / "caa.jsonl", *items), "sycophancy_train")
    listed = data.mwe(write(tmp_path / "generate_dataset.json", items), "sycophancy_train")
    assert lines == listed and [e.id for e in lines] == ["sycophancy_train/0", "sycophancy_train/1"]


def test_truthfulqa_takes_the_first_false_answer_and_alternates_letters(tmp_path):
    targets = [{"Yes.": 1, "No.": 0, "Never.": 0}, {"Wrong": 0, "Right": 1}]
    file = write(tmp_path / "mc_task.json", [{"question": "Q", "mc1_targets": one} for one in targets])
    examples = data.truthfulqa_mc(file, system="S")
    assert [(e.id, e.prompt, e.meta["option"], e.meta["word"], e.system) for e in examples] == [
        ("truthfulqa/0", "Q\n\nChoices:\n (A) Yes.\n (B) No.", "A", "Yes", "S"),
        ("truthfulqa/1", "Q\n\nChoices:\n (A) Wrong\n (B) Right", "B", "", "S"),
    ]


def test_answer_position_counts_every_letter_and_word():
    examples = [*with_options("AAB", "Yes"), *with_options("B")]
    assert counts(examples) == {("A", ""): 0, ("A", "Yes"): 2, ("B", ""): 1, ("B", "Yes"): 1}


def test_check_balance_warns_with_the_counts():
    with pytest.warns(UserWarning, match=r"toy: .*\(A\) in 3 and \(B\) in 1 of 4 items \(A-Yes 3, B-Yes 1\)"):
        frame = data.check_balance(with_options("AAAB", "Yes"))
    assert frame["n"].tolist() == [3, 1]
    data.check_balance(with_options("AAAB"), tolerance=0.25)  # warnings are errors here
    data.check_balance(with_options("AB" * 4), tolerance=0.0)


def test_balance_options_drops_the_same_examples_each_time():
    examples = with_options("AAAAAABBAB")
    kept = data.balance_options(examples)
    assert Counter(e.meta["option"] for e in kept) == {"A": 3, "B": 3}
    assert kept == data.balance_options(examples) and kept == [e for e in examples if e in kept]
    assert any(data.balance_options(examples, seed=seed) != kept for seed in range(1, 5))


def test_paper_split_is_the_shuffle_of_the_paper():
    examples = with_options("AB" * 50)
    divided = data.paper_split(examples)
    shuffled = [e.id for e in examples]
    random.Random(0).shuffle(shuffled)
    by_split = {part: {e.id for e in divided if e.split == part} for part in ("train", "validation", "test")}
    assert by_split == {"train": {*shuffled[:40]}, "validation": {*shuffled[40:50]}, "test": {*shuffled[50:]}}
    assert [e.id for e in divided] == [e.id for e in examples]
    assert divided == data.paper_split(examples) and divided != data.paper_split(examples, seed=1)
    assert Counter(e.split for e in data.paper_split(examples, (0.5, 0.0, 0.5))) == {"train": 50, "test": 50}


def test_split_argument_gives_one_part(tmp_path):
    file = write(tmp_path / "openness.jsonl", *statements(20))
    parts = [data.mwe(file, "openness", split=part) for part in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [8, 2, 10]
    assert sorted(e.id for part in parts for e in part) == sorted(e.id for e in data.mwe(file, "openness"))


def test_variants_change_the_prompt_and_keep_the_ids(tmp_path):
    examples = data.mwe(write(tmp_path / "openness.jsonl", *statements(2)), "openness", system="Plain.")
    by_kind = {kind: data.prompt_variant(examples, kind, PERSONAS)[0] for kind in data.VARIANTS}
    assert {e.id for e in by_kind.values()} == {"openness/0"}
    assert {kind: e.meta["variant"] for kind, e in by_kind.items()} == {kind: kind for kind in data.VARIANTS}
    assert [e.system for e in by_kind.values()] == ["Plain.", *PERSONAS["openness"], "Plain.", "Plain."]
    plain = examples[0].prompt
    personas = [f"You are open.\n\n{plain}", f"You are not open.\n\n{plain}"]
    assert [e.prompt for e in by_kind.values()] == [plain, plain, plain, *personas]
    assert data.prompt_variant(examples, "base", system=data.DEFAULT_SYSTEM)[0].system == data.DEFAULT_SYSTEM
    assert data.prompt_variant(examples, "user_pos", PERSONAS, system="Other.")[0].system == "Other."
    assert "variant" not in examples[0].meta
    assert data.prompt_variant([by_kind["base"]], "sys_pos", PERSONAS)[0].system == "You are open."
    with pytest.raises(DataError, match="already is the variant 'sys_pos'"):
        data.prompt_variant([by_kind["sys_pos"]], "user_pos", PERSONAS)
    chat = examples[0].replace(prompt=[{"role": "user", "content": "Hi"}])
    with pytest.raises(DataError, match="is messages: put the persona's sentence into the last by hand"):
        data.prompt_variant([chat], "user_neg", PERSONAS)


@pytest.mark.data
def test_real_names_are_those_of_the_paper():
    listed = json.loads(shared("mwe", "steerability_paper_40.json").read_text(encoding="utf-8"))
    assert {entry["dataset"]: entry["group"] for entry in listed} == data.PAPER_SETS
    assert {entry["dataset"] for entry in listed if entry["file"] is None} == NOT_HERE


@pytest.mark.data
@pytest.mark.nightly
@pytest.mark.parametrize("name", sorted(data.PAPER_SETS.keys() - NOT_HERE))
def test_real_sets_are_balanced(name):
    examples = data.mwe(shared("mwe"), name)
    assert len({e.id for e in examples}) == len(examples)
    if data.PAPER_SETS[name] == "advanced-ai-risk":
        data.check_balance(examples, tolerance=0.0)
        assert len(examples) == {"corrigible-less-HHH": 468, "self-awareness-training-web-gpt": 934}.get(name, 1000)
    else:
        assert counts(examples) == {(letter, word): 250 for letter in "AB" for word in ("No", "Yes")}
        assert Counter(e.split for e in data.paper_split(examples)) == {"train": 400, "validation": 100, "test": 500}
    data.check_balance(data.mwe(shared("mwe"), name, split="test"))
    personas = data.persona_prompts(shared("mwe", "persona_prompts.json"))
    assert len(data.prompt_variant(examples, "user_neg", personas)) == len(examples)


@pytest.mark.data
def test_real_statements_and_truthfulqa_alternate():
    words = [e.meta["word"] for e in data.mwe(shared("mwe"), "openness")]
    assert all(first != second for first, second in pairwise(words))
    letters = Counter(e.meta["option"] for e in data.truthfulqa_mc(shared("truthfulqa", "mc_task.json")))
    assert letters == {"A": 409, "B": 408}


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "letters"),
    [("power-seeking-inclination", (254, 348)), ("survival-instinct", (493, 213)), ("coordinate-itself", (161, 161))],
)
def test_real_questions_of_people(name, letters):
    examples = data.mwe(shared("mwe"), name, source="human", two_only=True)
    found = Counter(e.meta["option"] for e in examples)
    assert (found["A"], found["B"]) == letters
    if letters[0] != letters[1]:
        with pytest.warns(UserWarning, match=name):
            data.check_balance(examples)
        data.check_balance(data.balance_options(examples), tolerance=0.0)


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("opennes", {}, LoadError, r"no set 'opennes'.*looked for opennes\.jsonl\.gz.*'openness'"),
        ("qqqq", {}, LoadError, r"The names there are \['openness'\]"),
        ("sycophancy_test", {}, LoadError, r"published with CAA .*datasets/test/sycophancy.*give that file"),
        ("sycophancy_train", {}, LoadError, r"datasets/generate/sycophancy"),
        ("truthfulqa", {}, LoadError, "truthfulqa_mc"),
        ("narcissism", {}, LoadError, r"looked for narcissism\.jsonl"),
    ],
)
def test_missing_sets_and_unknown_options_raise(tmp_path, name, options, error, message):
    write(tmp_path / "persona" / "openness.jsonl", *statements(2))
    with pytest.raises(error, match=message):
        data.mwe(tmp_path, name, **options)


ONE = with_options("A")


@pytest.mark.parametrize(
    ("call", "arguments", "message"),
    [
        (data.answer_position_counts, ([],), "no rows"),
        (data.answer_position_counts, ([Example("?", id="x")],), r"'x' has '' as meta\['option'\]"),
        (data.balance_options, (with_options("AAA"),), r"cannot be balanced.*'B': 0"),
        (data.paper_split, (with_options("AB" * 5), (0.4, 0.1, 0.6)), "sum to 1"),
        (data.paper_split, (with_options("AB" * 5), (1.1, -0.1, 0.0)), "sum to 1"),
        (data.paper_split, (with_options("AB" * 5), (0.9, 0.05, 0.05)), "leaves none for 'validation'"),
        (data.prompt_variant, (ONE, "sys_pos", PERSONAS), "'toy/0': there is no persona .* 'toy' among 1"),
        (data.prompt_variant, (ONE, "user_neg"), "persona_prompts"),
    ],
)
def test_wrong_arguments_raise(call, arguments, message):
    with pytest.raises(DataError, match=message):
        call(*arguments)
