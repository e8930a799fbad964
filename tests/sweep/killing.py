"""Run by `test_killed`: a sweep that is killed twenty times, in forks of a process that has imported everything.

`python killing.py FOLDER SEED` leaves in FOLDER the frames `whole.pkl` and `resumed.pkl`, and `report.json`.
"""

import json
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from reference import at_forward, questions, text_length, vectors

from steerlab import sweep
from steerlab.models.model import Model
from steerlab.testing import tiny_lm

KILLS = 20
LAYERS, ALPHAS, POSITIONS = (0, 1, 2), (-1.0, 0.0, 0.5, 2.0), ["all", "last+generated"]


def run(model: Model, folder: Path | None) -> pd.DataFrame:
    """Unsteered and steered answers, texts, and what a metric says of them: every kind of stage."""
    return sweep(
        model, questions(), {"v": vectors(model)}, LAYERS, ALPHAS, POSITIONS, ["propensity", "logprob", text_length],
        folder=folder, batch_size=4, progress=False, generation={"max_new_tokens": 3},
    )  # fmt: skip


def fork(work: Callable[[], object]) -> int:
    """The id of a child that does the work and ends."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        work()
        status = 0
    finally:
        os._exit(status)


def stages(folder: Path) -> dict[str, int]:
    """When each finished stage was written."""
    return {p.name: p.stat().st_mtime_ns for p in folder.glob("stages/*.csv")}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_in_a_write(after: int, half: bool) -> None:
    """When so many more files are whole: with the next one half written, or written and not yet in place."""
    left, replace = [after], os.replace

    def count(partial: Path, path: Path) -> None:
        left[0] -= 1
        if left[0] < 0:
            if half:
                os.truncate(partial, partial.stat().st_size // 2)
            die()
        replace(partial, path)

    os.replace = count  # type: ignore[assignment]


def killed_run(model: Model, folder: Path, draw: random.Random, number: int) -> bool:
    """A run in a fork that is killed at some place; whether it was."""
    place, after = ("forward", "half", "whole")[number % 3], draw.randint(0, 2)

    def work() -> None:
        if place == "forward":
            at_forward(model, 2 * after, die)
        else:
            die_in_a_write(after, place == "half")
        run(model, folder)

    return os.WIFSIGNALED(os.waitpid(fork(work), 0)[1])


def main(folder: Path, seed: int) -> None:
    """Kill, resume, and at last let it finish."""
    torch.set_num_threads(1)
    model, draw, killed = tiny_lm("llama", backend="hooks"), random.Random(seed), folder / "killed"
    run(model, folder / "whole").to_pickle(folder / "whole.pkl")
    kills, finished, rewritten = [], [], 0
    for number in range(KILLS):
        before = stages(killed)
        hit = killed_run(model, killed, draw, number)
        now = stages(killed)
        rewritten += sum(now.get(name) != when for name, when in before.items())
        kills.append(hit)
        finished.append(len(now))
    before = stages(killed)
    _, status = os.waitpid(fork(lambda: run(model, killed).to_pickle(folder / "resumed.pkl")), 0)
    now = stages(killed)
    report = {
        "kills": kills, "finished": finished, "total": len(stages(folder / "whole")), "status": status,
        "rewritten": rewritten + sum(now.get(name) != when for name, when in before.items()),
        "partial": len(list(killed.glob("stages/.*.partial"))),
        "kinds": [kind for kind in ("unsteered", "text", "metric") if any(kind in name for name in now)],
        "same_names": sorted(now) == sorted(stages(folder / "whole")),
    }  # fmt: skip
    (folder / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
