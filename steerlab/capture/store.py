"""Activations on disk: one safetensors shard per batch, each whole or absent, so that a killed run resumes."""

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
from torch import Tensor

from steerlab._support.errors import ActivationError, LoadError, MismatchError
from steerlab._support.files import fingerprint, write_atomically, write_json
from steerlab.capture.activations import Activations
from steerlab.models.sites import Site

SCHEMA = 1


@dataclass(frozen=True)
class Store:
    """A folder of captured activations.

    Example:
        >>> store = Store.open("acts/")
        >>> store.load(layers=[16, 17]).values.shape

    Attributes:
        folder: where the shards are.
        sites: what was captured, in order.
        n_shards: how many shards a finished capture has.
        info: provenance.
    """

    folder: Path
    sites: tuple[Site, ...]
    n_shards: int
    info: dict[str, Any]

    @classmethod
    def create(
        cls, folder: Path, info: dict[str, Any], identity: dict[str, Any], sites: Sequence[Site], n_shards: int
    ) -> Store:
        """Open a folder for writing: new, or one that holds the beginning of this very capture."""
        path = folder / "manifest.json"
        key = fingerprint(identity)
        if path.exists():
            known = _manifest(folder)
            if known["identity"] != key:
                differ = [k for k in identity if known["of"].get(k) != json.loads(json.dumps(identity[k], default=str))]
                told = "; ".join(f"{k}: {known['of'].get(k)!r} there, {identity[k]!r} here" for k in differ[:3])
                raise MismatchError(
                    f"{folder} holds another capture ({told}). Use an empty folder, or delete this one."
                )
        else:
            places = [[s.layer, s.point] + [s.part] * (s.part != "text") for s in sites]
            manifest = {"schema": SCHEMA, "identity": key, "of": identity, "sites": places, "shards": n_shards}
            write_json(path, manifest | {"info": info})
        return cls.open(folder)

    @classmethod
    def open(cls, folder: str | Path) -> Store:
        """Open a folder written by `capture_to`.

        Raises:
            LoadError: no capture there, or one of a newer schema.
        """
        known = _manifest(Path(folder))
        sites = tuple(Site(*place) for place in known["sites"])
        return cls(Path(folder), sites, known["shards"], known["info"])

    def has(self, number: int) -> bool:
        """Whether this shard is already there."""
        return self._shard(number).exists()

    def put(self, number: int, values: Tensor, index: pd.DataFrame) -> None:
        """Write one shard, atomically."""
        metadata = {"index": index.to_json(orient="split")}
        contents = {"values": values.contiguous()}
        write_atomically(self._shard(number), lambda path: save_file(contents, path, metadata))

    def load(self, layers: Sequence[int | Site] | None = None) -> Activations:
        """The activations of some layers (all by default), rows in the order of the data.

        Raises:
            ActivationError: a layer was not captured, or the capture is unfinished.
        """
        missing = [n for n in range(self.n_shards) if not self.has(n)]
        if missing:
            raise ActivationError(
                f"the capture in {self.folder} is unfinished: {len(missing)} of {self.n_shards} shards are missing. "
                "Call capture_to with the same arguments to finish it."
            )
        wanted = self.sites if layers is None else tuple(Site(x) if isinstance(x, int) else x for x in layers)
        absent = [str(site) for site in wanted if site not in self.sites]
        if absent:
            raise ActivationError(f"sites {absent} were not captured; {self.folder} has {list(map(str, self.sites))}")
        columns = [self.sites.index(site) for site in wanted]
        parts, frames = zip(*(self._read(n, columns) for n in range(self.n_shards)), strict=True)
        index = pd.concat(frames, ignore_index=True)
        order = index.sort_values("order", kind="stable").index
        values = torch.cat(parts)[order.tolist()]
        return Activations(values, index.loc[order].drop(columns="order").reset_index(drop=True), wanted, self.info)

    def _read(self, number: int, columns: list[int]) -> tuple[Tensor, pd.DataFrame]:
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
        raise LoadError(f"no capture in {folder}: there is no manifest.json. Write one with steerlab.capture_to.")
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if known["schema"] != SCHEMA:
        raise LoadError(f"{folder} was written in schema {known['schema']}; this steerlab reads schema {SCHEMA}")
    return known
