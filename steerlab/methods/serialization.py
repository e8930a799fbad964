"""Fitted steerers on disk: tensors in safetensors, all else in a JSON manifest; no pickle."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors.torch import load as read_tensors
from safetensors.torch import save as tensor_bytes
from torch import Tensor

from steerlab._support.errors import ActivationError, LoadError, MismatchError
from steerlab._support.files import write_atomically, write_json
from steerlab.methods._codec import pack, unpack
from steerlab.methods.base import Detector, Steerer, steering_sites
from steerlab.models.sites import Site

SCHEMA = 1
TENSORS, MANIFEST = "steerer.safetensors", "manifest.json"
PACKAGES = ("steerlab", "torch", "safetensors", "transformers")


def save(steerer: Steerer | Detector, folder: str | Path) -> Path:
    """Write a fitted steerer or detector to a folder, as `steerer.safetensors` and `manifest.json`.

    Example:
        >>> save(L2S(layer=15).fit(acts), "runs/l2s")

    Returns:
        The folder. The manifest is written last: a folder with one is whole.

    Raises:
        ActivationError: the steerer is not fitted.
        DataError: an argument or a learned value has no place in such files.

    Source: own.
    """
    folder, tensors = Path(folder), dict[str, Tensor]()
    described = pack(steerer, tensors, "steerer")
    if not tensors and (isinstance(steerer, Detector) or steering_sites(steerer)):
        raise ActivationError(f"this {type(steerer).__name__} is not fitted: call fit(acts) before save")
    info = getattr(steerer, "info_", {})
    payload = tensor_bytes(tensors)

    def write(partial: Path) -> None:
        partial.write_bytes(payload)

    write_atomically(folder / TENSORS, write)
    manifest = {
        "schema": SCHEMA,
        "steerer": described,
        "hidden_size": None if _in_tower(steerer) else info.get("hidden_size"),  # a width of the text
        "layers": _layers(steerer),
        "sha256": hashlib.sha256(payload).hexdigest(),
        "versions": {name: version(name) for name in PACKAGES},
    }
    write_json(folder / MANIFEST, manifest)
    return folder


def load_steerer(folder: str | Path, model: Any = None, *, force: bool = False) -> Steerer:
    """Read a steerer that `save` wrote, and refuse one that was damaged or belongs to another model.

    Example:
        >>> l2s = load_steerer("runs/l2s", model)

    Args:
        folder: what was given to `save`.
        model: anything with `id`, `hidden_size` and `n_layers`, and perhaps `info()["template"]`; None skips
            the comparison.
        force: accept another id or chat template (a fine-tune, say); widths and layers must still fit.

    Raises:
        LoadError: the folder holds no artifact.
        MismatchError: unknown schema or class, wrong checksum, or another model; both sides are named.

    Source: own.
    """
    steerer = _load(folder, model, force)
    if not isinstance(steerer, Steerer):
        raise MismatchError(f"the folder holds a {type(steerer).__name__}, expected a Steerer: use load_detector")
    return steerer


def load_detector(folder: str | Path, model: Any = None, *, force: bool = False) -> Detector:
    """Read a detector that `save` wrote; see `load_steerer`.

    Example:
        >>> probe = load_detector("runs/probe", model)

    Raises:
        As `load_steerer`.

    Source: own.
    """
    detector = _load(folder, model, force)
    if not isinstance(detector, Detector):
        raise MismatchError(f"the folder holds a {type(detector).__name__}, expected a Detector: use load_steerer")
    return detector


def _load(folder: str | Path, model: Any, force: bool) -> Any:
    folder = Path(folder)
    for name in (MANIFEST, TENSORS):
        if not (folder / name).is_file():
            raise LoadError(f"{str(folder)!r} holds no {name}; give a folder that save() wrote")
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    if manifest.get("schema") != SCHEMA:
        raise MismatchError(
            f"{MANIFEST} has schema {manifest.get('schema')!r}, this steerlab reads {SCHEMA}; "
            "load it with the version that wrote it"
        )
    payload = (folder / TENSORS).read_bytes()
    found = hashlib.sha256(payload).hexdigest()
    if found != manifest["sha256"]:
        raise MismatchError(
            f"{TENSORS} has checksum {found[:12]}, its manifest says {manifest['sha256'][:12]}; "
            "the file was changed or is incomplete: copy or save it again"
        )
    if model is not None:
        _check_model(manifest, model, force)
    return unpack(manifest["steerer"], read_tensors(payload))


def _check_model(manifest: dict[str, Any], model: Any, force: bool) -> None:
    info, name = manifest["steerer"]["info"], manifest["steerer"]["class"]
    wanted = {"hidden_size": manifest["hidden_size"], "n_layers": info.get("layers")}
    found = {"hidden_size": model.hidden_size, "n_layers": model.n_layers}
    if not force:
        wanted |= {"id": info.get("model"), "template": info.get("template")}
        found |= {"id": model.id, "template": model.info()["template"] if hasattr(model, "info") else None}
    for attribute, ours in wanted.items():
        theirs = found[attribute]
        if ours is not None and theirs is not None and ours != theirs:
            hint = " Pass force=True to use it all the same." if attribute in ("id", "template") else ""
            raise MismatchError(
                f"this {name} was learned on a model with {attribute} {ours!r}; the model given has "
                f"{theirs!r}. Load the model it was learned on, or fit again.{hint}"
            )
    outside = [layer for layer in manifest["layers"] if not -model.n_layers <= layer < model.n_layers]
    if outside:
        raise MismatchError(
            f"this {name} uses layers {outside}; the model given has {model.n_layers} layers, "
            f"0 to {model.n_layers - 1}. Load the model it was learned on."
        )


def _in_tower(steerer: Steerer | Detector) -> bool:
    site = getattr(steerer, "site", None)
    return isinstance(site, Site) and site.part == "vision"


def _layers(learned: Steerer | Detector) -> list[int]:
    sites = [
        *(steering_sites(learned) if isinstance(learned, Steerer) else ()),
        *(r.site for r in learned.required_activations),
    ]
    return sorted({site.layer for site in sites if site.part == "text"})
