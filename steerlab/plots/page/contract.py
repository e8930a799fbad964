"""What a page holds, as JSON, and the check that every page passes when it is made.

    version      1
    title        the heading
    model        the id of the model
    note         one line about the decoding: new tokens, positions, date
    methods      [{name, label, color}], in the order of the columns
    layers       the layers, numbers or names of sites, from the first to the last
    alphas       the strengths, ascending; 0 is among them
    prompts      [{id, text, group, images}]; `images` are data addresses of PNG files
    effect       {name, label}: the measure that the vectors are to raise
    side_effect  {name, label}: the measure that they are to leave low
    unsafe       {name, label}: what `unsafe` of cells and texts means
    cells        [{method, layer, alpha, effect, side_effect, broken, unsafe, norm_ratio}]: means over the prompts.
                 `broken` is the share of broken texts, `unsafe` that of fluent and unsafe ones where it was measured
                 (null: nowhere); `norm_ratio` is the mean of ‖αv‖/‖h‖ over the states that were changed (null: not
                 known)
    texts        [{method, layer, alpha, prompt, text, broken, unsafe, norm_ratio, tokens}]; an unsteered text has the
                 method and layer null and alpha 0
    tokens       of a text: [[word, cosine, norm_ratio, kl, top, unsteered], ...], of the state that predicts the word:
                 the cosine of state and vector, its ‖αv‖/‖h‖, the KL divergence of the steered from the unsteered
                 distribution in nats, and the most likely words of both, [word, percent, word, percent, ...]
    words        the strings that the `word`s of `tokens` are numbers of
    readable     {fluent, breaks}: a cell reads well if at least the share `fluent` of its texts is not broken; `breaks`
                 is the norm ratio from which texts of this model broke, where it was measured (null: it was not)
    live         whether texts that are missing are made by a model behind the page

`method`, `layer`, `alpha` and `prompt` of cells and texts are places in the lists above.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from steerlab.errors import DataError

VERSION = 1
MAX_TEXTS, MAX_LAYERS, MAX_ALPHAS, MAX_METHODS = 5000, 64, 25, 6  # what a screen and a browser hold

_NUMBER, _SHARE, _PLACE = (int, float), "a share", "a place"
_OPTIONAL = {"unsafe", "norm_ratio", "side_effect", "effect", "breaks"}
_NAMED = {"name": str, "label": str}
_WHERE = {"method": _PLACE, "layer": _PLACE, "alpha": _PLACE}
_LISTS: dict[str, dict[str, Any]] = {
    "methods": {**_NAMED, "color": str},
    "prompts": {"id": str, "text": str, "group": str, "images": list},
    "cells": {
        **_WHERE, "effect": _NUMBER, "side_effect": _NUMBER, "broken": _SHARE, "unsafe": _SHARE, "norm_ratio": _NUMBER
    },
    "texts": {
        **_WHERE, "prompt": _PLACE, "text": str, "broken": bool, "unsafe": bool, "norm_ratio": _NUMBER, "tokens": list
    },
}  # fmt: skip
_OBJECTS: dict[str, dict[str, Any]] = {
    "effect": _NAMED, "side_effect": _NAMED, "unsafe": _NAMED, "readable": {"fluent": _SHARE, "breaks": _NUMBER},
}  # fmt: skip
_PLAIN = {"title": str, "model": str, "note": str, "layers": list, "alphas": list, "words": list, "live": bool}
KEYS = ("version", *_PLAIN, *_LISTS, *_OBJECTS)


def check_contract(data: Any) -> dict[str, Any]:
    """The contract itself, if a page can show it.

    Example:
        >>> check_contract(json.loads(text))["title"]

    Args:
        data: what `Page.to_dict` gives.

    Raises:
        DataError: names the first entry that is missing, unknown, of another type or outside its list.
    """
    if not isinstance(data, Mapping) or data.get("version") != VERSION:
        raise DataError(f"this is no page of version {VERSION}: give what Page.to_dict() of this steerlab returned")
    _check_keys("the page", data, KEYS)
    for name, kind in _PLAIN.items():
        _check(name, data[name], kind, data)
    for name, fields in _OBJECTS.items():
        _check_object(name, data[name], fields, data)
    if not all(_is_number(alpha) for alpha in data["alphas"]) or 0 not in data["alphas"]:
        raise DataError(f"alphas={data['alphas']}: expected finite strengths, 0 among them")
    for name, fields in _LISTS.items():
        _check(name, data[name], list, data)
        for number, one in enumerate(data[name]):
            _check_object(f"{name}[{number}]", one, fields, data)
    for number, text in enumerate(data["texts"]):
        _check_tokens(f"texts[{number}].tokens", text["tokens"], len(data["words"]))
    return dict(data)


def check_size(counts: Mapping[str, int]) -> None:
    """Refuse more than a page can show; `counts` are the numbers of methods, layers, alphas, prompts and texts.

    Raises:
        DataError: says by how much it is too large and what to leave out.
    """
    limits = {"methods": MAX_METHODS, "layers": MAX_LAYERS, "alphas": MAX_ALPHAS, "texts": MAX_TEXTS}
    over = [f"{counts[name]} {name} (at most {limit})" for name, limit in limits.items() if counts[name] > limit]
    if not over:
        return
    axes = {name: counts[name] for name in ("layers", "alphas", "prompts")}
    most = max(axes, key=lambda name: axes[name])
    column = {"layers": "layer", "alphas": "alpha", "prompts": "example_id"}[most]
    step = math.ceil(max(counts[name] / limit for name, limit in limits.items()))
    size = " x ".join(f"{counts[name]} {name}" for name in ("methods", "layers", "alphas", "prompts"))
    raise DataError(
        f"a page of {size} is too large: {', '.join(over)}. Thin it out where there is most: keep one in "
        f"{step} of the {axes[most]} {most} (of frames: frame[frame[{column!r}].isin(kept)], with the same for texts)"
    )


def _check_object(name: str, value: Any, fields: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    _check_keys(name, value, tuple(fields))
    unsteered = "prompt" in fields and value.get("method") is None
    for key, kind in fields.items():
        optional = key in _OPTIONAL or (unsteered and key in ("method", "layer"))
        if not (optional and value[key] is None):
            _check(f"{name}.{key}", value[key], kind, data)


def _check_keys(name: str, value: Any, keys: Sequence[str]) -> None:
    if not isinstance(value, Mapping):
        raise DataError(f"{name} is {value!r:.60}: expected an object with {list(keys)}")
    if missing := [key for key in keys if key not in value]:
        raise DataError(f"{name} lacks {missing}; it has {list(value)}")
    if unknown := [key for key in value if key not in keys]:
        raise DataError(f"{name} has the unknown entry {unknown[0]!r}; known are {list(keys)}")


def _check(name: str, value: Any, kind: Any, data: Mapping[str, Any]) -> None:
    if kind == _PLACE:
        size = len(data[name.rsplit(".", 1)[1] + "s"])
        right, expected = type(value) is int and 0 <= value < size, f"a whole number below {size}"
    elif kind == _SHARE:
        right, expected = _is_number(value) and 0 <= value <= 1, "a share from 0 to 1"
    elif kind == _NUMBER:
        right, expected = _is_number(value), "a finite number"
    else:
        right, expected = isinstance(value, kind), f"{kind.__name__}"
    if not right:
        raise DataError(f"{name} is {value!r:.60}: expected {expected}")


def _check_tokens(name: str, tokens: Sequence[Any], n_words: int) -> None:
    for number, token in enumerate(tokens):
        right = isinstance(token, list | tuple) and len(token) == 6
        words = [token[0], *token[4][::2], *token[5][::2]] if right else []
        numbers = [one for one in (*token[1:4], *token[4][1::2], *token[5][1::2]) if one is not None] if right else []
        right = right and all(type(word) is int and 0 <= word < n_words for word in words)
        if not right or not all(map(_is_number, numbers)):
            raise DataError(
                f"{name}[{number}] is {token!r:.80}: expected [word, cosine, norm_ratio, kl, top, unsteered] with "
                f"words below {n_words} and finite numbers"
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
