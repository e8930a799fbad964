"""Seconds and memory to fit a method that finds concepts, on synthetic differences of the width of SmolLM2.

    python tests/benchmarks/concepts.py [--rounds 3] [--out FOLDER]

Each fit of `FITS` has the size of its data and its goal for two cores, and runs with its default steps. `recovered` is
the mean correlation of its codes with the true ones: a fit that finds nothing does not count (PCA finds directions, not
the concepts). `extra_mib` is what a fit takes at its peak in a process of its own, beyond what is in use when its data
are there (`data_mib`). `load` is the load of the machine, since seconds depend on what else it does. Never part of the
tests.
"""

import os
import statistics
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

import psutil
import torch
from measured import arguments, report, timed

from steerlab.data import concept_shifts
from steerlab.data.concept_shifts import ConceptShifts
from steerlab.methods import SSAE, ConceptDictionary
from steerlab.metrics import match_codes


def fit_ssae(made: ConceptShifts) -> torch.Tensor:
    """The codes of a sparse shift autoencoder at the true level."""
    level = float(made.codes.abs().sum(1).mean() / made.differences.norm(dim=1).mean())
    return SSAE(0, made.codes.shape[1], level).fit_differences(made.differences).encode(made.differences)


def fit_dictionary(method: Any, made: ConceptShifts) -> torch.Tensor:
    """The activations of a concept dictionary."""
    found = ConceptDictionary(0, made.codes.shape[1], method=method).fit_states(made.differences)
    return found.activations(made.differences)


SPARSE: dict[str, Any] = {"changed": (1, 3)}
ALONE: dict[str, Any] = {"changed": (1, 1), "codes": "normal", "noise": 0.01}  # a state has one concept
# name: rows, width, concepts, goal in seconds, the data, and the fit, which returns codes
FITS: dict[str, tuple[int, int, int, float, dict[str, Any], Callable[[ConceptShifts], torch.Tensor]]] = {
    "ssae": (5000, 576, 64, 60.0, SPARSE, fit_ssae),
    **{name: (10000, 576, 20, 20.0, ALONE, partial(fit_dictionary, name)) for name in ("kmeans", "pca", "seminmf")},
}


def extra_memory(name: str) -> int:
    """MiB that a fit takes at its peak, beyond what this process has when the data are there."""
    rows, width, concepts, _, data, fit = FITS[name]
    made, process, done = concept_shifts(rows, concepts, width, **data), psutil.Process(), threading.Event()
    seen = [process.memory_info().rss]

    def watch() -> None:
        while not done.wait(0.005):
            seen.append(process.memory_info().rss)

    thread = threading.Thread(target=watch)
    thread.start()
    fit(made)
    done.set()
    thread.join()
    return (max(seen) - seen[0]) // 2**20


def main() -> None:
    parser = arguments(__doc__, "concepts")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    fits = {}
    for name, (rows, width, concepts, goal, data, fit) in FITS.items():
        made = concept_shifts(rows, concepts, width, **data)
        found = [timed(partial(fit, made)) for _ in range(args.rounds)]
        seconds = [round(took, 2) for _, took in found]
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            memory = pool.submit(extra_memory, name).result()
        fits[name] = {
            "rows": rows, "width": width, "concepts": concepts, "seconds": statistics.median(seconds), "goal": goal,
            "all_seconds": seconds, "recovered": round(match_codes(made.codes, found[-1][0]).mean, 4),
            "extra_mib": memory, "data_mib": rows * width * 4 // 2**20,
        }  # fmt: skip
    settings: dict[str, Any] = {"threads": torch.get_num_threads(), "cores": os.cpu_count(), "torch": torch.__version__}
    report({"fits": fits, "load": round(os.getloadavg()[0], 1)} | settings, args.out / "summary.json")


if __name__ == "__main__":
    main()
