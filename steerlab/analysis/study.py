"""The folder of a study: finished stages are stored and read back; the folder of another study is refused."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from steerlab._support.errors import MismatchError, StorageError
from steerlab._support.files import fingerprint, write_atomically, write_json, write_text


class Study:
    """Stages that are computed once and read back from disk afterwards.

    Example:
        >>> study = Study("results/demo", {"study": "demo", "seed": 0, "limit": None})
        >>> grid = study.stage("grid-16-all", lambda: compute())       # a frame; from disk the second time

    Args:
        folder: of the results; stages are stored in its subfolder `stages/`.
        identity: everything that decides the results (arguments, model, data, seed).

    Raises:
        MismatchError: the folder belongs to a study with another identity; both are named.
        StorageError: the disk is full, or the folder can't be written to; finished stages are safe.
    """

    def __init__(self, folder: str | Path, identity: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self._begun = time.time()
        path = self.folder / "stages" / "study.json"
        mine = json.loads(json.dumps(dict(identity), default=str))
        if path.exists():
            known = json.loads(path.read_text(encoding="utf-8"))
            if fingerprint(known) != fingerprint(mine):
                differ = sorted(k for k in known.keys() | mine.keys() if known.get(k) != mine.get(k))
                named = "; ".join(f"{k}: {known.get(k)!r} there, {mine.get(k)!r} now" for k in differ[:4])
                raise MismatchError(
                    f"{self.folder} belongs to another study ({named}). Choose another --out, or delete it."
                )
        else:
            with _storing(path, "nothing was begun. Make room, or choose a folder that can be written to."):
                write_json(path, mine)
        self.identity = mine

    def stage(self, name: str, compute: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """The frame of one stage: read back if it is stored, computed and stored otherwise."""
        path = self.folder / "stages" / f"{name}.csv"
        if not path.exists():
            frame = compute()
            done = len(list(path.parent.glob("*.csv")))
            hint = f"{done} finished stages are safe there. Make room and run the same again; it resumes from them."
            # every text is quoted: a lone carriage return in an answer would otherwise begin a new row
            quotes = csv.QUOTE_NONNUMERIC
            with _storing(path, hint):
                write_atomically(path, lambda partial: frame.to_csv(partial, index=False, na_rep="nan", quoting=quotes))
        # the Python engine reads back every bit of a number; the fast one does so in some versions of pandas only
        return pd.read_csv(path, keep_default_na=False, na_values=["nan"], engine="python")

    def has(self, name: str) -> bool:
        """Whether a stage is stored."""
        return (self.folder / "stages" / f"{name}.csv").exists()

    def finish(
        self, results: pd.DataFrame, summary: Mapping[str, Any], examples: str, provenance: Mapping[str, Any]
    ) -> None:
        """Write `results.csv`, `summary.json` and `examples.md`.

        Seconds spent are added up over resumed runs.
        """
        clock = self.folder / "stages" / "seconds.json"
        before = json.loads(clock.read_text(encoding="utf-8")) if clock.exists() else 0.0
        seconds = round(before + time.time() - self._begun, 1)
        write_json(clock, seconds)
        write_atomically(self.folder / "results.csv", lambda partial: results.to_csv(partial, index=False))
        origin = {"study": self.identity, "provenance": {**provenance, "seconds": seconds}}
        write_json(self.folder / "summary.json", {**summary, **origin})
        write_text(self.folder / "examples.md", examples)


@contextmanager
def _storing(path: Path, hint: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"{path} could not be written ({error.strerror or error}): {hint}") from error
