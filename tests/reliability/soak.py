"""Captures, sweeps and generations in one process for minutes, with the memory it holds: `soak.py [MINUTES]`.

Prints a JSON object: resident megabytes after five minutes and at the end, and their ratio. A leak grows with the
number of rounds; what is cached once does not.
"""

import gc
import json
import resource
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

import steerlab
from steerlab import Contrast, Example
from steerlab.methods.mean import MeanDifference
from steerlab.methods.serialization import save
from steerlab.models.model import Model
from steerlab.testing import tiny_lm

WARM = 5.0  # minutes
PAIRS = [
    Example(
        f"Where do herons sleep, and for how long, number {i}?", id=f"e{i}", contrast=Contrast(" By day.", " At night.")
    )
    for i in range(12)
]


def one_round(model: Model, number: int) -> None:
    """Every verb once; prompts differ from round to round, as a server's would."""
    mean = MeanDifference(1).fit(steerlab.capture(model, PAIRS, layers="all", progress=False))
    prompts = [f"{'What is that? ' * (number % 5 + 1)}{number} {i}" for i in range(4)]
    steerlab.generate(model, prompts, steer=mean, alpha=0.5, max_new_tokens=6)
    steerlab.score(model, prompts, ["yes"] * 4, steer=mean)
    steerlab.sweep(model, PAIRS[:4], mean, alphas=[0.0, 1.0], progress=False)
    with TemporaryDirectory() as folder:
        steerlab.capture(model, PAIRS[:4], folder=folder, progress=False).load()
        save(mean, Path(folder) / "mean")
        steerlab.load_steerer(Path(folder) / "mean")


def soak(minutes: float) -> dict[str, float]:
    """Run rounds for some minutes; resident memory is read after a collection."""
    model, process, begin = tiny_lm("llama", attn_implementation="sdpa"), psutil.Process(), time.monotonic()
    warm, rounds = 0.0, 0
    while (passed := (time.monotonic() - begin) / 60) < minutes:
        one_round(model, rounds)
        rounds += 1
        if not warm and passed >= min(WARM, minutes / 2):
            gc.collect()
            warm = process.memory_info().rss / 2**20
    gc.collect()
    end = process.memory_info().rss / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"minutes": minutes, "rounds": rounds, "warm_mb": warm, "end_mb": end, "peak_mb": peak, "ratio": end / warm}


if __name__ == "__main__":
    print(json.dumps(soak(float(sys.argv[1]) if len(sys.argv) > 1 else 40.0), indent=2))
