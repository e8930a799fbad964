"""Model-written evaluations: questions with an answer (A) and an answer (B), one of which shows a behavior."""

from __future__ import annotations

import csv
import re
from difflib import get_close_matches
from pathlib import Path

from steerlab._support.checks import check_type
from steerlab.data._files import BUILTIN, Record, check_option, read_records, read_text
from steerlab.data._mwe_balance import PARTS, paper_split
from steerlab.data.example import Contrast, Example, check_examples
from steerlab.errors import DataError, LoadError

PAPER_SETS: dict[str, str] = {
    row["set"]: row["group"] for row in csv.DictReader(read_text(BUILTIN / "steerability_sets.csv").splitlines())
}
"""The forty sets of the steerability paper (arXiv 2407.12404), each with its group: 21 persona, 16 risk, 3 of CAA."""

_OTHER_SOURCES = {
    "truthfulqa": "comes from TruthfulQA's file: use `truthfulqa_mc(path_of_mc_task_json)`.",
    "sycophancy_train": "is published with CAA (github.com/nrimsky/CAA, datasets/generate/sycophancy): give that file.",
    "sycophancy_test": "is published with CAA (github.com/nrimsky/CAA, datasets/test/sycophancy): give that file.",
}

# greedy: some questions written by a model contain earlier questions, and the last pair is the one to answer
_OPTIONS = re.compile(r".*^[ \t]*\(A\)(?P<A>.*?)^[ \t]*\(B\)(?P<B>.*)", re.DOTALL | re.MULTILINE)
_THIRD = re.compile(r"^[ \t]*\(C\)", re.MULTILINE)
_WORD = re.compile(r"(Yes|No)\b")


def mwe(
    path: str | Path,
    name: str,
    *,
    source: str = "lm",
    split: str | None = None,
    system: str | None = None,
    two_only: bool = False,
) -> list[Example]:
    r"""One set of the model-written evaluations, as choices between (A) and (B).

    The statements of the persona sets get the choices Yes and No: Yes is (A) in two items, (B) in the next two, and so
    on. As the wanted answers of the files alternate, letter and word are then independent.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> line = '{"question": "Art?", "answer_matching_behavior": " Yes", "answer_not_matching_behavior": " No"}'
        >>> with TemporaryDirectory() as folder:
        ...     file = Path(folder) / "openness.jsonl"
        ...     _ = file.write_text(line + "\n")
        ...     example = mwe(file, "openness")[0]
        >>> example.id, example.prompt, example.contrast.positive, example.contrast.negative
        ('openness/0', 'Art?\n\nChoices:\n (A) Yes\n (B) No', '(A)', '(B)')

    Args:
        path: a folder with persona/, xrisk_lm/ and xrisk_human/, each with NAME.jsonl.gz or NAME.jsonl; or the file of
            one set: .jsonl, .jsonl.gz, or .json with a list, as CAA publishes its sycophancy questions.
        name: the set, such as one of `PAPER_SETS`; with a file, the name for its examples.
        source: who wrote the questions of the risk sets: "lm" (as in the paper) or "human".
        split: only this part of `paper_split`: "train", "validation" or "test". Twenty of the 37 sets hold some
            questions twice (one-box-tendency most often): 1 to 17 of them are both in "train" and in "test".
        system: a system message for all examples, such as `DEFAULT_SYSTEM`; None keeps the template's default.
        two_only: leave out questions with a third option (some of those people wrote); the others keep their ids.

    Returns:
        Examples in the file's order, ids counted from 0. `contrast` has the wanted letter as `positive` and is read at
        "first_difference"; `meta` holds set, option ("A" or "B", the wanted answer) and word ("Yes" or "No", its first
        word, or "" where the two options do not begin with one each).

    Raises:
        LoadError: no such set or file, a line that is not an item.
        DataError: an answer that is neither option, no examples.

    Source: Perez et al., arXiv 2212.09251 (CC BY 4.0); Tan et al., arXiv 2407.12404 for choices and balance.
    """
    check_option("split", split, (None, *PARTS))
    check_type("name", name, str, "the name of a set")
    records = enumerate(read_records(_set_file(Path(path), name, source)))
    rows = [_item(name, i, record, system) for i, record in records if not (two_only and _has_third_option(record))]
    rows = check_examples(rows)
    return rows if split is None else [row for row in paper_split(rows) if row.split == split]


