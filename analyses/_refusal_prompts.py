"""Prompts of the studies of refusal: harmful requests of AdvBench or MM-SafetyBench, and everyday instructions."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from _common import of_split
from safety_rivals import load_parts, without_twins

from steerlab import Contrast, Example
from steerlab.data import demo_contrasts, mm_safety_bench, read_jsonl, with_contrasts

N = {"train": 96, "search": 16, "validation": 32, "test": 96, "fresh": 96, "fresh_2": 96}  # harmful prompts
# rows of the harmless test prompts; other parts have N of their own
TESTED = {"test": (0, 64), "fresh": (64, 128), "fresh_2": (128, 192)}
UNUSED = 545  # of `harmless_train_600`: from this row on no study of Qwen uses them
Sets = dict[str, tuple[list[Example], list[Example]]]


def load_sets(data: str | Path, seed: int, limit: int | None) -> Sets:
    """Harmful and harmless prompts of each part; the harmful ones have a refusing and a complying answer as contrast.

    Operators and fields share the test part. The fresh parts have prompts of neither; `compare_methods` uses all of
    AdvBench.

    Args:
        data: folder with `harmful_prompts/advbench.jsonl` and `noncommercial_cc_by_nc/alpaca_harmless/`.
        seed: of the order of the harmful prompts.
        limit: maximal number of prompts of each kind and part.
    """
    root = Path(data)
    harmful = read_jsonl(root / "harmful_prompts/advbench.jsonl", "instruction", behavior="refuse")
    random.Random(seed).shuffle(harmful)
    folder = root / "noncommercial_cc_by_nc/alpaca_harmless"
    harmless = read_jsonl(folder / "harmless_train_600.jsonl", "instruction", behavior="answer")
    tested = read_jsonl(folder / "harmless_test_200.jsonl", "instruction", behavior="answer")
    sets, start = {}, 0
    for part, n in N.items():
        n = min(n, limit or n)
        first, last = TESTED.get(part, (start, start + n))
        answered = (tested if part in TESTED else harmless)[first : min(last, first + n)]
        sets[part] = with_contrasts(harmful[start : start + n], demo_contrasts()), answered
        start += n
    return sets


def load_questions(data: str | Path, seed: int, limit: int | None) -> Sets:
    """Parts "train", "validation" and "test" with harmful questions of MM-SafetyBench in the place of AdvBench.

    They are published for training, and `safety_rivals` uses none of them. No test question is nearly one of the
    others, and no other study of Qwen uses the everyday instructions of the test. The others are those of `load_sets`.

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


def own_contrasts(prompts: Sequence[Example], steered: Sequence[str], plain: Sequence[str]) -> list[Example]:
    """The prompts with a model's own answers, steered and unsteered, as contrasts, where the two differ."""
    pairs = zip(prompts, steered, plain, strict=True)
    return [e.replace(contrast=Contrast(a, b)) for e, a, b in pairs if a.strip() and b.strip() and a != b]
