"""Prompts of the studies of refusal: harmful requests of AdvBench, and everyday instructions."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from steerlab import Contrast, Example
from steerlab.data import demo_contrasts, read_jsonl, with_contrasts

N = {"train": 96, "search": 16, "validation": 32, "test": 96, "fresh": 96, "fresh_2": 96}  # harmful prompts
# rows of the harmless test prompts; other parts have N of their own
TESTED = {"test": (0, 64), "fresh": (64, 128), "fresh_2": (128, 192)}
Sets = dict[str, tuple[list[Example], list[Example]]]


def load_sets(data: str | Path, seed: int, limit: int | None) -> Sets:
    """Harmful and harmless prompts of each part; the harmful ones have a refusing and a complying answer as contrast.

    Operators and fields share the test part; later runs of operators and KL-then-steer are tested on the fresh parts.
    `compare_methods` uses all of AdvBench, and it and `l2s_safety` the harmless test prompts.

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


def own_contrasts(prompts: Sequence[Example], steered: Sequence[str], plain: Sequence[str]) -> list[Example]:
    """The prompts with a model's own answers, steered and unsteered, as contrasts, where the two differ."""
    pairs = zip(prompts, steered, plain, strict=True)
    return [e.replace(contrast=Contrast(a, b)) for e, a, b in pairs if a.strip() and b.strip() and a != b]
