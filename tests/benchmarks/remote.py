"""The cost of a real NDIF server: equal numbers, time, requests and bytes.

    python tests/benchmarks/remote.py [--rows 256] [--rounds 3] [--out tests/benchmarks/results/remote]

A server with SmolLM2 is started on this machine, as by the tests, in a private network; the model is loaded here too,
and every run is made here and there in turns, so that other load of the machine affects both. Both sides run whole rows
(`prefix_caching=False`), as a server must.

`remote.capture_ratio` is the time of a capture of all layers without one round trip for each batch, over the time here;
a round trip is the additional time of a request for a single token. `runs.csv` has the requests, work, steps and bytes
of every kind of run, for the cost model of `docs/scaling.md`.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import steerlab
from steerlab import SteeringVector
from steerlab.models.model import Model
from steerlab.models.smollm2 import smollm2_folder

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "remote")]
from measured import Run, arguments, report, timed, write_runs
from servers.ndif import Ndif
from servers.network import private_network
from servers.venvs import NDIF, NDIF_THEN, environment

LAYER, ALPHAS = 15, [a / 10 for a in range(-25, 26) if a]  # 50, at four layers: 200 cells


class CountingEngine:
    """Counts the work of an engine."""

    def __init__(self, engine: Any, n_layers: int) -> None:
        self.engine, self._n_layers = engine, n_layers
        self.columns = self.work = self.steps = self.vectors = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def capture_states(self, inputs: Any, edits: Any, sites: Any, *rest: Any) -> Any:
        self._count(inputs, edits, 1 + max(site.layer for site in sites))  # the forward ends there
        return self.engine.capture_states(inputs, edits, sites, *rest)

    def logits(self, inputs: Any, edits: Any, *rest: Any, **options: Any) -> Any:
        self._count(inputs, edits, self._n_layers)
        return self.engine.logits(inputs, edits, *rest, **options)

    def generate(self, inputs: Any, edits: Any, **options: Any) -> Any:
        self._count(inputs, edits, self._n_layers)
        ids = self.engine.generate(inputs, edits, **options)
        self.steps += ids.shape[1] - inputs["input_ids"].shape[1] - 1
        return ids

    def _count(self, inputs: Any, edits: Any, depth: int) -> None:
        self.columns += inputs["input_ids"].numel()
        self.work += inputs["input_ids"].numel() * depth
        self.vectors += sum(len(torch.unique(edit.vectors, dim=0)) for at_site in edits.values() for edit in at_site)


def main() -> None:
    """Measure, print and write."""
    parser = arguments(__doc__, "remote")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    here = steerlab.load(smollm2_folder(), prefix_caching=False)
    shared = steerlab.load(smollm2_folder())
    with private_network(), tempfile.TemporaryDirectory() as folder:
        server = Ndif(environment(NDIF, NDIF_THEN), Path(folder) / "ndif")
        try:
            begun = time.perf_counter()
            server.start()
            up = time.perf_counter() - begun
            there = steerlab.load(smollm2_folder(), remote=server.host)
            runs = [measured(name, *rest, here, there, args.rounds) for name, *rest in kinds(args.rows)]
            trip = round_trip(here, there)
            planned = steerlab.sweep(there, **of_cells(), dry_run=True).answers
        finally:
            server.stop()
    found = summary({run.name: run for run in runs}, trip, args) | {"server.seconds_to_start": round(up, 1)}
    found["remote.sweep_batches"] = planned.n_batches
    found |= {"capture.seconds_sharing_prompts": round(timed(lambda: whole_capture(shared, args.rows))[1], 3)}
    found |= {"versions": here.info()["versions"], "threads": torch.get_num_threads()}
    write_runs(runs, args.out)
    report(found, args.out / "summary.json")


def whole_capture(model: Model, rows: int, layers: Any = "all", batch_size: int = 16) -> Any:
    """States of the last prompt token."""
    wanted = {"layers": layers, "positions": "last", "batch_size": batch_size, "progress": False}
    return steerlab.capture(model, prompts(rows), **wanted).values


def prompts(rows: int) -> list[str]:
    """Prompts of several lengths, no two alike."""
    questions = [example.prompt for example in steerlab.data.demo_set()]
    return [f"{i}. {questions[i % len(questions)]}" for i in range(rows)]


def kinds(rows: int) -> list[tuple[str, bool, Callable[[Model], Any]]]:
    """Name, whether the cost model is fitted to it, and the run."""
    some, width = prompts(64), 576
    steered: dict[str, Any] = dict(steer=SteeringVector({LAYER: torch.ones(width)}), alpha=1.0, batch_size=16)

    def texts(model: Model, n: int, steps: int) -> Any:
        made = steerlab.generate(model, some[:n], max_new_tokens=steps, min_new_tokens=steps, **steered)
        return torch.tensor(made.ids)

    return [
        ("capture 1 layer, 64 rows in 4 batches", True, lambda m: whole_capture(m, 64, [LAYER])),
        ("capture 1 layer, 64 rows one by one", True, lambda m: whole_capture(m, 64, [LAYER], 1)),
        ("capture every token of 30 layers, 64 rows", True, lambda m: steerlab.capture(
            m, some, layers="all", positions="all", reduce="none", batch_size=64, progress=False).values),
        ("4 new tokens for 16 rows", True, lambda m: texts(m, 16, 4)),
        ("24 new tokens for 16 rows", True, lambda m: texts(m, 16, 24)),
        (f"capture 30 layers, {rows} rows", False, lambda m: whole_capture(m, rows)),
        ("first tokens' logits of 64 rows", False, lambda m: steerlab.next_token_logits(m, some, **steered)),
        ("scores of 64 answers", False,
         lambda m: steerlab.score(m, some, [" Yes, certainly"] * 64, **steered).logprob.to_numpy()),
        ("12 new tokens for 64 rows", False, lambda m: texts(m, 64, 12)),
        ("sweep of 200 cells", False, lambda m: steerlab.sweep(m, **of_cells(), progress=False).value.to_numpy()),
    ]  # fmt: skip


def of_cells() -> dict[str, Any]:
    """What 200 cells are swept over: four layers, 50 strengths, three inputs."""
    vectors = {layer: SteeringVector({layer: torch.ones(576)}) for layer in (5, 11, 17, 23)}
    pairs = [example for example in steerlab.data.demo_set() if example.contrast][:3]
    return {"steer": {"mean": vectors}, "data": pairs, "layers": list(vectors), "alphas": ALPHAS, "batch_size": 64}


def measured(name: str, calibrates: bool, run: Callable[[Model], Any], here: Model, there: Model, rounds: int) -> Run:
    """A run in turns, here and there."""
    print(name, file=sys.stderr, flush=True)
    made = Run(name, calibrates, "ndif")
    mine, theirs = [], []
    run(here)  # without what is compiled or read at a first call
    for number in range(rounds):
        near, seconds = timed(lambda: run(here))
        mine.append(seconds)
        counted, traffic = CountingEngine(there.engine, there.n_layers), there.engine.client.traffic  # type: ignore[attr-defined]
        before = traffic.requests, traffic.sent, traffic.received
        there.engine = counted  # type: ignore[assignment]
        remote, seconds = timed(lambda: run(there))
        there.engine = counted.engine
        theirs.append(seconds)
        if number == 0:
            made.requests, made.columns, made.work = traffic.requests - before[0], counted.columns, counted.work
            made.steps, made.vectors = counted.steps, counted.vectors
            made.sent, made.received = traffic.sent - before[1], traffic.received - before[2]
            made.returned = remote.nbytes
        made.difference = max(made.difference, float(np.abs(np.asarray(near) - np.asarray(remote)).max()))
    made.seconds, made.seconds_here = statistics.median(theirs), statistics.median(mine)
    return made


def round_trip(here: Model, there: Model, rounds: int = 15) -> float:
    """What a request for one token takes longer there than here, in seconds."""
    there_s, here_s = (
        statistics.median(timed(lambda m=model: whole_capture(m, 1, [0]))[1] for _ in range(rounds))
        for model in (there, here)
    )
    return there_s - here_s


def summary(runs: dict[str, Run], trip: float, args: argparse.Namespace) -> dict[str, Any]:
    """The numbers of `docs/scaling.md`."""
    whole, sweep = runs[f"capture 30 layers, {args.rows} rows"], runs["sweep of 200 cells"]
    exact = [run for run in runs.values() if run.name.startswith("capture") or "new tokens" in run.name]
    return {
        "command": f"python tests/benchmarks/remote.py --rows {args.rows} --rounds {args.rounds}",
        "model": "smollm2", "device": "cpu", "dtype": "float32", "worker": "in-process",
        "remote.max_abs_diff": max(run.difference for run in exact),
        "remote.max_abs_diff_of_logits_scores_and_sweeps": max(r.difference for r in runs.values() if r not in exact),
        "remote.capture_ratio": round((whole.seconds - whole.requests * trip) / whole.seconds_here, 3),
        "remote.capture_ratio_with_round_trips": round(whole.seconds / whole.seconds_here, 3),
        "remote.capture_seconds": round(whole.seconds, 3), "remote.capture_seconds_here": round(whole.seconds_here, 3),
        "remote.capture_batches": -(-args.rows // 16), "remote.capture_requests": whole.requests,
        "remote.round_trip_seconds": round(trip, 4), "remote.bytes_sent_a_request": whole.sent // whole.requests,
        "remote.bytes_returned_a_row": whole.returned // args.rows,
        "remote.bytes_over_the_wire_a_row": whole.received // args.rows,
        "remote.overhead_bytes_a_batch": (whole.received - whole.returned) // whole.requests,
        "remote.requests": sweep.requests, "remote.sweep_cells": 4 * len(ALPHAS),
        "remote.sweep_seconds": round(sweep.seconds, 2), "remote.sweep_seconds_here": round(sweep.seconds_here, 2),
    }  # fmt: skip


if __name__ == "__main__":
    main()
