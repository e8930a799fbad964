"""Checks of arguments: each returns the value, or raises an error that names the argument and what was expected."""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable, Collection, Iterable, Mapping, Set
from difflib import get_close_matches
from functools import wraps
from numbers import Real
from typing import Any, TypeVar

import numpy as np

from steerlab.errors import DataError, SteerlabError

Kinds = type | tuple[type, ...]
Error = type[SteerlabError]
Function = TypeVar("Function", bound=Callable[..., Any])


def show(value: object) -> str:
    """A value for a message: its beginning, and its type."""
    text = " ".join(repr(value).split())
    return f"{text[:80]}{'...' if len(text) > 80 else ''} ({type(value).__name__})"


def check_type(name: str, value: Any, kinds: Kinds, expected: str, error: Error = DataError) -> Any:
    """The value, if it is of one of some types; a truth value is no number.

    Example:
        >>> check_type("system", "Be brief.", str, "a text")
        'Be brief.'
    """
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise error(f"{name} is {show(value)}: expected {expected}")
    return value


def as_text(value: object, name: str = "the text", error: Error = DataError) -> str:
    """A text; a missing cell of a data frame is None or NaN, which would otherwise fail far from here."""
    return str(check_type(name, value, str, "a text", error))


def as_texts(name: str, texts: Any) -> list[str]:
    """Some texts as a list, also of a column of a data frame; neither one text nor a set."""
    if isinstance(texts, str | bytes | Mapping | Set) or not isinstance(texts, Iterable):
        raise DataError(f"{name}={show(texts)}: expected a list of texts, [text] for one")
    return [as_text(text, f"a text of {name}") for text in texts]


def as_whole(name: str, value: Any, least: int | None = 1, most: int | None = None, error: Error = DataError) -> int:
    """A whole number within bounds, also NumPy's.

    Example:
        >>> as_whole("batch_size", np.int64(8))
        8
    """
    try:
        found = None if isinstance(value, bool | np.bool_) else operator.index(value)
    except TypeError:
        found = None
    if found is None or (least is not None and found < least) or (most is not None and found > most):
        bounds = "" if least is None else f" of at least {least}" if most is None else f" from {least} to {most}"
        raise error(f"{name}={show(value)}: expected a whole number{bounds}")
    return found


def as_seed(seed: Any) -> int:
    """The seed of a random generator: PyTorch, NumPy and Python agree on these."""
    return as_whole("seed", seed, 0, 2**32 - 1)


def as_number(name: str, value: Any, low: float = -math.inf, high: float = math.inf, error: Error = DataError) -> float:
    """A finite number from `low` to `high`, also NumPy's."""
    found = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if not (math.isfinite(found) and low <= found <= high):
        bounds = "" if (low, high) == (-math.inf, math.inf) else f" from {low:g} to {high:g}"
        raise error(f"{name}={show(value)}: expected a finite number{bounds}")
    return found


# what other tools call the options of ours
_SYNONYMS = {
    "multiplier": "alpha", "coeff": "alpha", "coefficient": "alpha", "strength": "alpha", "factor": "alpha",
    "max_tokens": "max_new_tokens", "layer": "layers", "layer_ids": "layers", "hidden_layers": "layers",
    "token_indices": "positions", "read_token_index": "positions", "position": "positions", "vector": "steer",
    "steerer": "steer", "torch_dtype": "dtype", "model_name": "name", "show_progress": "progress",
}  # fmt: skip


def check_names(verb: str, given: Iterable[str], known: Collection[str], error: Error = SteerlabError) -> None:
    """Refuse the name of an option that is almost one of the known names, or another tool's word for it.

    Example:
        >>> check_names("generate", {"max_tokens": 20}, ["alpha", "max_new_tokens"])
        Traceback (most recent call last):
        steerlab.errors.SteerlabError: generate has no option 'max_tokens': did you mean max_new_tokens?
    """
    for name in given:
        meant = [_SYNONYMS[name]] if _SYNONYMS.get(name) in known else get_close_matches(name, known, 1, cutoff=0.8)
        if name not in known and meant and meant[0] not in name:  # vLLM's enable_prefix_caching is no typing error
            raise error(f"{verb} has no option {name!r}: did you mean {meant[0]}?")


def named_options(verb: Function) -> Function:
    """Decorator: an unknown option of a function, or of a class by its `__init__`, raises an error that says what was
    probably meant.
    """
    parameters = inspect.signature(verb).parameters
    if any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
        return verb

    @wraps(verb)
    def call(*args: Any, **options: Any) -> Any:
        unknown = [name for name in options if name not in parameters]
        shown = type(args[0]).__name__ if verb.__name__ == "__init__" else verb.__name__
        check_names(shown, unknown, parameters)
        if unknown:
            known = ", ".join(one for one in parameters if one != "self")
            raise SteerlabError(f"{shown} has no option {unknown[0]!r}; it has {known}")
        return verb(*args, **options)

    return call  # type: ignore[return-value]


def check_option(name: str, value: object, options: Collection[object], error: Error = DataError) -> None:
    """Refuse a value that is none of the options."""
    if not any(isinstance(value, type(option)) and value == option for option in options):
        raise error(f"{name}={value!r} is unknown; expected one of {', '.join(map(str, options))}")


def as_options(name: str, values: Any, options: Collection[str]) -> list[str]:
    """A list of names, all among the options; a single name in place of a list is refused.

    Raises:
        DataError: naming the argument, what was given, and the options.
    """
    given = list(values)
    if isinstance(values, str) or set(given) - set(options):
        raise DataError(f"{name}={values!r}: expected several of {list(options)}")
    return given
