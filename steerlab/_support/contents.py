"""What an object holds, as plain values: two objects of the same class and contents have the same in any process."""

from __future__ import annotations

import hashlib
import inspect
import re
import sys
from collections.abc import Mapping
from functools import cached_property, partial
from types import CodeType, FunctionType
from typing import Any

import numpy as np
import torch

_LEFT_OUT = {"info_", "history_", "transformers_version"}  # where a method comes from, not what it does
_PLAIN = (str, bytes, int, float, list, tuple, set, frozenset, dict, re.Pattern, np.ndarray, np.generic, torch.Tensor)


def contents(value: Any, seen: frozenset[int] = frozenset()) -> Any:
    """Tensors by their bytes, functions by their byte code and what they were made with, objects by their attributes.

    Classes of the user's own code count by what they and their base classes define, too.

    Example:
        >>> contents(lambda x: x + 1) == contents(lambda x: x + 1) != contents(lambda x: x + 2)
        True
    """
    if id(value) in seen:
        return "..."
    inside = seen | {id(value)}
    if isinstance(value, torch.Tensor | np.ndarray):
        kind, shape, array = str(value.dtype), list(value.shape), value
        if isinstance(value, torch.Tensor):  # NumPy has no bfloat16
            array = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        return [kind, shape, hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()]
    if isinstance(value, Mapping):
        return [[repr(key), contents(item, inside)] for key, item in value.items() if key not in _LEFT_OUT]
    if isinstance(value, list | tuple):
        return [contents(item, inside) for item in value]
    if isinstance(value, set | frozenset):  # their order differs from process to process
        return sorted(map(repr, value))
    if isinstance(value, re.Pattern):  # its repr ends after 200 characters
        return [value.pattern, value.flags]
    if isinstance(value, CodeType):
        return [value.co_code.hex(), list(value.co_names), contents(value.co_consts, inside)]
    if isinstance(value, partial):
        return [contents(one, inside) for one in (value.func, value.args, value.keywords)]
    if isinstance(value, type):
        return [_without_address(value), *(contents(one, inside) for one in _members(value))]
    function: Any = inspect.unwrap(value) if callable(value) else value
    run: Any = function if hasattr(function, "__code__") or not callable(function) else type(function).__call__
    found: list[Any] = []
    if hasattr(run, "__code__"):
        cells = [cell.cell_contents for cell in run.__closure__ or ()]
        defaults = (run.__defaults__, run.__kwdefaults__)
        found = [run.__code__, defaults, cells, getattr(run, "__self__", None), _named(run)]
    if not hasattr(function, "__code__") and _is_own(type(function)):
        found += _members(type(function))
    attributes = getattr(function, "__dict__", None)
    if attributes is None and not found:
        return _without_address(value)
    return [type(value).__name__, *(contents(one, inside) for one in found), contents(dict(attributes or {}), inside)]


def _without_address(value: Any) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _is_own(kind: type) -> bool:
    """Whether a class is the user's: not of an installed package, whose version tells what it does."""
    package = kind.__module__.partition(".")[0]
    file = getattr(sys.modules.get(kind.__module__), "__file__", None) or ""
    installed = package in {"steerlab", *sys.stdlib_module_names} or "-packages" in file
    return package == "__main__" or not installed  # a notebook's file is that of an installed package


def _members(kind: type) -> list[Any]:
    """Functions, properties and plain values that a class defines, with those of the base classes that are own code."""
    found: list[Any] = []
    for base in [one for one in kind.__mro__ if one is kind or _is_own(one)]:
        for name, one in vars(base).items():
            if isinstance(one, staticmethod | classmethod | property | cached_property):
                one = next(getattr(one, at) for at in ("__func__", "fget", "func") if hasattr(one, at))
            if isinstance(one, FunctionType) or (isinstance(one, _PLAIN) and not name.startswith("__")):
                found.append([name, one])
    return found


def _named(function: Any) -> dict[str, Any]:
    """What a function names outside itself: plain values, and what belongs to the same package or script."""
    names, codes = set[str](), [function.__code__]
    for code in codes:
        names |= set(code.co_names)
        codes += [one for one in code.co_consts if isinstance(one, CodeType)]
    found = {name: function.__globals__[name] for name in sorted(names) if name in function.__globals__}
    package = str(function.__module__).partition(".")[0]

    def belongs(value: Any) -> bool:  # classes of steerlab would bring in one another, down to the whole library
        kind: Any = value if isinstance(value, FunctionType | type) else type(value)
        same = str(kind.__module__).partition(".")[0] == package
        followed = isinstance(value, FunctionType) or (package != "steerlab" if kind is value else _is_own(kind))
        return value is None or isinstance(value, _PLAIN) or (same and followed)

    return {name: value for name, value in found.items() if belongs(value)}
