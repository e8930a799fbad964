"""A fingerprint of what an object holds and what its code does: equal in any process for equal objects."""

from __future__ import annotations

import hashlib
import re
import sys
from argparse import Namespace
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import date, time, timedelta
from enum import Enum
from functools import cache, cached_property, partial
from importlib.metadata import PackageNotFoundError, version
from logging import Logger
from pathlib import PurePath
from types import BuiltinMethodType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import pandas as pd
import torch

from steerlab._support.files import fingerprint

# of methods, modules and configurations: where they come from, not what they do, and what differs between processes
_LEFT_OUT = {"info_", "history_", "training", "transformers_version", "_original_object_hash"}
_SIMPLE = (str, bytes, bool, int, float, complex, type(None), np.generic, PurePath)
_BASES: tuple[Any, ...] = (str, bytes, int, float)
#: what is read of the values that a function or class names, besides code and objects of the user's own
_FOLLOWED = (
    *_SIMPLE, list, tuple, set, frozenset, dict, re.Pattern, np.ndarray, torch.Tensor, Enum, pd.DataFrame, pd.Series,
    partial, MethodType, BuiltinMethodType, range, Namespace, date, time, timedelta,
)  # fmt: skip


def content_fingerprint(value: Any) -> str:
    """Sixteen hexadecimal digits of a tensor's bytes, a function's byte code and what it names, an object's attributes.

    Classes of the user's own code count by what they and their base classes define, functions and classes of installed
    packages by their names and versions.

    Example:
        >>> one, same, other = (content_fingerprint(f) for f in (lambda x: x + 1, lambda x: x + 1, lambda x: x + 2))
        >>> one == same != other
        True
    """
    return fingerprint(_Reader().read(value))


