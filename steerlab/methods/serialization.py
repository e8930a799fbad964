"""Save and load fitted methods: tensors in safetensors, everything else in a JSON manifest, no pickle.

A class decorated with `@savable` is stored as its name, its constructor arguments and, if it is fitted, its
`state_dict()`. Arguments and state may hold tensors, plain values, lists, dicts, and other savable objects.
The manifest has a checksum over its own fields and names the file of the tensors, which has their checksum in its name.
So an artifact that is saved over another one is the old or the new one at any time.
"""

from __future__ import annotations

import hashlib
import inspect
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load as read_tensors
from safetensors.torch import save as tensor_bytes
from torch import Tensor, nn

from steerlab._support import files
from steerlab._support.hub import find_folder
from steerlab.errors import ActivationError, DataError, MismatchError
from steerlab.methods.base import Detector, FittedMixin, Steerer, parts_of, steering_sites
from steerlab.models.fingerprint import accept_model, describe_origin, is_accepted, same_model
from steerlab.models.sites import Site

SCHEMA = 2
MANIFEST = "manifest.json"
PACKAGES = ("steerlab", "torch", "safetensors", "transformers")

_classes: dict[str, type] = {}
Class = TypeVar("Class", bound=type)
Method = TypeVar("Method", bound=FittedMixin)


def savable(cls: Class) -> Class:
    """Class decorator: register a steerer, detector, frozen dataclass or module, so that it can be saved and loaded.

    Example:
        >>> @savable
        ... class MyMethod(Steerer): ...
    """
    _classes[cls.__name__] = cls
    return cls


savable(Site)


def save(method: FittedMixin, folder: str | Path) -> Path:
    """Write a fitted steerer or detector to a folder, as `manifest.json` and a safetensors file; users call
    `save_pretrained`, which adds a model card.

    Example:
        >>> L2S(layer=15).fit(acts).save_pretrained("runs/l2s")

    Returns:
        The folder. The manifest is written last, so a folder with a manifest is complete.

    Raises:
        ActivationError: the method is not fitted.
        DataError: an argument or a fitted value that cannot be stored.
        StorageError: the disk is full, or the folder cannot be written to; what it held before is kept.
    """
    folder, tensors = Path(folder), dict[str, Tensor]()
    manifest: dict[str, Any] = {"schema": SCHEMA, "steerer": serialize(method, tensors, "steerer")}
    if not tensors and method.is_fittable:
        raise ActivationError(f"this {type(method).__name__} is not fitted: call fit(acts) before save")
    content = tensor_bytes(tensors)
    steered = steering_sites(method)
    own_width = any(site.part == "vision" or site.point == "heads" for site in steered)  # not the model's
    sites = [*(steered if isinstance(method, Steerer) else ()),
             *(required.site for required in method.required_activations)]  # fmt: skip
    manifest |= {
        "hidden_size": None if own_width else getattr(method, "info_", {}).get("hidden_size"),
        "layers": sorted({site.layer for site in sites if site.part == "text"}),
        "tensors": _tensors_name(content),
        "versions": {name: version(name) for name in PACKAGES},
    }
    path, kept = folder / manifest["tensors"], "what the folder held before is kept"
    with files.storing(folder, kept):
        folder.mkdir(parents=True, exist_ok=True)
        replaced = set(folder.glob("steerer-*.safetensors")) - {path}
        files.write_atomically(path, lambda partial: partial.write_bytes(content), kept)
        files.write_json(folder / MANIFEST, files.seal(manifest), kept)
        for old in replaced:
            old.unlink(missing_ok=True)
    return folder


def load_steerer(place: str | Path, model: Any = None, *, force: bool = False, **hub: Any) -> Steerer:
    """Read a steerer of any class from a folder or the hub; a damaged file or another model is refused.

    Example:
        >>> l2s = load_steerer("runs/l2s", model)
        >>> l2s = load_steerer("user/repo", model)

    Args:
        place: a folder that `save_pretrained` wrote, or a repository of the hub.
        model: the model to compare with: anything with `id`, `hidden_size` and `n_layers`, and optionally `info()`
            with "weights" and "template"; None skips the comparison. The weights' fingerprint decides where both have
            one, whatever the names are.
        force: accept other weights or another chat template (of a fine-tuned model, say); widths and layers must still
            agree. The steerer remembers it for this model, also when it is saved again.
        hub: `revision`, `token`, `cache_dir`, `local_files_only` of the hub's download.

    Raises:
        LoadError: there is no such folder or repository, or it holds no artifact, or one of another schema, or with
            fields of no use.
        MismatchError: an unknown class, a wrong checksum, or another model.
        StorageError: a file cannot be read.
    """
    return load(find_folder(place, **hub), model, force, Steerer)  # type: ignore[type-abstract]


def steerer_classes() -> dict[str, type[Steerer]]:
    """The steerers that users can make from plain values, by the name of their class.

    Example:
        >>> sorted(steerer_classes())[:3]
        ['AdaSteer', 'AlphaSteer', 'CONFST']
    """
    found = {name: cls for name, cls in _classes.items() if issubclass(cls, Steerer) and not inspect.isabstract(cls)}
    return {
        name: cls
        for name, cls in found.items()
        if cls.is_fittable and {"layer", "layers"} & set(inspect.signature(cls).parameters)
    }


