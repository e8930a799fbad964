"""Activations on disk: one safetensors shard per batch, written atomically, so that a killed capture resumes.

A shard says which capture and which part of it it is, and has a checksum for every site: damaged, exchanged and
repeated shards are refused by name. The manifest has a checksum over its own fields.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from steerlab._support import files
from steerlab.capturing.activations import Activations, CapturedBatch, as_stored
from steerlab.errors import ActivationError, LoadError, MismatchError
from steerlab.models.fingerprint import describe_origin, differences, same_model
from steerlab.models.sites import Site

SCHEMA = 2
AGAIN = "call capture again with the same arguments: it captures only what is missing"
REPAIR = f"Delete this file and {AGAIN}"


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
        identity: what decides the values; every shard repeats its fingerprint.
    """

    folder: Path
    sites: tuple[Site, ...]
    n_shards: int
    info: dict[str, Any]
    identity: dict[str, Any]

    @classmethod
    def create(
        cls, folder: Path, info: dict[str, Any], settings: dict[str, Any], sites: Sequence[Site], n_shards: int
    ) -> Store:
        """Open a new folder, or one with a part of the same capture, for writing.

        Raises:
            MismatchError: the folder holds another capture, or its manifest was changed.
            StorageError: the folder cannot be written to.
        """
        identity = {k: v for k, v in info.items() if k not in ("versions", "backend")} | settings
        identity = json.loads(json.dumps(identity | {"shards": n_shards}, default=str))
        path = folder / "manifest.json"
        if not os.path.exists(path):  # unlike Path.exists, False where looking is forbidden
            places = [[s.layer, s.point] + [s.part] * (s.part != "text") for s in sites]
            manifest = {"schema": SCHEMA, "of": identity, "sites": places, "info": info}
            with files.storing(path, kept := "nothing was captured yet"):
                folder.mkdir(parents=True, exist_ok=True)
                files.write_json(path, files.seal(manifest), kept)
        store = cls.open(folder)
        there = store.identity
        if differ := [f"{k}: {there.get(k)!r} there, {identity.get(k)!r} here" for k in differences(there, identity)]:
            raise MismatchError(
                f"{folder} holds another capture ({'; '.join(differ[:3])}). Use another folder, or delete this one."
            )
        return store

    @classmethod
    def open(cls, folder: str | Path) -> Store:
        """Open a folder written by `capture(folder=...)`.

        Raises:
            LoadError: the folder holds no capture, or one of another schema.
            MismatchError: the manifest was changed.
        """
        path = Path(folder) / "manifest.json"
        hint = f"Give a folder that steerlab.capture(..., folder=...) wrote, or delete this file and {AGAIN}"
        known = files.read_sealed(path, SCHEMA, hint)
        with files.reading(path, hint):
            sites, n_shards = tuple(Site(*place) for place in known["sites"]), known["of"]["shards"]
            if not isinstance(n_shards, int) or n_shards < 1 or not sites:
                raise LoadError(f"shards={n_shards!r}, sites={known['sites']!r}: expected at least one of each")
            return cls(Path(folder), sites, n_shards, dict(known["info"]), dict(known["of"]))

    def has_shard(self, number: int) -> bool:
        """Whether this shard is written."""
        return os.path.exists(self._shard(number))

    def write_shard(self, number: int, parts: Sequence[CapturedBatch]) -> None:
        """Write the parts of one batch as a shard, atomically.

        Raises:
            StorageError: the disk is full, or the folder cannot be written to; says what is kept.
        """
        values, frames = zip(*parts, strict=True)
        contents = torch.cat(values)
        mine = {
            "schema": SCHEMA, "capture": files.fingerprint(self.identity), "shard": number,
            "sites": [_checksum(contents[:, c]) for c in range(len(self.sites))],
            # every digit of its numbers: pandas' own writer rounds them
            "index": json.dumps(pd.concat(frames, ignore_index=True).to_dict("split"), default=_plain),
        }  # fmt: skip
        metadata = {"shard": json.dumps(files.seal(mine))}
        kept = f"{len(self._shards())} of {self.n_shards} shards are kept in {self.folder}"
        files.write_atomically(self._shard(number), lambda path: save_file({"values": contents}, path, metadata), kept)

    def load(self, layers: int | Site | Sequence[int | Site] | None = None) -> Activations:
        """The activations at some layers (all by default), rows in the order of the data.

        Raises:
            ActivationError: a layer was not captured, or the capture is unfinished.
            LoadError, MismatchError: a shard is damaged, of another capture, or one too many; names it.
        """
        shards = set(self._shards())
        missing = next((n for n in range(self.n_shards) if not self.has_shard(n)), None)
        if missing is not None:
            raise ActivationError(
                f"the capture in {self.folder} is unfinished: {self.n_shards - len(shards)} of {self.n_shards} shards "
                f"are missing, first {self._shard(missing).name}. Call capture with the same arguments to finish it."
            )
        if extra := sorted(shards - {self._shard(n) for n in range(self.n_shards)}):
            raise MismatchError(f"{extra[0]} is no part of this capture, which has {self.n_shards} shards: delete it")
        layers = [layers] if isinstance(layers, int | Site) else layers
        wanted = self.sites if layers is None else tuple(as_stored(x, self.info) for x in layers)
        if absent := [str(site) for site in wanted if site not in self.sites]:
            raise ActivationError(f"sites {absent} were not captured; {self.folder} has {list(map(str, self.sites))}")
        columns = [self.sites.index(site) for site in wanted]
        return Activations.join([self._read(n, columns) for n in range(self.n_shards)], wanted, self.info)

    def _read(self, number: int, columns: list[int]) -> CapturedBatch:
        path = self._shard(number)
        with files.reading(path, REPAIR), safe_open(path, "pt") as shard:
            mine = files.check_seal(json.loads(shard.metadata()["shard"]), SCHEMA)
            if (mine["capture"], mine["shard"]) != (files.fingerprint(self.identity), number):
                raise MismatchError(f"this is shard {mine['shard']} of the capture {mine['capture']}, put in its place")
            parts = [shard.get_slice("values")[:, c] for c in columns]
            for c, part in zip(columns, parts, strict=True):
                if _checksum(part) != mine["sites"][c]:
                    raise MismatchError(f"the states at site {self.sites[c]} do not have their checksum")
            return torch.stack(parts, 1), pd.DataFrame(**json.loads(mine["index"]))

    def _shard(self, number: int) -> Path:
        return self.folder / f"shard-{number:05d}.safetensors"

    def _shards(self) -> list[Path]:
        return list(self.folder.glob("shard-*.safetensors"))


