"""Save and load fitted methods: tensors in safetensors, everything else in a JSON manifest, no pickle.

A class decorated with `@savable` is stored as its name, its constructor arguments and, if it is fitted, its
`state_dict()`. Arguments and state may hold tensors, plain values, lists, dicts, and other savable objects.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load as read_tensors
from safetensors.torch import save as tensor_bytes
from torch import Tensor, nn

from steerlab._support.errors import ActivationError, DataError, LoadError, MismatchError
from steerlab._support.files import write_atomically, write_json
from steerlab.methods.base import Detector, FittedMixin, Steerer, steering_sites
from steerlab.models.sites import Site

SCHEMA = 1
TENSORS, MANIFEST = "steerer.safetensors", "manifest.json"
PACKAGES = ("steerlab", "torch", "safetensors", "transformers")

#: fields and classes of the drafts of steerlab 0.1.0, and what they are called now
RENAMED = {
    "artefact": "artifact", "behaviour": "behavior", "behaviours": "behaviors", "centre": "center",
    "centre_": "center_", "equalise_norms": "equalize_norms", "groups": "group_column", "hidden": "hidden_units",
    "least_steps": "min_steps", "normalise": "normalize", "per_input": "per_example", "preset": "config",
    "recipe": "config", "standardise": "standardize", "zero": "zero_behaviors", "Recipe": "TrainingConfig",
}  # fmt: skip

_classes: dict[str, type] = {}
Class = TypeVar("Class", bound=type)


def savable(cls: Class) -> Class:
    """Class decorator: register a steerer, detector, frozen dataclass or module for `save` and `load_steerer`.

    Example:
        >>> @savable
        ... class MyMethod(Steerer): ...
    """
    _classes[cls.__name__] = cls
    return cls


savable(Site)


def save(method: Steerer | Detector, folder: str | Path) -> Path:
    """Write a fitted steerer or detector to a folder, as `steerer.safetensors` and `manifest.json`.

    Example:
        >>> save(L2S(layer=15).fit(acts), "runs/l2s")

    Returns:
        The folder. The manifest is written last, so a folder with a manifest is complete.

    Raises:
        ActivationError: the method is not fitted.
        DataError: an argument or a fitted value that cannot be stored.
    """
    folder, tensors = Path(folder), dict[str, Tensor]()
    manifest: dict[str, Any] = {"schema": SCHEMA, "steerer": serialize(method, tensors, "steerer")}
    if not tensors and (isinstance(method, Detector) or steering_sites(method)):
        raise ActivationError(f"this {type(method).__name__} is not fitted: call fit(acts) before save")
    content = tensor_bytes(tensors)
    site = getattr(method, "site", None)
    in_vision_tower = isinstance(site, Site) and site.part == "vision"  # the hidden size is that of the text model
    sites = [*(steering_sites(method) if isinstance(method, Steerer) else ()),
             *(required.site for required in method.required_activations)]  # fmt: skip
    manifest |= {
        "hidden_size": None if in_vision_tower else getattr(method, "info_", {}).get("hidden_size"),
        "layers": sorted({site.layer for site in sites if site.part == "text"}),
        "sha256": hashlib.sha256(content).hexdigest(),
        "versions": {name: version(name) for name in PACKAGES},
    }

    def write(partial: Path) -> None:
        partial.write_bytes(content)

    write_atomically(folder / TENSORS, write)
    write_json(folder / MANIFEST, manifest)
    return folder


def load_steerer(folder: str | Path, model: Any = None, *, force: bool = False) -> Steerer:
    """Read a steerer that `save` wrote; a damaged file or another model is refused.

    Example:
        >>> l2s = load_steerer("runs/l2s", model)

    Args:
        folder: the folder given to `save`.
        model: the model to compare with: anything with `id`, `hidden_size` and `n_layers`, and optionally
            `info()["template"]`; None skips the comparison.
        force: accept another id or chat template (a fine-tuned model, say); widths and layers must still agree.

    Raises:
        LoadError: the folder holds no artifact.
        MismatchError: unknown schema, class or field, wrong checksum, or another model.
    """
    steerer = _load(folder, model, force)
    if not isinstance(steerer, Steerer):
        raise MismatchError(f"the folder holds a {type(steerer).__name__}, expected a Steerer: use load_detector")
    return steerer


def load_detector(folder: str | Path, model: Any = None, *, force: bool = False) -> Detector:
    """Read a detector that `save` wrote; arguments and errors are those of `load_steerer`.

    Example:
        >>> probe = load_detector("runs/probe", model)
    """
    detector = _load(folder, model, force)
    if not isinstance(detector, Detector):
        raise MismatchError(f"the folder holds a {type(detector).__name__}, expected a Detector: use load_steerer")
    return detector


def serialize(value: Any, tensors: dict[str, Tensor], key: str) -> Any:
    """JSON for `value`; its tensors are put into `tensors` under names that begin with `key`.

    Raises:
        DataError: a value of another type.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):
        tensors[key] = value.detach().cpu().contiguous().clone()
        return {"tensor": key}
    if isinstance(value, (list, tuple)):
        return [serialize(item, tensors, f"{key}.{i}") for i, item in enumerate(value)]
    if isinstance(value, dict) and all(isinstance(k, str) for k in value):
        return {"dict": {k: serialize(v, tensors, f"{key}.{k}") for k, v in value.items()}}
    cls = type(value)
    if _classes.get(cls.__name__) is not cls:
        raise DataError(f"cannot save {key}, a {cls.__name__}: use tensors, plain values, or a class under @savable")
    arguments = {n: serialize(getattr(value, n), tensors, f"{key}.{n}") for n in inspect.signature(cls).parameters}
    data = {"class": cls.__name__, "arguments": arguments}
    if isinstance(value, FittedMixin | nn.Module):
        data["state"] = {k: serialize(v, tensors, f"{key}.{k}") for k, v in value.state_dict().items()}
        data["info"] = getattr(value, "info_", {})
    return data


