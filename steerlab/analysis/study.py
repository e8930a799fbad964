"""The folder of a study: finished stages are stored and read back; the folder of another study is refused."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from steerlab._support import files
from steerlab.errors import DataError, MismatchError
from steerlab.models.fingerprint import differences

SCHEMA = 2
_MISSING = "(missing)"  # a text may be "nan", and a table has no sign that no text can be
_FIELD = re.compile(r'("(?:[^"]|"")*"|[^",\n]*)[,\n]')
REPAIR = "Delete this file and run the same again: everything else is kept"


class Study:
    """Stages that are computed once and read back from disk afterwards.

    A stage is a CSV file below one line with its checksum, which is also of its name and of the study's identity: a
    stage that was changed, renamed or taken from another study is refused.

    Example:
        >>> study = Study("results/demo", {"study": "demo", "seed": 0, "limit": None})
        >>> grid = study.stage("grid-16-all", lambda: compute())       # a frame; from disk the second time

    Args:
        folder: of the results; stages are stored in its subfolder `stages/`.
        identity: everything that decides the results (arguments, model, data, seed). With the "weights" of
            `Model.info`, these decide instead of the names "model" and "revision".

    Raises:
        MismatchError: the folder belongs to a study with another identity, or a file in it was changed; named.
        StorageError: the disk is full, or the folder can't be written to; finished stages are safe.
    """

    def __init__(self, folder: str | Path, identity: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self._begun = time.time()
        path = self.folder / "stages" / "study.json"
        self.identity = json.loads(json.dumps(dict(identity), default=str))
        if "weights" in self.identity and os.path.isdir(str(self.identity.get("model"))):
            self.identity["model"] = Path(self.identity["model"]).name  # the weights decide; a path is one machine's
        if not os.path.exists(path):  # unlike Path.exists, False where looking is forbidden
            with files.storing(path, kept := "nothing was begun"):
                path.parent.mkdir(parents=True, exist_ok=True)
                files.write_json(path, files.seal({"schema": SCHEMA, "identity": self.identity}), kept)
        with files.reading(path, REPAIR):
            there = dict(files.read_sealed(path, SCHEMA, REPAIR)["identity"])
        differing = [
            f"{k}: {there.get(k)!r} there, {self.identity.get(k)!r} now" for k in differences(there, self.identity)
        ]
        if differing:
            raise MismatchError(
                f"{self.folder} belongs to another study ({'; '.join(differing[:4])}). Choose another --out, or "
                "delete it."
            )
        self._key = files.fingerprint([SCHEMA, there])

    def stage(self, name: str, compute: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """The frame of one stage: read back if it is stored, computed and stored otherwise."""
        path = self._path(name)
        if not self.has(name):
            # every text is quoted: a lone carriage return in an answer would otherwise begin a new row
            frame = compute()
            if frame.isin([_MISSING]).any(axis=None):
                raise DataError(f"the stage {name!r} has the text {_MISSING!r}, which stands for a missing value in it")
            table = frame.to_csv(index=False, na_rep=_MISSING, quoting=csv.QUOTE_NONNUMERIC)
            content = table.encode(errors="surrogatepass")
            whole, kept = self._first_line(name, content) + content, f"{self.n_finished} finished stages are safe there"
            files.write_atomically(path, lambda partial: partial.write_bytes(whole), kept)
        with files.reading(path, REPAIR):
            line, end, content = path.read_bytes().partition(b"\n")
            if line + end != self._first_line(name, content):
                raise MismatchError(f"the first line is not the checksum of the stage {name!r} of this study")
            # the Python engine reads back every bit of a number; the fast one does so in some versions of pandas only
            table = content.decode(errors="surrogatepass")
            return pd.read_csv(
                io.StringIO(table, newline=""), keep_default_na=False, na_values=[_MISSING], engine="python",
                dtype=dict.fromkeys(_text_columns(table), str), skip_blank_lines=False,
            )  # fmt: skip

    @property
    def n_finished(self) -> int:
        """Number of stages that are stored."""
        return len(list(self._path("").parent.glob("*.csv")))

    def has(self, name: str) -> bool:
        """Whether a stage is stored."""
        return os.path.exists(self._path(name))

    def finish(
        self, results: pd.DataFrame, summary: Mapping[str, Any], examples: str, provenance: Mapping[str, Any]
    ) -> None:
        """Write `results.csv`, `summary.json` and `examples.md`.

        Seconds spent are added up over resumed runs.
        """
        clock, seconds = self.folder / "stages" / "seconds.json", time.time() - self._begun
        if os.path.exists(clock):
            before = files.read_sealed(clock, SCHEMA, REPAIR)
            with files.reading(clock, REPAIR):
                if before["study"] != self._key:
                    raise MismatchError("these are the seconds of another study")
                seconds += before["seconds"]
        seconds = round(seconds, 1)
        files.write_json(clock, files.seal({"schema": SCHEMA, "study": self._key, "seconds": seconds}))
        files.write_atomically(self.folder / "results.csv", lambda partial: results.to_csv(partial, index=False))
        origin = {"study": self.identity, "provenance": {**provenance, "seconds": seconds}}
        files.write_json(self.folder / "summary.json", {**summary, **origin})
        files.write_text(self.folder / "examples.md", examples)

    def _path(self, name: str) -> Path:
        return self.folder / "stages" / f"{name}.csv"

    def _first_line(self, name: str, content: bytes) -> bytes:
        """A comment with the checksum of a stage."""
        total = hashlib.sha256(f"{self._key} {name} ".encode() + content)
        return f"# checksum of this stage of this study: {total.hexdigest()}\n".encode()


def _text_columns(table: str) -> list[str]:
    """The columns with a quoted value other than a missing one: they stay text where it looks like a number ("007")."""
    names = next(csv.reader(io.StringIO(table, newline="")), [])
    quoted = [field[1].startswith('"') and field[1] != f'"{_MISSING}"' for field in _FIELD.finditer(table)]
    return [name for i, name in enumerate(names) if any(quoted[len(names) + i :: len(names)])]
