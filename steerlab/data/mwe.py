"""Model-written evaluations: questions with an answer (A) and an answer (B), of which one shows a behavior."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from steerlab._support.errors import DataError
from steerlab.data._mwe_balance import PARTS, answer_position_counts, balance_options, check_balance, paper_split
from steerlab.data._mwe_sets import PAPER_SETS, records, set_file, text_field
from steerlab.data._mwe_variants import DEFAULT_SYSTEM, VARIANTS, persona_prompts, prompt_variant
from steerlab.data.example import Contrast, Example, check_examples

__all__ = [
    "DEFAULT_SYSTEM",
    "PAPER_SETS",
    "VARIANTS",
    "answer_position_counts",
    "balance_options",
    "check_balance",
    "mwe",
    "paper_split",
    "persona_prompts",
    "prompt_variant",
    "truthfulqa_mc",
]

# greedy: some questions written by a model hold earlier questions, and the last pair is the one that is asked
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

    Statements to agree with (the persona sets) are given the choices Yes and No here: Yes is (A) in two items, (B) in
    the next two, and so on. As the wanted answers of the files alternate, letter and word are then independent.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> line = '{"question": "Art?", "answer_matching_behavior": " Yes", "answer_not_matching_behavior": " No"}'
        >>> with TemporaryDirectory() as folder:
        ...     file = Path(folder) / "openness.jsonl"
        ...     _ = file.write_text(line + "\n")
        ...     row = mwe(file, "openness")[0]
        >>> row.id, row.prompt, row.contrast.positive, row.contrast.negative
        ('openness/0', 'Art?\n\nChoices:\n (A) Yes\n (B) No', '(A)', '(B)')

    Args:
        path: a folder with persona/, xrisk_lm/ and xrisk_human/, each with NAME.jsonl.gz or NAME.jsonl; or the file of
            one set: .jsonl, .jsonl.gz, or .json with a list, as CAA publishes its sycophancy questions.
        name: the set, such as one of `PAPER_SETS`; with a file, what its rows are to be called.
        source: who wrote the questions of the risk sets: "lm" (as in the paper) or "human".
        split: only this part of `paper_split`: "train", "validation" or "test".
        system: a system message for all rows, such as `DEFAULT_SYSTEM`; None leaves the template's own.
        two_only: leave out questions with a third option (only people wrote such); the others keep their ids.

    Returns:
        Rows in the file's order, ids counted from 0. `contrast` names the wanted letter first and is read at "choice";
        `meta` holds set, option ("A" or "B", the wanted answer) and word ("Yes" or "No", with which it begins, or ""
        where the two options do not begin with one each).

    Raises:
        DataError: no such set or file, a line that is not an item, an answer that is neither option, no rows.

    Source: Perez et al., arXiv 2212.09251 (CC BY 4.0); Tan et al., arXiv 2407.12404 for choices and balance.
    """
    if split not in (None, *PARTS):
        raise DataError(f"the split {split!r} is unknown; expected one of {list(PARTS)}, or None for all rows.")
    items = enumerate(records(set_file(Path(path), name, source)))
    found = (_item(name, i, where, record, system, two_only) for i, (where, record) in items)
    rows = check_examples(row for row in found if row is not None)
    return rows if split is None else [row for row in paper_split(rows) if row.split == split]


def truthfulqa_mc(path: str | Path, *, system: str | None = None) -> list[Example]:
    r"""TruthfulQA as choices between the true answer and the first false one, (A) and (B) taking turns.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     file = Path(folder) / "mc_task.json"
        ...     _ = file.write_text('[{"question": "Is ice cold?", "mc1_targets": {"No, hot.": 0, "Yes, cold.": 1}}]')
        ...     row = truthfulqa_mc(file)[0]
        >>> row.prompt, row.contrast.positive, row.meta["word"]
        ('Is ice cold?\n\nChoices:\n (A) Yes, cold.\n (B) No, hot.', '(A)', 'Yes')

    Args:
        path: mc_task.json, a list of questions with mc1_targets: answer -> 1 (true) or 0.
        system: a system message for all rows; None leaves the template's own.

    Returns:
        Rows as `mwe` gives them, named truthfulqa.

    Raises:
        DataError: the file is missing or no such list, or a question lacks a true or a false answer.

    Source: Lin et al., TruthfulQA, arXiv 2109.07958 (Apache-2.0).
    """
    rows = []
    for index, (where, record) in enumerate(records(Path(path))):
        targets = record.get("mc1_targets")
        answers = targets if isinstance(targets, dict) else {}
        true, false = ([text for text, right in answers.items() if right == wanted] for wanted in (1, 0))
        if not true or not false:
            raise DataError(f"{where}: mc1_targets is {targets!r}; expected a true answer (1) and a false one (0).")
        letter = "AB"[index % 2]
        pair = (true[0], false[0]) if letter == "A" else (false[0], true[0])
        rows.append(_example("truthfulqa", index, _asked(text_field(record, "question", where), *pair), letter, system))
    return check_examples(rows)


def _item(
    name: str, index: int, where: str, record: dict[str, Any], system: str | None, two_only: bool
) -> Example | None:
    question = text_field(record, "question", where)
    wanted = text_field(record, "answer_matching_behavior", where).strip()
    other = text_field(record, "answer_not_matching_behavior", where).strip()
    if {wanted, other} == {"Yes", "No"}:
        first, second = ("Yes", "No") if index // 2 % 2 == 0 else ("No", "Yes")
        return _example(name, index, _asked(question, first, second), "A" if wanted == first else "B", system)
    options = _OPTIONS.fullmatch(question)
    if two_only and options and _THIRD.search(options["B"]):
        return None
    if {wanted, other} != {"(A)", "(B)"}:
        raise DataError(
            f"{where}: the answers are {wanted!r} and {other!r}; expected 'Yes' and 'No', or '(A)' and '(B)'. Some "
            "questions written by people have more than two options: two_only=True leaves them out."
        )
    if "(A)" not in question or "(B)" not in question:
        raise DataError(f"{where}: the question does not show (A) and (B), which are its answers: {question[-200:]!r}.")
    return _example(name, index, question, wanted[1], system)


def _example(name: str, index: int, prompt: str, letter: str, system: str | None) -> Example:
    positive, negative = ("(A)", "(B)") if letter == "A" else ("(B)", "(A)")
    return Example(
        id=f"{name}/{index}",
        prompt=prompt,
        behavior=name,
        contrast=Contrast(positive=positive, negative=negative, position="first_difference"),
        system=system,
        meta={"set": name, "option": letter, "word": _word(prompt, letter)},
    )


def _asked(question: str, first: str, second: str) -> str:
    return f"{question}\n\nChoices:\n (A) {first}\n (B) {second}"


def _word(prompt: str, letter: str) -> str:
    """The word of the wanted option, where one option begins with Yes and the other with No."""
    options = _OPTIONS.fullmatch(prompt)
    if not options:
        return ""
    begins = {key: found[0] for key, text in options.groupdict().items() if (found := _WORD.match(text.strip()))}
    return begins[letter] if set(begins.values()) == {"Yes", "No"} else ""
