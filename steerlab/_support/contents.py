"""What an object holds, as plain values: two objects of the same class and contents have the same in any process."""

from __future__ import annotations

import hashlib
import re
import sys
from collections import deque
from collections.abc import Iterable, Mapping
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

# where a method comes from, not what it does, and what differs from process to process
_LEFT_OUT = {"info_", "history_", "training", "_slopes", "transformers_version", "_original_object_hash"}
_SIMPLE = (str, bytes, bool, int, float, complex, type(None), np.generic, PurePath)
_BASES: tuple[Any, ...] = (str, bytes, int, float)
_FOLLOWED = (
    *_SIMPLE, list, tuple, set, frozenset, dict, re.Pattern, np.ndarray, torch.Tensor, Enum, pd.DataFrame, pd.Series,
    partial, MethodType, BuiltinMethodType,
)  # fmt: skip


def contents(value: Any) -> str:
    """Tensors by their bytes, functions by their byte code and what they were made with, objects by their attributes.

    Classes of the user's own code count by what they and their base classes define, those of installed packages by
    their names and versions.

    Example:
        >>> contents(lambda x: x + 1) == contents(lambda x: x + 1) != contents(lambda x: x + 2)
        True
    """
    return _Walk().of(value)


class _Walk:
    """One walk through an object; what is met again, or holds itself, is read once."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Any, str]] = {}  # with the value itself: its id is not given away meanwhile

    def of(self, value: Any) -> str:
        """A fingerprint of the contents of a value; "..." inside of itself."""
        if type(value) in _SIMPLE or isinstance(value, np.generic | PurePath):
            return repr(value)
        if id(value) not in self._known:
            self._known[id(value)] = value, "..."
            self._known[id(value)] = value, fingerprint(self._read(value))
        return self._known[id(value)][1]

    def _all(self, values: Iterable[Any]) -> list[str]:
        return [self.of(value) for value in values]

    def _read(self, value: Any) -> Any:
        if isinstance(value, FunctionType):
            return [_name(value), self._function(value)]
        if isinstance(value, type):
            return [_name(value), self._class(value)]
        if isinstance(value, Logger | ModuleType):
            return [type(value).__name__, value.__name__ if isinstance(value, ModuleType) else value.name]
        if isinstance(value, torch.Tensor | np.ndarray):
            return self._array(value)
        if isinstance(value, pd.DataFrame | pd.Series | pd.Index):
            labels = [getattr(value, name).tolist() for name in ("index", "columns") if hasattr(value, name)]
            return self._all([type(value).__name__, str(getattr(value, "dtypes", "")), labels, value.to_numpy()])
        if isinstance(value, re.Pattern):  # its repr ends after 200 characters
            return [value.pattern, value.flags]
        if isinstance(value, CodeType):
            return [value.co_code.hex(), list(value.co_names), self.of(value.co_consts)]
        if isinstance(value, partial | MethodType | BuiltinMethodType):
            names = ("func", "args", "keywords", "__func__", "__self__", "__qualname__")
            return self._all(getattr(value, name) for name in names if hasattr(value, name))
        kind = self.of(type(value)) if _is_own(type(value)) else _name(type(value))
        kind = "items" if type(value) in (list, tuple) else kind  # lists come back as tuples from a saved method
        if isinstance(value, Enum):
            return [kind, value.name, self.of(value.value)]
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
        if isinstance(value, set | frozenset):  # their order differs from process to process
            return sorted(map(contents, value))
        plain = [repr(base(value)) for base in _BASES if isinstance(value, base)]
        return plain or None

    def _object(self, value: Any, alone: bool) -> Any:
        """An object's attributes; where it has none and nothing else is known of it, what pickle would keep."""
        kind, slots = type(value), dict[str, Any]()
        for base in kind.__mro__:
            named = getattr(base, "__slots__", ())
            for name in [named] if isinstance(named, str) else named:
                name = f"_{base.__name__.lstrip('_')}{name}" if name[:2] == "__" != name[-2:] else name
                slots |= {name: getattr(value, name)} if hasattr(value, name) else {}
        caches = {name for base in kind.__mro__ for name, one in vars(base).items() if isinstance(one, cached_property)}
        held = {name: one for name, one in getattr(value, "__dict__", {}).items() if name not in caches | _LEFT_OUT}
        parts = [slots, held, getattr(value, "__wrapped__", None)]  # the last of what stands for a function
        return self._all([*parts, self._reduced(value)] if alone and not (slots or held or _is_own(kind)) else parts)

    @staticmethod
    def _reduced(value: Any) -> Any:
        try:
            kept = value.__reduce_ex__(4)
        except (TypeError, ValueError, AttributeError, NotImplementedError):
            return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
        return kept if isinstance(kept, str) else [*kept[1:3], *(list(one) for one in kept[3:5] if one is not None)]

    def _array(self, value: Any) -> Any:
        kind, shape, array = str(value.dtype), list(value.shape), value
        if isinstance(value, torch.Tensor):
            if value.is_meta:
                return [kind, shape]
            dense = value.detach().cpu() if value.layout is torch.strided else value.detach().cpu().to_dense()
            array = dense.resolve_conj().resolve_neg().contiguous()
            array = array.reshape(-1).view(torch.uint8).numpy()  # NumPy has no bfloat16
        if array.dtype.hasobject:
            return [kind, shape, self.of(array.tolist())]
        return [kind, shape, hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()]

    def _function(self, value: Any) -> Any:
        if not _is_own(value):
            return _version(_package(value))
        cells = [cell.cell_contents for cell in value.__closure__ or () if _is_set(cell)]
        parts = (value.__code__, value.__defaults__, value.__kwdefaults__, cells, _named(value), vars(value))
        return self._all(parts)  # with `__wrapped__`, of a decorated one

    def _class(self, value: type) -> Any:
        """Functions, properties and plain values that a class defines, and its base classes if they are own code."""
        if not _is_own(value) or _package(value) == "steerlab":  # whose classes would bring in the whole library
            return _version(_package(value))
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


def _is_set(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def _name(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"


def _package(value: Any) -> str:
    name = value.__name__ if isinstance(value, ModuleType) else value.__module__
    return str(name).partition(".")[0]


def _is_own(value: Any) -> bool:
    """Whether a function, class or module is the user's or steerlab's, not of an installed package."""
    name = value.__name__ if isinstance(value, ModuleType) else value.__module__
    file = getattr(sys.modules.get(str(name)), "__file__", None) or ""
    installed = _package(value) in sys.stdlib_module_names or ("-packages" in file and _package(value) != "steerlab")
    return _package(value) == "__main__" or not installed  # a notebook's file is that of an installed package


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
        inside = {name: getattr(module, name) for name in sorted(names) if hasattr(module, name)}
        found |= {f"{module.__name__}.{name}": one for name, one in inside.items()}
        modules += [
            one for one in inside.values() if isinstance(one, ModuleType) and one not in modules and _is_own(one)
        ]

    def belongs(value: Any) -> bool:
        if isinstance(value, FunctionType | type) or hasattr(value, "__wrapped__"):
            return _is_own(value)
        if isinstance(value, dict) and any(isinstance(one, type) for one in value.values()):
            return False  # a registry of classes, which grows with what is imported
        return isinstance(value, _FOLLOWED) or (_is_own(type(value)) and _package(type(value)) != "steerlab")

    return {name: value for name, value in found.items() if belongs(value)}
