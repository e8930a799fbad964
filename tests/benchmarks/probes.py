"""How much longer a logistic regression takes with all threads than with one, which is what steerlab uses.

    python tests/benchmarks/probes.py [--rounds 20] [--out FOLDER]

Ratios of pairs run in turns: above 1, one BLAS thread is faster. Random classes, a tenth as far from each other as
their noise is wide, in the sizes of the demo's router, a small probe, a router of languages, and a probe of a 7 B
model.
"""

import os
from functools import partial
from statistics import median
from typing import Any

import numpy as np
from measured import arguments, paired, report
from sklearn.linear_model import LogisticRegression

from steerlab._support.logistic import SerialLogisticRegression

SIZES = ((1800, 320, 36), (400, 64, 2), (3000, 896, 14), (4000, 4096, 2))  # rows, features, classes


def ratios(rows: int, features: int, classes: int, rounds: int) -> dict[str, Any]:
    """All threads against one: the median ratio and its range, and the seconds of one."""
    noise = np.random.default_rng(0)
    labels = noise.permutation(np.arange(rows) % classes)
    states = 0.1 * noise.normal(size=(classes, features))[labels] + noise.normal(size=(rows, features))
    one, all_threads = (
        partial(kind(max_iter=5000).fit, states, labels) for kind in (SerialLogisticRegression, LogisticRegression)
    )
    found, seconds = paired(one, all_threads, rounds)
    spread = {"ratio": median(found), "lowest": min(found), "highest": max(found), "seconds_of_one": seconds}
    return {"rows": rows, "features": features, "classes": classes} | {k: round(v, 3) for k, v in spread.items()}


def main() -> None:
    parser = arguments(__doc__, "probes")
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    sizes = [ratios(*size, args.rounds) for size in SIZES]
    machine = {"cores": os.cpu_count(), "numpy": np.__version__, "load": round(os.getloadavg()[0], 1)}
    report({"sizes": sizes} | machine, args.out / "summary.json")


if __name__ == "__main__":
    main()