class _Reader:
    """Reads an object and all that it refers to, each part once."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Any, str]] = {}  # with the value itself: its id is not given away meanwhile

    def read(self, value: Any) -> str:
        """A simple value in words, any other as a fingerprint; "..." for one that is being read."""
        if type(value) in _SIMPLE or isinstance(value, np.generic | PurePath):
            return repr(value)
        if id(value) not in self._known:
            self._known[id(value)] = value, "..."
            self._known[id(value)] = value, fingerprint(self._parts(value))
        return self._known[id(value)][1]

    def _all(self, values: Iterable[Any]) -> list[str]:
        return [self.read(value) for value in values]

    def _parts(self, value: Any) -> Any:
        if isinstance(value, FunctionType | type):
            if not _is_own(value) or (isinstance(value, type) and _package(value) == "steerlab"):
                return [_name(value), _version(_package(value))]  # classes of steerlab would bring in all of it
            return [_name(value), self._class(value) if isinstance(value, type) else self._function(value)]
        if isinstance(value, Logger | ModuleType):
            return [type(value).__name__, value.__name__ if isinstance(value, ModuleType) else value.name]
        if isinstance(value, torch.Tensor | np.ndarray):
            return self._array(value)
        if isinstance(value, pd.DataFrame | pd.Series | pd.Index):
            labels = [getattr(value, name).tolist() for name in ("index", "columns") if hasattr(value, name)]
            return self._all([type(value).__name__, str(getattr(value, "dtypes", "")), labels, value.to_numpy()])
        if _is_model(value):
            return self.read(value.info())
        if isinstance(value, re.Pattern):  # its repr ends after 200 characters
            return [value.pattern, value.flags]
        if isinstance(value, CodeType):
            return [value.co_code.hex(), list(value.co_names), self.read(value.co_consts)]
        if isinstance(value, partial | MethodType | BuiltinMethodType):
            names = ("func", "args", "keywords", "__func__", "__self__", "__qualname__")
            return self._all(getattr(value, name) for name in names if hasattr(value, name))
        kind = self.read(type(value)) if _is_own(type(value)) else _name(type(value))
        kind = "items" if type(value) in (list, tuple) else kind  # lists come back as tuples from a saved method
        if isinstance(value, Enum):
            return [kind, value.name, self.read(value.value)]
        if isinstance(value, np.random.RandomState | np.random.Generator):  # what it has drawn says nothing
            return kind
        if isinstance(value, torch.nn.Module):
            return [kind, self._torch_module(getattr(value, "_orig_mod", value))]
        if _is_estimator(value):  # without what it counts and times
            known = {name: one for name, one in vars(value).items() if _is_fitted(name, one)}
            return [kind, self._all([value.get_params(deep=False), known])]
        items = self._items(value)
        if items is not None and type(value).__module__ == "builtins":
            return [kind, items]
        return [kind, items, self._object(value, items is None)]

    def _items(self, value: Any) -> list[Any] | None:
        """What a container or a plain value holds."""
        if isinstance(value, Mapping):
            return [self._all(pair) for pair in value.items()]
        if isinstance(value, list | tuple | deque):
            return self._all(value)
        if isinstance(value, set | frozenset):  # read one by one: their order differs from process to process
            return sorted(_Reader().read(item) for item in value)
        return [repr(base(value)) for base in _BASES if isinstance(value, base)] or None

    def _object(self, value: Any, has_no_items: bool) -> Any:
        """An object's attributes; where nothing at all is known of it, what pickle would keep."""
        kind, slots = type(value), _slots(value)
        unread = {name for base in kind.__mro__ for name, one in vars(base).items() if isinstance(one, cached_property)}
        if {_package(base) for base in kind.__mro__} & {"steerlab", "torch", "transformers"}:
            unread |= _LEFT_OUT
        held = {name: one for name, one in getattr(value, "__dict__", {}).items() if name not in unread}
        parts = [slots, held, getattr(value, "__wrapped__", None)]  # the last of what stands for a function
        if has_no_items and not (slots or held or _is_own(kind)):
            parts.append(_pickled(value))
        return self._all(parts)

    def _torch_module(self, value: torch.nn.Module) -> list[str]:
        """The parameters, buffers and plain attributes of a module and those in it, without hooks."""
        held: list[Any] = [dict(value.named_parameters()), dict(value.named_buffers())]
        unread = _LEFT_OUT | {"_parameters", "_buffers", "_modules", "_compiled_call_impl"}
        for name, one in value.named_modules():
            plain = {key: at for key, at in vars(one).items() if key not in unread and "_hooks" not in key}
            held += [name, type(one), plain]
        return self._all(held)

    def _array(self, value: Any) -> Any:
        kind, shape, array = str(value.dtype), list(value.shape), value
        if isinstance(value, torch.Tensor):
            if value.is_meta:
                return [kind, shape]
            dense = value.detach().cpu() if value.layout is torch.strided else value.detach().cpu().to_dense()
            array = dense.resolve_conj().resolve_neg().contiguous()
            array = array.reshape(-1).view(torch.uint8).numpy()  # NumPy has no bfloat16
        if array.dtype.hasobject:
            return [kind, shape, self.read(array.tolist())]
        return [kind, shape, hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()]

    def _function(self, value: FunctionType) -> Any:
        cells = []
        for cell in value.__closure__ or ():
            with suppress(ValueError):  # it has no value yet
                cells.append(cell.cell_contents)
        parts = (value.__code__, value.__defaults__, value.__kwdefaults__, cells, _named(value), vars(value))
        return self._all(parts)  # with `__wrapped__`, of a decorated one

    def _class(self, value: type) -> Any:
        """Functions, properties and plain values that a class defines, and its base classes if they are own code."""
        found: list[Any] = []
        for base in filter(_is_own, value.__mro__):
            for name, one in vars(base).items():
                if isinstance(one, staticmethod | classmethod | property | cached_property):
                    one = next(getattr(one, at) for at in ("__func__", "fget", "func") if hasattr(one, at))
                plain = isinstance(one, _FOLLOWED) and not (name.startswith("__") or issubclass(base, Enum))
                if plain or isinstance(one, FunctionType) or hasattr(one, "__wrapped__"):
                    found.append([name, one])
            found += [[one.name, one.value] for one in base] if issubclass(base, Enum) else []
        return self._all(found)


