"""What capturing every layer costs, as a ratio to the bare forward, and whether only what is returned is copied.

    python tests/benchmarks/capture_cost.py [--model smollm2] [--out tests/benchmarks/results/capture_cost.json]

The bare forward and the capture run in turns in one process, so that whatever else the machine does hits both; the
ratio of each pair is taken, and their median reported. Never part of the tests: seconds depend on the machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

import steerlab
from steerlab.capture.capture import BatchRunner
from steerlab.capture.rows import as_examples, as_sites, plan_rows


def main() -> None:
    """Measure, print and write."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--model", default="smollm2")
    arguments.add_argument("--batch", type=int, default=16)
    arguments.add_argument("--rounds", type=int, default=15)
    arguments.add_argument("--out", default="tests/benchmarks/results/capture_cost.json")
    args = arguments.parse_args()
    model = steerlab.load(args.model)
    text = "the quick brown fox jumps over the lazy dog and then sleeps in the warm sun for a long while"
    words = list(text.split(" "))
    prompts = [" ".join(words[i % len(words)] for i in range(k, k + 24)) for k in range(args.batch)]
    rows = plan_rows(model, as_examples(prompts), ["last"], [], "mean")
    sites = as_sites("all", model)
    batch = model.batch([row.prompt for row in rows], "right")
    inputs = model.inputs(batch)

    def bare() -> None:
        with torch.no_grad():
            model.hf(**inputs, use_cache=False, logits_to_keep=1)

    run = BatchRunner(model, sites, torch.float32, "right", "mean")
    captured: list[torch.Tensor] = []

    def capture() -> None:
        captured[:] = [values for values, _ in run(rows)]

    ratios, seconds = paired(bare, capture, args.rounds)
    acts = steerlab.capture(model, prompts, batch_size=args.batch, progress=False)
    found = {
        "model": args.model, "batch": args.batch, "tokens": batch.width, "layers": len(sites),
        "device": str(model.device), "threads": torch.get_num_threads(),
        "capture.ratio_to_forward": round(statistics.median(ratios), 4),
        "capture.ratio_quartiles": [round(q, 4) for q in statistics.quantiles(ratios, n=4)],
        "forward.seconds": round(seconds, 4),
        "capture.bytes_copied": acts.info["bytes_copied"], "capture.bytes_returned": acts.values.nbytes,
        "versions": model.info()["versions"],
    }  # fmt: skip
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    Path(args.out).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=2))


def paired(first: Callable[[], None], second: Callable[[], None], rounds: int) -> tuple[list[float], float]:
    """Ratios second / first of pairs run in turns (the order alternates), and the median seconds of the first."""
    for _ in range(2):
        first(), second()
    ratios, base = [], []
    for number in range(rounds):
        order = (first, second) if number % 2 == 0 else (second, first)
        took = {}
        for function in order:
            start = time.perf_counter()
            function()
            took[function] = time.perf_counter() - start
        ratios.append(took[second] / took[first])
        base.append(took[first])
    return ratios, statistics.median(base)


if __name__ == "__main__":
    main()