def _plain(value: Any) -> Any:
    return None if pd.isna(value) else getattr(value, "item", value.__str__)()


def save(acts: Activations, folder: Path) -> None:
    """Write activations as a capture with one shard.

    Raises:
        MismatchError: the folder holds another capture.
        StorageError: the folder cannot be written to.
    """
    content = {"values": _checksum(acts.values), "rows": files.fingerprint(acts.index.to_json(orient="split"))}
    store = Store.create(folder, acts.info, content, acts.sites, 1)
    store.write_shard(0, [(acts.values, acts.index.assign(order=range(len(acts))))])


def load(folder: Path, model: Any, force: bool) -> Activations:
    """Read the activations of a finished capture.

    Raises:
        LoadError, ActivationError: no capture, or an unfinished one.
        MismatchError: they were captured from another model than the one given, unless `force`.
    """
    acts = Store.open(folder).load()
    if model is not None and not force and not same_model(acts.info, model.info()):
        raise MismatchError(
            f"the activations in {folder} are of {describe_origin(acts.info)}; the model given is "
            f"{describe_origin(model.info())}. Pass force=True to read them all the same."
        )
    return acts


def _checksum(states: Tensor) -> str:
    """A hash of the values of one site with their dtype and shape."""
    total = hashlib.sha256(f"{states.dtype} {tuple(states.shape)}".encode())
    total.update(states.contiguous().view(torch.uint8).numpy().data)
    return total.hexdigest()