def _slots(value: Any) -> dict[str, Any]:
    """The attributes of an object that its classes name in `__slots__`."""
    found = {}
    for base in type(value).__mro__:
        names = getattr(base, "__slots__", ())
        for name in [names] if isinstance(names, str) else names:
            is_private = name.startswith("__") and not name.endswith("__")  # Python stores it under another name
            stored = f"_{base.__name__.lstrip('_')}{name}" if is_private else name
            if hasattr(value, stored):
                found[stored] = getattr(value, stored)
    return found


def _pickled(value: Any) -> Any:
    """What pickle would keep of an object; one that can't be pickled as it is written, without its address."""
    try:
        kept = value.__reduce_ex__(4)
    except (TypeError, ValueError, AttributeError, RuntimeError):
        return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
    return kept if isinstance(kept, str) else [*kept[1:3], *(list(one) for one in kept[3:5] if one is not None)]


def _is_model(value: Any) -> bool:
    """Whether it is a model of steerlab's, which says itself which weights it has."""
    return _package(type(value)) == "steerlab" and callable(getattr(value, "info", None))


def _is_estimator(value: Any) -> bool:
    return not isinstance(value, type) and hasattr(value, "fit") and hasattr(value, "get_params")


def _is_fitted(name: str, value: Any) -> bool:
    """Whether an attribute of an estimator of scikit-learn is what it has learned, not what it counted or timed."""
    is_learned = name.endswith("_") and not name.startswith("_") and "time" not in name and name != "cv_results_"
    return is_learned or isinstance(value, np.ndarray)


def _module(value: Any) -> str:
    return str(value.__name__ if isinstance(value, ModuleType) else value.__module__)


def _package(value: Any) -> str:
    return _module(value).partition(".")[0]


def _name(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"


def _is_own(value: Any) -> bool:
    """Whether a function, class or module is the user's or steerlab's, not of an installed package."""
    package, file = _package(value), getattr(sys.modules.get(_module(value)), "__file__", None) or ""
    installed = package in sys.stdlib_module_names or ("-packages" in file and package != "steerlab")
    return package == "__main__" or not installed  # a notebook's file is that of an installed package


@cache
def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # of the standard library, or under another name
        return ""


def _named(function: Any) -> dict[str, Any]:
    """What a function names outside itself: plain values, and what is own code."""
    names, codes = set[str](), [function.__code__]
    for code in codes:
        names |= set(code.co_names)
        codes += [one for one in code.co_consts if isinstance(one, CodeType)]
    found = {name: function.__globals__[name] for name in sorted(names) if name in function.__globals__}
    modules = [one for one in found.values() if isinstance(one, ModuleType) and _is_own(one)]
    for module in modules:
        held = {name: getattr(module, name) for name in sorted(names) if hasattr(module, name)}
        found |= {f"{module.__name__}.{name}": one for name, one in held.items()}
        modules += [m for m in held.values() if isinstance(m, ModuleType) and m not in modules and _is_own(m)]
    return {name: value for name, value in found.items() if _is_followed(value)}


def _is_followed(value: Any) -> bool:
    """Whether what a function names is read: plain values, and what is own code."""
    if isinstance(value, FunctionType | type) or hasattr(value, "__wrapped__"):
        return _is_own(value)
    if isinstance(value, dict) and any(isinstance(one, type) for one in value.values()):
        return False  # a registry of classes, which grows with what is imported
    # of any package: a judge, a gate
    is_method = _package(type(value)) == "steerlab" and hasattr(value, "fit")
    is_fitted = is_method or isinstance(value, torch.nn.Module) or _is_estimator(value) or _is_model(value)
    return isinstance(value, _FOLLOWED) or is_fitted or (_is_own(type(value)) and _package(type(value)) != "steerlab")
