"""Harmful questions of MM-SafetyBench in the place of AdvBench's requests, for a model that refuses most of these."""

from __future__ import annotations

import random
from pathlib import Path

from _common import of_split
from _refusal_prompts import N, Sets, load_sets
from safety_rivals import load_parts, without_twins

from steerlab.data import demo_contrasts, mm_safety_bench, read_jsonl, with_contrasts

UNUSED = 545  # of `harmless_train_600`: from this row on no study of Qwen had used them; later one did


def load_questions(data: str | Path, seed: int, limit: int | None) -> Sets:
    """Parts "train", "validation" and "test" with harmful questions of MM-SafetyBench in the place of AdvBench.

    They are published for training. The first test part of `safety_rivals` has none of them; its fresh one, which came
    later, has 40. No test question is nearly one of the training or validation questions. The everyday instructions are
    those of `load_sets`; in the test, others that no study of Qwen had used before.

    Args:
        data, seed, limit: as for `load_sets`; the folder has `noncommercial_cc_by_nc/mm_safetybench` too.
    """
    root = Path(data) / "noncommercial_cc_by_nc"
    used = [e for rows in load_parts(str(root / "mm_safetybench"), None, 0, None).values() for e in rows]
    taken = {e.id for e in used}
    questions = [e for e in of_split(mm_safety_bench(root / "mm_safetybench"), "train") if e.behavior == "refuse"]
    questions = [e.replace(split="") for e in questions if e.id not in taken]
    random.Random(seed).shuffle(questions)
    chosen, rest = questions[: N["train"] + N["validation"]], questions[N["train"] + N["validation"] :]
    everyday = read_jsonl(root / "alpaca_harmless/harmless_train_600.jsonl", "instruction", behavior="answer")
    sets, harmless = load_sets(data, seed, limit), {"test": everyday[UNUSED:][:limit]}
    harmful = {"train": chosen[: N["train"]], "validation": chosen[N["train"] :]}
    harmful["test"] = without_twins(rest, [*chosen, *used])[: N["test"]]
    return {
        part: (with_contrasts(rows[:limit], demo_contrasts()), harmless.get(part, sets[part][1]))
        for part, rows in harmful.items()
    }
