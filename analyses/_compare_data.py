"""Inputs of the comparison: requests to refuse, requests that only sound unsafe, and everyday requests."""

from __future__ import annotations

import csv
import random
from dataclasses import dataclass, fields
from itertools import cycle
from pathlib import Path

from _common import limit_per_group
from _real_texts import SPLITS, plain_solution, real_texts

from steerlab import Example
from steerlab.data import demo_contrasts, demo_set, read_jsonl, stratified_split, with_contrasts, xstest
from steerlab.data.injections import PRIMARY_TASKS

HARMFUL = {"train": 180, "validation": 40}  # of AdvBench's requests; the rest are test
MATH_PROBLEMS = 50  # problems of GSM8K; SmolLM2 solves almost none, so more of them would add nothing


@dataclass(frozen=True)
class Sets:
    """Inputs by role; ids are unique over all of them, and no test input is in any other set.

    Attributes:
        train: with contrasts: AdvBench and XSTest's unsafe prompts ("refuse"), advice ("defer") and instructions
            ("answer").
        validation: "refuse", "defer" and "answer", the latter everyday instructions.
        sounds_unsafe_validation: safe prompts of XSTest.
        harmful, sounds_unsafe, harmless, expert, math: the test inputs.
    """

    train: list[Example]
    validation: list[Example]
    sounds_unsafe_validation: list[Example]
    harmful: list[Example]
    sounds_unsafe: list[Example]
    harmless: list[Example]
    expert: list[Example]
    math: list[Example]

    @property
    def test(self) -> dict[str, list[Example]]:
        """The test sets by name."""
        names = ("harmful", "sounds_unsafe", "harmless", "expert", "math")
        return {name: getattr(self, name) for name in names}

    @property
    def everything(self) -> list[Example]:
        """All inputs, for the fingerprint."""
        return [e for field in fields(self) for e in getattr(self, field.name)]


def load_sets(data: str | Path, seed: int, limit: int | None) -> Sets:
    """Read the data sets and split them; the seed decides which requests are for training.

    Args:
        data: folder with `harmful_prompts/advbench.jsonl`, `math/gsm8k_test_sampled.jsonl` and
            `noncommercial_cc_by_nc/alpaca_harmless/`; XSTest, advice and instructions come with steerlab.
        limit: maximal number of inputs of each behavior in each set.
    """
    root = Path(data)
    advbench = root / "harmful_prompts" / "advbench.jsonl"
    requests = read_jsonl(advbench, prompt_field="instruction", behavior="refuse")
    random.Random(seed).shuffle(requests)
    first, second = HARMFUL["train"], HARMFUL["train"] + HARMFUL["validation"]
    alpaca = root / "noncommercial_cc_by_nc" / "alpaca_harmless"
    everyday = read_jsonl(alpaca / "harmless_train_600.jsonl", "instruction", behavior="answer")
    built_in = demo_set(seed=seed)
    unsafe = [e.replace(contrast=None) for e in built_in if e.behavior == "refuse"]
    advice = [e.replace(contrast=None) for e in built_in if e.behavior == "defer"]
    written = [e.replace(contrast=None) for e in built_in if e.behavior == "answer"]
    train = [
        *requests[:first], *unsafe, *(e for e in advice if e.split == "train"), *everyday[:450], *written,
        *more_benign_inputs(root),
    ]  # fmt: skip
    validation = [
        *requests[first:second], *(e for e in advice if e.split == "validation"), *everyday[450:500],
    ]  # fmt: skip
    safe = [e for e in xstest() if e.behavior == "answer"]
    safe = stratified_split(safe, {"validation": 0.2, "test": 0.8}, seed=seed, by=lambda e: e.meta["type"])
    pairs = demo_contrasts()
    problems = read_jsonl(
        root / "math" / "gsm8k_test_sampled.jsonl", prompt_field="problem", behavior="answer", id_prefix="gsm8k",
        meta_fields=("answer", "solution"),
    )  # fmt: skip
    found = {
        "train": with_contrasts(train, pairs),
        "validation": with_contrasts(validation, pairs),
        "sounds_unsafe_validation": [e for e in safe if e.split == "validation"],
        "harmful": with_contrasts(requests[second:], pairs),
        "sounds_unsafe": [e for e in safe if e.split == "test"],
        "harmless": read_jsonl(alpaca / "harmless_test_200.jsonl", "instruction", behavior="answer"),
        "expert": with_contrasts([e for e in advice if e.split == "test"], pairs),
        "math": problems[:MATH_PROBLEMS],
    }
    return Sets(**{name: limit_per_group([e.replace(split="") for e in rows], limit) for name, rows in found.items()})


def more_benign_inputs(root: Path) -> list[Example]:
    """More benign inputs of other kinds, so that AlphaSteer estimates the space of benign inputs from more data.

    Questions of TruthfulQA, problems of MATH-500, and paragraphs with a task.
    """
    with (root / "truthfulqa" / "TruthfulQA.csv").open(encoding="utf-8-sig", newline="") as file:
        questions = [row["Question"] for row in csv.DictReader(file)]
    problems = read_jsonl(root / "math" / "math_500_sampled.jsonl", prompt_field="problem", behavior="answer")
    tasks = cycle(task for some in zip(*PRIMARY_TASKS.values(), strict=True) for task in some)
    # training sources only: others contain GSM8K, whose problems are test inputs
    texts = [text for name, some in real_texts(root, 60).items() if SPLITS[name] == "train" for text in some]
    return [
        *(Example(question, id=f"truthfulqa/{i}", behavior="answer") for i, question in enumerate(questions)),
        *(e for e in problems if len(e.prompt) < 500),
        *(Example(f"{next(tasks)} {text}", id=f"passages/{i}", behavior="answer") for i, text in enumerate(texts)),
    ]


def solution(example: Example) -> str:
    """The worked solution of a math problem as plain text, without the calculator's notes."""
    return plain_solution(example.meta["solution"])