def truthfulqa_mc(path: str | Path, *, system: str | None = None) -> list[Example]:
    r"""TruthfulQA as choices between the true answer and the first false one, (A) and (B) alternating.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     file = Path(folder) / "mc_task.json"
        ...     _ = file.write_text('[{"question": "Is ice cold?", "mc1_targets": {"No, hot.": 0, "Yes, cold.": 1}}]')
        ...     example = truthfulqa_mc(file)[0]
        >>> example.prompt, example.contrast.positive, example.meta["word"]
        ('Is ice cold?\n\nChoices:\n (A) Yes, cold.\n (B) No, hot.', '(A)', 'Yes')

    Args:
        path: mc_task.json, a list of questions with mc1_targets: answer -> 1 (true) or 0.
        system: a system message for all examples; None keeps the template's default.

    Returns:
        Examples as from `mwe`, named truthfulqa.

    Raises:
        LoadError: the file is missing or no such list.
        DataError: a question lacks a true or a false answer.

    Source: Lin et al., TruthfulQA, arXiv 2109.07958 (Apache-2.0).
    """
    rows = []
    for index, record in enumerate(read_records(path)):
        targets = record["mc1_targets"]
        answers = targets if isinstance(targets, dict) else {}
        true, false = ([text for text, right in answers.items() if right == wanted] for wanted in (1, 0))
        if not true or not false:
            raise DataError(
                f"{record.where}: mc1_targets is {targets!r}; expected a true answer (1) and a false one (0)."
            )
        letter = "AB"[index % 2]
        pair = (true[0], false[0]) if letter == "A" else (false[0], true[0])
        rows.append(_example("truthfulqa", index, _with_choices(record.text("question"), *pair), letter, system))
    return check_examples(rows)


def _set_file(path: Path, name: str, source: str) -> Path:
    """The file of a set: `path` itself, or the file with that name in its folders."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise LoadError(
            f"there is neither a folder nor a file {path}; expected the folder with persona/ and xrisk_{source}/, "
            "or one set's .jsonl, .jsonl.gz or .json. Check the path."
        )
    check_option("source", source, ("lm", "human"))
    folders = [path / "persona", path / f"xrisk_{source}"]
    for file in (folder / f"{name}{ending}" for folder in folders for ending in (".jsonl.gz", ".jsonl")):
        if file.is_file():
            return file
    if name in _OTHER_SOURCES:
        raise LoadError(f"the set {name!r} {_OTHER_SOURCES[name]}")
    present = {file.name.split(".jsonl")[0] for folder in folders for file in folder.glob("*.jsonl*")}
    near = get_close_matches(name, sorted(present | set(PAPER_SETS) - {name}), n=3, cutoff=0.5)
    raise LoadError(
        f"no set {name!r} in {path}: looked for {name}.jsonl.gz and {name}.jsonl in persona/ and xrisk_{source}/. "
        + (f"The nearest names are {near}." if near else f"The names there are {sorted(present)}.")
    )


def _has_third_option(record: Record) -> bool:
    options = _OPTIONS.fullmatch(record.text("question"))
    return options is not None and _THIRD.search(options["B"]) is not None


def _item(name: str, index: int, record: Record, system: str | None) -> Example:
    question = record.text("question")
    wanted = record.text("answer_matching_behavior").strip()
    unwanted = record.text("answer_not_matching_behavior").strip()
    if {wanted, unwanted} == {"Yes", "No"}:
        first, second = ("Yes", "No") if index // 2 % 2 == 0 else ("No", "Yes")
        return _example(name, index, _with_choices(question, first, second), "A" if wanted == first else "B", system)
    if {wanted, unwanted} != {"(A)", "(B)"}:
        raise DataError(
            f"{record.where}: the answers are {wanted!r} and {unwanted!r}; expected 'Yes' and 'No', or '(A)' and "
            "'(B)'. Some questions written by people have more than two options: two_only=True leaves them out."
        )
    if "(A)" not in question or "(B)" not in question:
        raise DataError(
            f"{record.where}: the question does not show (A) and (B), which are its answers: {question[-200:]!r}."
        )
    return _example(name, index, question, wanted[1], system)


def _example(name: str, index: int, prompt: str, letter: str, system: str | None) -> Example:
    positive, negative = ("(A)", "(B)") if letter == "A" else ("(B)", "(A)")
    return Example(
        id=f"{name}/{index}",
        prompt=prompt,
        behavior=name,
        contrast=Contrast(positive=positive, negative=negative, position="first_difference"),
        system=system,
        meta={"set": name, "option": letter, "word": _first_word(prompt, letter)},
    )


def _with_choices(question: str, first: str, second: str) -> str:
    return f"{question}\n\nChoices:\n (A) {first}\n (B) {second}"


def _first_word(prompt: str, letter: str) -> str:
    """The first word of the wanted option, if one option begins with Yes and the other with No; else ""."""
    options = _OPTIONS.fullmatch(prompt)
    if not options:
        return ""
    begins = {key: found[0] for key, text in options.groupdict().items() if (found := _WORD.match(text.strip()))}
    return begins[letter] if set(begins.values()) == {"Yes", "No"} else ""
