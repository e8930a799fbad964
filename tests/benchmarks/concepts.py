"""Seconds to fit a method that finds concepts, on synthetic differences of the width of SmolLM2.

    python tests/benchmarks/concepts.py [--rounds 3] [--out FOLDER]

Each fit of `FITS` has the size of its data and its goal for two cores, and runs with its default steps. `recovered` is
the mean correlation of its codes with the true changes: a fit that finds nothing does not count. `load` is the load of
the machine, since seconds depend on what else it does. Never part of the tests.
"""

import os
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from measured import arguments, report, timed

from steerlab.data import concept_shifts
from steerlab.data.concept_shifts import ConceptShifts
from steerlab.methods import SSAE
from steerlab.metrics import match_codes


def fit_ssae(made: ConceptShifts) -> torch.Tensor:
    """The codes of a sparse shift autoencoder at the true level."""
    level = float(made.codes.abs().sum(1).mean() / made.differences.norm(dim=1).mean())
    return SSAE(0, made.codes.shape[1], level).fit_differences(made.differences).encode(made.differences)


# name: rows, width, concepts, goal in seconds, and the fit, which returns codes
FITS: dict[str, tuple[int, int, int, float, Callable[[ConceptShifts], torch.Tensor]]] = {
    "ssae": (5000, 576, 64, 60.0, fit_ssae),
}


def main() -> None:
    parser = arguments(__doc__, "concepts")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    fits = {}
    for name, (rows, width, concepts, goal, fit) in FITS.items():
        made = concept_shifts(rows, concepts, width)
        found = [timed(partial(fit, made)) for _ in range(args.rounds)]
        seconds = [round(took, 2) for _, took in found]
        fits[name] = {
            "rows": rows, "width": width, "concepts": concepts, "seconds": statistics.median(seconds), "goal": goal,
            "all_seconds": seconds, "recovered": round(match_codes(made.codes, found[-1][0]).mean, 4),
        }  # fmt: skip
    settings: dict[str, Any] = {"threads": torch.get_num_threads(), "cores": os.cpu_count(), "torch": torch.__version__}
    report({"fits": fits, "load": round(os.getloadavg()[0], 1)} | settings, args.out / "summary.json")


if __name__ == "__main__":
    main()
