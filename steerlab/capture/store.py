"""Activations on disk: one safetensors shard per batch, written atomically, so that a killed capture resumes."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from steerlab._support.errors import ActivationError, LoadError, MismatchError
from steerlab._support.files import write_atomically, write_json
from steerlab.capture.activations import Activations, CapturedBatch
from steerlab.models.sites import Site

SCHEMA = 1


@dataclass(frozen=True)
class Store:
    """A folder of captured activations.

    Example:
        >>> store = Store.open("acts/")
        >>> store.load(layers=[16, 17]).values.shape

    Attributes:
        folder: the folder of the shards and manifest.json.
        sites: the captured sites, in order.
        n_shards: number of shards of a finished capture.
        info: provenance.
    """

    folder: Path
    sites: tuple[Site, ...]
    n_shards: int
    info: dict[str, Any]

    @classmethod
    def create(
        cls, folder: Path, info: dict[str, Any], settings: dict[str, Any], sites: Sequence[Site], n_shards: int
    ) -> Store:
        """Open a new folder, or one with a part of the same capture, for writing.

        Raises:
            MismatchError: the folder holds another capture.
        """
        identity = {k: v for k, v in info.items() if k not in ("versions", "backend")} | settings
        identity = json.loads(json.dumps(identity, default=str))
        if (folder / "manifest.json").exists():
            there = _manifest(folder)["of"]
            differ = [f"{k}: {there.get(k)!r} there, {v!r} here" for k, v in identity.items() if there.get(k) != v]
            if differ:
                raise MismatchError(
                    f"{folder} holds another capture ({'; '.join(differ[:3])}). Use another folder, or delete this one."
                )
        else:
            places = [[s.layer, s.point] + [s.part] * (s.part != "text") for s in sites]
            manifest = {"schema": SCHEMA, "of": identity, "sites": places, "shards": n_shards, "info": info}
            write_json(folder / "manifest.json", manifest)
        return cls.open(folder)

    @classmethod
    def open(cls, folder: str | Path) -> Store:
        """Open a folder written by `capture(folder=...)`.

        Raises:
            LoadError: the folder holds no capture, or one of another schema.
        """
        known = _manifest(Path(folder))
        sites = tuple(Site(*place) for place in known["sites"])
        return cls(Path(folder), sites, known["shards"], known["info"])

    def has_shard(self, number: int) -> bool:
        """Whether this shard is written."""
        return self._shard(number).exists()

    def write_shard(self, number: int, parts: Sequence[CapturedBatch]) -> None:
        """Write the parts of one batch as a shard, atomically."""
        values, frames = zip(*parts, strict=True)
        metadata = {"index": pd.concat(frames, ignore_index=True).to_json(orient="split")}
        contents = {"values": torch.cat(values)}
        write_atomically(self._shard(number), lambda path: save_file(contents, path, metadata))

    def load(self, layers: Sequence[int | Site] | None = None) -> Activations:
        """The activations at some layers (all by default), rows in the order of the data.

        Raises:
            ActivationError: a layer was not captured, or the capture is unfinished.
        """
        missing = [n for n in range(self.n_shards) if not self.has_shard(n)]
        if missing:
            raise ActivationError(
                f"the capture in {self.folder} is unfinished: {len(missing)} of {self.n_shards} shards are missing. "
                "Call capture with the same arguments to finish it."
            )
        wanted = self.sites if layers is None else tuple(Site(x) if isinstance(x, int) else x for x in layers)
        absent = [str(site) for site in wanted if site not in self.sites]
        if absent:
            raise ActivationError(f"sites {absent} were not captured; {self.folder} has {list(map(str, self.sites))}")
        columns = [self.sites.index(site) for site in wanted]
        return Activations.join([self._read(n, columns) for n in range(self.n_shards)], wanted, self.info)

    def _read(self, number: int, columns: list[int]) -> CapturedBatch:
        with safe_open(self._shard(number), "pt") as shard:
            whole = shard.get_slice("values")
            values = torch.stack([whole[:, c] for c in columns], 1)
            index = pd.read_json(io.StringIO(shard.metadata()["index"]), orient="split", dtype=False)
        return values, index

    def _shard(self, number: int) -> Path:
        return self.folder / f"shard-{number:05d}.safetensors"


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    if not path.exists():
        raise LoadError(
            f"no capture in {folder}: there is no manifest.json. Write one with steerlab.capture(..., folder=...)."
        )
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if known["schema"] != SCHEMA:
        raise LoadError(f"{folder} was written in schema {known['schema']}; this steerlab reads schema {SCHEMA}")
    return known
