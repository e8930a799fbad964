"""One kind of run in a benchmark of far models, with what it cost: the rows of `runs.csv`, for the cost model."""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd


@dataclass
class Run:
    """One kind of run, here and there.

    Attributes:
        name: what was run.
        calibrates: whether the cost model may look at it; the others are what it has to predict.
        engine: "ndif", "vllm" or "serve".
        requests, steps: jobs sent, forwards of new tokens.
        columns, work: tokens with padding of the forwards of prompts, and those times the blocks they went through.
        vectors: different vectors that were sent.
        sent, received, returned: bytes up, bytes down, and bytes of the values that the caller gets.
        seconds, seconds_here: median of the rounds; 0 where it was not run here.
        difference: the largest difference between the two results.
    """

    name: str
    calibrates: bool
    engine: str
    requests: int = 0
    columns: int = 0
    work: int = 0
    steps: int = 0
    vectors: int = 0
    sent: int = 0
    received: int = 0
    returned: int = 0
    seconds: float = 0.0
    seconds_here: float = 0.0
    difference: float = 0.0


def write_runs(runs: Sequence[Run], folder: Path) -> None:
    """The table of all runs."""
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame([asdict(run) for run in runs]).round(4).to_csv(folder / "runs.csv", index=False)


def arguments(doc: str, out: str) -> argparse.ArgumentParser:
    """A parser with `--out`, the file or folder of the results."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("tests/benchmarks/results") / out)
    return parser


def report(found: dict[str, Any], file: Path) -> None:
    """Print and write the results."""
    file.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(found, indent=2)
    file.write_text(text + "\n", encoding="utf-8")
    print(text)


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    """What a call returns, and its seconds."""
    begun = time.perf_counter()
    return run(), time.perf_counter() - begun


def paired(first: Callable[[], Any], second: Callable[[], Any], rounds: int) -> tuple[list[float], float]:
    """Ratios second / first of pairs run in turns (the order alternates), and the median seconds of the first."""
    for _ in range(2):
        first(), second()
    ratios, base = [], []
    for number in range(rounds):
        order = (first, second) if number % 2 == 0 else (second, first)
        took = {function: timed(function)[1] for function in order}
        ratios.append(took[second] / took[first])
        base.append(took[first])
    return ratios, statistics.median(base)
