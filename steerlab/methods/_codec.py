"""Fitted objects as JSON plus named tensors, and back."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any, TypeVar

from torch import Tensor

from steerlab._support.errors import DataError, MismatchError
from steerlab.methods.base import FittedMixin
from steerlab.models.sites import Site

_classes: dict[str, type] = {}
Class = TypeVar("Class", bound=type)


def savable(cls: Class) -> Class:
    """Class decorator: `save` and `load_steerer` know this steerer, detector or frozen dataclass by its name.

    Example:
        >>> @savable
        ... class MyMethod(Steerer): ...
    """
    _classes[cls.__name__] = cls
    return cls


savable(Site)


def pack(value: Any, tensors: dict[str, Tensor], key: str) -> Any:
    """JSON for `value`; its tensors go to `tensors`, named by where they were found."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):
        tensors[key] = value.detach().cpu().contiguous().clone()
        return {"tensor": key}
    if isinstance(value, (list, tuple)):
        return [pack(item, tensors, f"{key}.{i}") for i, item in enumerate(value)]
    if isinstance(value, dict) and all(isinstance(k, str) for k in value):
        return {"dict": {k: pack(v, tensors, f"{key}.{k}") for k, v in value.items()}}
    name = type(value).__name__
    if _classes.get(name) is not type(value):
        raise DataError(f"cannot save {key}, a {name}: use tensors, plain values, or a class under @savable")
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
    else:
        names = list(inspect.signature(type(value)).parameters)
    arguments = {n: pack(getattr(value, n), tensors, f"{key}.{n}") for n in names}
    if not isinstance(value, FittedMixin):
        return {"class": name, "arguments": arguments}
    state = {k: pack(v, tensors, f"{key}.{k}") for k, v in value.state_dict().items()}
    return {"class": name, "arguments": arguments, "state": state, "info": getattr(value, "info_", {})}


def unpack(packed: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of `pack`."""
    if isinstance(packed, list):
        return tuple(unpack(item, tensors) for item in packed)
    if not isinstance(packed, dict):
        return packed
    if "tensor" in packed:
        return tensors[packed["tensor"]]
    if "dict" in packed:
        return {k: unpack(v, tensors) for k, v in packed["dict"].items()}
    name = packed["class"]
    if name not in _classes:
        raise MismatchError(
            f"the artifact holds a {name!r}, known are {', '.join(sorted(_classes))}; import its module first"
        )
    made = _classes[name](**{k: unpack(v, tensors) for k, v in packed["arguments"].items()})
    if isinstance(made, FittedMixin):
        made.info_ = packed["info"]
        made.load_state_dict({k: unpack(v, tensors) for k, v in packed["state"].items()})
    return made