def deserialize(data: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of `serialize`; lists come back as tuples.

    Raises:
        MismatchError: an unknown class or field.
    """
    if isinstance(data, list):
        return tuple(deserialize(item, tensors) for item in data)
    if not isinstance(data, dict):
        return data
    if "tensor" in data:
        return tensors[data["tensor"]]
    if "dict" in data:
        return {k: deserialize(v, tensors) for k, v in data["dict"].items()}
    name, state = data["class"], data.get("state", {})
    if name not in _classes:
        _check_renamed([name])
        raise MismatchError(
            f"the artifact holds a {name!r}, known are {', '.join(sorted(_classes))}; import its module first"
        )
    cls = _classes[name]
    if cls.__module__.startswith("steerlab."):
        _check_renamed([*data["arguments"], *state])
    value = cls(**{k: deserialize(v, tensors) for k, v in data["arguments"].items()})
    if isinstance(value, FittedMixin | nn.Module):
        value.load_state_dict({k: deserialize(v, tensors) for k, v in state.items()})
    if isinstance(value, FittedMixin):
        value.info_ = data["info"]
    return value


def _check_renamed(fields: Iterable[str]) -> None:
    for field in fields:
        if field in RENAMED:
            raise MismatchError(
                f"the artifact has the field {field!r} of a draft of steerlab 0.1.0, which is now called "
                f"{RENAMED[field]!r}: fit the method again and save it"
            )


def _load(folder: str | Path, model: Any, force: bool) -> Any:
    folder = Path(folder)
    for name in (MANIFEST, TENSORS):
        if not (folder / name).is_file():
            raise LoadError(f"{str(folder)!r} holds no {name}; give a folder that save() wrote")
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    _check_renamed(manifest)
    if manifest.get("schema") != SCHEMA:
        raise MismatchError(f"{MANIFEST} has schema {manifest.get('schema')!r}, this steerlab reads {SCHEMA}")
    content = (folder / TENSORS).read_bytes()
    checksum = hashlib.sha256(content).hexdigest()
    if checksum != manifest["sha256"]:
        raise MismatchError(
            f"{TENSORS} has checksum {checksum[:12]}, its manifest {manifest['sha256'][:12]}: copy or save it again"
        )
    if model is not None:
        _check_model(manifest, model, force)
    with torch.random.fork_rng(devices=[]):  # constructors of modules draw weights, which are then replaced
        return deserialize(manifest["steerer"], read_tensors(content))


def _check_model(manifest: dict[str, Any], model: Any, force: bool) -> None:
    info, name = manifest["steerer"]["info"], manifest["steerer"]["class"]
    expected = {"hidden_size": manifest["hidden_size"], "n_layers": info.get("layers")}
    found = {"hidden_size": model.hidden_size, "n_layers": model.n_layers}
    if not force:
        expected |= {"id": info.get("model"), "template": info.get("template")}
        found |= {"id": model.id, "template": model.info()["template"] if hasattr(model, "info") else None}
    for attribute, value in expected.items():
        if None not in (value, found[attribute]) and value != found[attribute]:
            hint = " Pass force=True to use it all the same." if attribute in ("id", "template") else ""
            raise MismatchError(
                f"this {name} was fitted on a model with {attribute} {value!r}; the model given has "
                f"{found[attribute]!r}.{hint}"
            )
    outside = [layer for layer in manifest["layers"] if not -model.n_layers <= layer < model.n_layers]
    if outside:
        raise MismatchError(f"this {name} uses layers {outside}; the model given has {model.n_layers} layers")
