"""What decoding under each operator costs, as a ratio to unsteered decoding.

    OMP_WAIT_POLICY=PASSIVE python tests/benchmarks/operators.py [--model smollm2] [--rounds 6] [--out FOLDER]

Two copies of the model generate, one of them steered, and take turns token by token: a slow second of the machine falls
on both. From round to round the other one is steered. The ratio of a round is that of the median seconds of a token
after the prompt. The row "nothing" steers neither: it says what the machine can tell apart. Every token is changed at
one layer. Threads that spin while they wait would slow the other's turn. Never part of the tests.
"""

import os
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
from measured import arguments, report
from scipy import stats
from transformers import StoppingCriteria

import steerlab
from steerlab import Contrast, Example, MeanDifference
from steerlab.methods import Clamp, GradientField, Operation, Scale, Spherical
from steerlab.methods.base import Steerer
from steerlab.models.model import Model


class Turns(StoppingCriteria):
    """Called after each token: notes its seconds, and lets the other generation make one."""

    def __init__(self, own: threading.Semaphore, other: threading.Semaphore) -> None:
        self.own, self.other = own, other
        self.seconds: list[float] = []

    def wait(self) -> None:
        assert self.own.acquire(timeout=60), "the other generation has failed"
        self.begun = time.perf_counter()

    def __call__(self, ids: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        self.seconds.append(time.perf_counter() - self.begun)
        self.other.release()
        self.wait()
        return torch.zeros(len(ids), dtype=torch.bool)

    def run(self, generate: Any) -> float:
        self.wait()
        generate(stopping_criteria=[self])
        self.other.release()
        return statistics.median(self.seconds[1:])


def in_turns(first: Any, second: Any) -> list[float]:
    """The median seconds of a token of both generations."""
    one, two = threading.Semaphore(1), threading.Semaphore(0)
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(Turns.run, (Turns(one, two), Turns(two, one)), (first, second)))


def main() -> None:
    parser = arguments(__doc__, "operators")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rounds", type=int, default=6)
    args = parser.parse_args()
    models = [steerlab.load(args.model), steerlab.load(args.model)]
    prompts = [f"Tell me in a few words what happened in the year {1900 + i}." for i in range(16)]
    options: dict[str, Any] = {"max_new_tokens": 32, "min_new_tokens": 32, "batch_size": 16, "progress": False}
    operators, plain_seconds = {}, []
    for name, steerer in {"nothing": None, **steerers(models[0])}.items():
        how: dict[str, Any] = {} if steerer is None else {"steer": steerer, "alpha": 0.5}
        ratios = []
        for way in [1, -1] * (args.rounds // 2 + 1):
            given = zip(models, ({}, how)[::way], strict=True)
            pair = (partial(steerlab.generate, one, prompts, **options, **each) for one, each in given)
            plain, steered = in_turns(*pair)[::way]
            ratios.append(steered / plain)
            plain_seconds.append(plain)
        found = np.array(ratios[2:])  # after one of each
        interval = stats.t.interval(0.95, len(found) - 1, found.mean(), stats.sem(found))
        operators[name] = {"ratio": round(float(found.mean()), 4), "interval": np.round(interval, 4).tolist()}
        print(name, operators[name], flush=True)
    summary = {
        "model": args.model, "rounds": args.rounds, **options, "threads": torch.get_num_threads(),
        "wait_policy": os.environ.get("OMP_WAIT_POLICY"), "operators": operators,
        "seconds_of_a_token": round(statistics.median(plain_seconds), 4), "versions": models[0].info()["versions"],
    }  # fmt: skip
    report(summary, args.out / "summary.json")


def steerers(model: Model) -> dict[str, Steerer]:
    """Every operator at one layer in the middle."""
    layer = model.n_layers // 2
    pairs = [Example(f"Is {i} even?", Contrast("Certainly, it is.", "No, never."), behavior="yes") for i in range(24)]
    acts = steerlab.capture(model, pairs, layers=[layer], progress=False)
    mean = MeanDifference(layer).fit(acts)
    operations = {name: Operation(mean, name) for name in ("project_out", "replace", "rotate")}
    return {
        "add": mean, **operations, "clamp": Operation(mean, Clamp(-1.0, 1.0)), "scale": Operation(layer, Scale(0.9)),
        "spherical": Spherical(layer).fit(acts), "gradient field": GradientField(layer, epochs=5).fit(acts),
    }  # fmt: skip


if __name__ == "__main__":
    main()
