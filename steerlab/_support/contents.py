"""What an object holds, as plain values: two objects of the same class and contents have the same in any process."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Mapping
from functools import partial
from types import CodeType, FunctionType
from typing import Any

import numpy as np
import torch

_LEFT_OUT = {"info_", "history_"}  # where a method comes from, not what it does
_PLAIN = (str, bytes, int, float, list, tuple, set, frozenset, dict, re.Pattern)


def contents(value: Any, seen: frozenset[int] = frozenset()) -> Any:
    """Tensors by their bytes, functions by their byte code and what they were made with, objects by their attributes.

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
    function: Any = inspect.unwrap(value) if callable(value) and not isinstance(value, type) else None
    run: Any = function
    methods: list[Any] = []
    if function is not None and not hasattr(function, "__code__"):
        run, methods = type(function).__call__, _functions_of(type(function))
    found: list[Any] = []
    if hasattr(run, "__code__"):
        cells = [cell.cell_contents for cell in run.__closure__ or ()]
        parts = (run.__code__, run.__defaults__, cells, getattr(run, "__self__", None), _named(run))
        found = [contents(one, inside) for one in (*parts, *methods)]
    attributes = getattr(function if function is not None else value, "__dict__", None)
    if isinstance(value, type):
        return [re.sub(r" at 0x[0-9a-f]+", "", repr(value)), *(contents(one, inside) for one in _functions_of(value))]
    if attributes is None and not found:
        return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
    return [type(value).__name__, *found, contents(dict(attributes or {}), inside)]


def _functions_of(kind: type) -> list[FunctionType]:
    """The functions that a class defines itself."""
    return [one for one in vars(kind).values() if isinstance(one, FunctionType)]


def _named(function: Any) -> dict[str, Any]:
    """What a function names outside itself: plain values, and functions of the same package or script."""
    names, codes = set[str](), [function.__code__]
    for code in codes:
        names |= set(code.co_names)
        codes += [one for one in code.co_consts if isinstance(one, CodeType)]
    found = {name: function.__globals__[name] for name in sorted(names) if name in function.__globals__}
    package = str(function.__module__).partition(".")[0]

    def belongs(value: Any) -> bool:  # classes of steerlab would bring in one another, down to the whole library
        if isinstance(value, FunctionType) or (isinstance(value, type) and package != "steerlab"):
            return str(value.__module__).partition(".")[0] == package
        return value is None or isinstance(value, (*_PLAIN, np.ndarray))

    return {name: value for name, value in found.items() if belongs(value)}