def load_detector(place: str | Path, model: Any = None, *, force: bool = False, **hub: Any) -> Detector:
    """Read a detector of any class; arguments and errors are those of `load_steerer`.

    Example:
        >>> probe = load_detector("runs/probe", model)
    """
    return load(find_folder(place, **hub), model, force, Detector)  # type: ignore[type-abstract]


def serialize(value: Any, tensors: dict[str, Tensor], key: str) -> Any:
    """JSON for `value`; its tensors are put into `tensors` under names that begin with `key`.

    Raises:
        DataError: a value of another type.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):
        key = f"{key}#{len(tensors)}" if key in tensors else key  # names that hold dots may give one key
        tensors[key] = value.detach().cpu().contiguous().clone()
        return {"tensor": key}
    if isinstance(value, (list, tuple)):
        return [serialize(item, tensors, f"{key}.{i}") for i, item in enumerate(value)]
    if isinstance(value, dict) and all(isinstance(k, str) for k in value):
        return {"dict": {k: serialize(v, tensors, f"{key}.{k}") for k, v in value.items()}}
    if isinstance(value, dict):
        return {"items": [serialize(pair, tensors, f"{key}.{pair[0]}") for pair in value.items()]}
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
    if "items" in data:
        return dict(deserialize(pair, tensors) for pair in data["items"])
    name, state = data["class"], data.get("state", {})
    if name not in _classes:
        raise MismatchError(
            f"the artifact holds a {name!r}, known are {', '.join(sorted(_classes))}; import its module first"
        )
    cls = _classes[name]
    if unknown := sorted(set(data["arguments"]) - set(inspect.signature(cls).parameters)):
        raise MismatchError(f"the artifact gives {name} the argument {unknown[0]!r}, which it does not have")
    value = cls(**{k: deserialize(v, tensors) for k, v in data["arguments"].items()})
    if isinstance(value, FittedMixin | nn.Module):
        value.load_state_dict({k: deserialize(v, tensors) for k, v in state.items()})
    if isinstance(value, FittedMixin):
        value.info_ = data["info"]
    return value


def load(folder: str | Path, model: Any, force: bool, expected: type[Method]) -> Method:
    """Read a method of a class, or of a subclass of it; see `load_steerer`."""
    path = Path(folder) / MANIFEST
    fix = "Give a folder that save_pretrained wrote; if this is one, copy it again, or fit the method again and save it"
    manifest = files.read_sealed(path, SCHEMA, fix)
    with files.reading(path, fix):
        tensors = path.with_name(manifest["tensors"])
    with files.reading(tensors, fix):
        content = tensors.read_bytes()
        if tensors.name != _tensors_name(content):
            raise MismatchError("the tensors do not have the checksum that is in the file's name")
    with files.reading(path, fix), torch.random.fork_rng(devices=[]):  # constructors of modules draw weights
        method = deserialize(manifest["steerer"], read_tensors(content))
    if not isinstance(method, FittedMixin):
        raise MismatchError(f"the field 'steerer' of {path} holds a {type(method).__name__}, not a method. {fix}")
    if not isinstance(method, expected):
        raise MismatchError(
            f"{folder} holds a {type(method).__name__}, expected a {expected.__name__}: read it with "
            f"{type(method).__name__}.from_pretrained"
        )
    if model is not None:
        with files.reading(path, "Load it with the model that it was fitted on"):
            _check_model(method, manifest, model, force)
    return method


def _tensors_name(content: bytes) -> str:
    return f"steerer-{hashlib.sha256(content).hexdigest()[:16]}.safetensors"


def _check_model(method: Any, manifest: dict[str, Any], model: Any, force: bool) -> None:
    """Refuse another model; that it was accepted once is remembered in the method's `info_`."""
    name, info = type(method).__name__, method.info_
    here = {"template": None} | (model.info() if hasattr(model, "info") else {}) | {"model": model.id}
    compared = [
        ("hidden_size", manifest["hidden_size"], model.hidden_size),
        ("n_layers", info.get("layers"), model.n_layers),
        ("template", info.get("template"), here["template"]),
    ]
    if not same_model(info, here):
        compared.append(("id", describe_origin(info), describe_origin(here)))
    for field, theirs, ours in compared:
        if None in (theirs, ours) or theirs == ours:
            continue
        may_differ = field in ("id", "template")
        if not may_differ or not (force or is_accepted(info, here)):
            hint = " Pass force=True to use it all the same; `save_pretrained` then stores that." if may_differ else ""
            raise MismatchError(
                f"this {name} was fitted on a model with {field} {theirs}; the model given has {ours}.{hint}"
            )
        for one in [method, *(part for part in parts_of(method) if hasattr(part, "info_"))]:
            accept_model(one.info_, here)
    if outside := [layer for layer in manifest["layers"] if not -model.n_layers <= layer < model.n_layers]:
        raise MismatchError(f"this {name} uses layers {outside}; the model given has {model.n_layers} layers")
