"""What an object holds, as plain values: two objects of the same class and contents have the same in any process."""

from __future__ import annotations

import hashlib
import inspect
import re
import sys
from collections.abc import Mapping
from enum import Enum
from functools import cached_property, partial
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
_LEFT_OUT = {"info_", "history_", "transformers_version", "_original_object_hash", "__wrapped__"}
_SIMPLE = (str, bytes, bool, int, float, complex, type(None), np.generic, PurePath)
_BASES: tuple[Any, ...] = (str, bytes, int, float)
_FOLLOWED = (
    *_SIMPLE, list, tuple, set, frozenset, dict, re.Pattern, np.ndarray, torch.Tensor, Enum, pd.DataFrame, pd.Series,
    partial, MethodType, BuiltinMethodType,
)  # fmt: skip


def contents(value: Any) -> Any:
    """Tensors by their bytes, functions by their byte code and what they were made with, objects by their attributes.

    Classes of the user's own code count by what they and their base classes define, those of installed packages by
    their names and versions.

    Example:
        >>> contents(lambda x: x + 1) == contents(lambda x: x + 1) != contents(lambda x: x + 2)
        True
    """
    return _Walk().of(value, frozenset())


class _Walk:
    """One walk through an object; functions and classes, which may name one another, are read once."""

    def __init__(self) -> None:
        self._code: dict[int, Any] = {}

    def of(self, value: Any, seen: frozenset[int]) -> Any:
        """The contents of a value; "..." inside of itself."""
        if type(value) in _SIMPLE or isinstance(value, np.generic | PurePath):
            return repr(value)
        if isinstance(value, Logger | ModuleType):
            return [type(value).__name__, value.__name__ if isinstance(value, ModuleType) else value.name]
        if id(value) in seen:
            return "..."
        inside = seen | {id(value)}
        if isinstance(value, FunctionType | type):
            if id(value) not in self._code:
                self._code[id(value)] = _name(value)  # for those that it names and that name it
                found = self._function(value, inside) if isinstance(value, FunctionType) else self._class(value, inside)
                self._code[id(value)] = [_name(value), fingerprint(found)]
            return self._code[id(value)]
        return self._object(value, inside)

    def _object(self, value: Any, inside: frozenset[int]) -> Any:
        if isinstance(value, torch.Tensor | np.ndarray):
            return self._array(value, inside)
        if isinstance(value, Mapping):
            items = [(key, item) for key, item in value.items() if key not in _LEFT_OUT]
            return [[self.of(key, inside), self.of(item, inside)] for key, item in items]
        if isinstance(value, list | tuple):
            return [self.of(item, inside) for item in value]
        if isinstance(value, set | frozenset):  # their order differs from process to process
            return sorted((self.of(item, inside) for item in value), key=fingerprint)
        if isinstance(value, re.Pattern):  # its repr ends after 200 characters
            return [value.pattern, value.flags]
        if isinstance(value, CodeType):
            return [value.co_code.hex(), list(value.co_names), self.of(value.co_consts, inside)]
        if isinstance(value, pd.DataFrame | pd.Series):
            return [type(value).__name__, value.to_csv()]
        if isinstance(value, Enum):
            return [_name(type(value)), value.name, self.of(value.value, inside)]
        if isinstance(value, partial | MethodType | BuiltinMethodType):
            names = ("func", "args", "keywords", "__func__", "__self__", "__qualname__")
            return [self.of(getattr(value, name), inside) for name in names if hasattr(value, name)]
        plain = [repr(base(value)) for base in _BASES if isinstance(value, base)]
        slots = {
            name for base in type(value).__mro__ for name in getattr(base, "__slots__", ()) if hasattr(value, name)
        }
        held = {name: getattr(value, name) for name in sorted(slots)} | getattr(value, "__dict__", {})
        parts = [plain, held, getattr(value, "__wrapped__", None)]  # the last of what stands for a function
        if not held and not plain and not _is_own(type(value)):
            parts.append(self._reduced(value))
        kind = self.of(type(value), inside) if _is_own(type(value)) else _name(type(value))
        return [kind, *(self.of(part, inside) for part in parts)]

    @staticmethod
    def _reduced(value: Any) -> Any:
        """What pickle would keep of an object without attributes."""
        try:
            kept = value.__reduce_ex__(4)
        except (TypeError, ValueError, AttributeError, NotImplementedError):
            return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
        return kept if isinstance(kept, str) else kept[1:3]

    def _array(self, value: Any, inside: frozenset[int]) -> Any:
        kind, shape, array = str(value.dtype), list(value.shape), value
        if isinstance(value, torch.Tensor):
            if value.is_meta:
                return [kind, shape]
            dense = value.detach().cpu() if value.layout is torch.strided else value.detach().cpu().to_dense()
            array = (
                dense.resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8).numpy()
            )  # NumPy has no bfloat16
        if array.dtype.hasobject:
            return [kind, shape, self.of(array.tolist(), inside)]
        return [kind, shape, hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()]

    def _function(self, value: FunctionType, inside: frozenset[int]) -> Any:
        if not _is_own(value):
            return _version(value)
        run: Any = inspect.unwrap(value)
        cells = [cell.cell_contents for cell in run.__closure__ or () if _is_set(cell)]
        return self.of([run.__code__, run.__defaults__, run.__kwdefaults__, cells, _named(run), vars(value)], inside)

    def _class(self, value: type, inside: frozenset[int]) -> Any:
        """Functions, properties and plain values that a class defines, and its base classes if they are own code."""
        if not _is_own(value) or _package(value) == "steerlab":  # whose classes would bring in the whole library
            return _version(value)
        found: list[Any] = []
        for base in filter(_is_own, value.__mro__):
            members = (
                vars(base) if not issubclass(base, Enum) else {name: base[name].value for name in base.__members__}
            )
            for name, one in members.items():
                if isinstance(one, staticmethod | classmethod | property | cached_property):
                    one = next(getattr(one, at) for at in ("__func__", "fget", "func") if hasattr(one, at))
                if isinstance(one, FunctionType) or (isinstance(one, _FOLLOWED) and not name.startswith("__")):
                    found.append([name, one])
        return self.of(found, inside)


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


def _version(value: Any) -> str:
    try:
        return version(_package(value))
    except PackageNotFoundError:  # of the standard library, or under another name
        return ""


def _named(function: Any) -> dict[str, Any]:
    """What a function names outside itself: plain values, and what is own code."""
    names, codes = set[str](), [function.__code__]
    for code in codes:
        names |= set(code.co_names)
        codes += [one for one in code.co_consts if isinstance(one, CodeType)]
    found = {name: function.__globals__[name] for name in sorted(names) if name in function.__globals__}
    for module in [one for one in found.values() if isinstance(one, ModuleType) and _is_own(one)]:
        found |= {f"{module.__name__}.{name}": getattr(module, name) for name in sorted(names) if hasattr(module, name)}

    def belongs(value: Any) -> bool:
        if isinstance(value, FunctionType | type):
            return _is_own(value)
        return isinstance(value, _FOLLOWED) or (_is_own(type(value)) and _package(type(value)) != "steerlab")

    return {name: value for name, value in found.items() if belongs(value)}
