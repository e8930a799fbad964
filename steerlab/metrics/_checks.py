"""Checks of texts, values and probabilities."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np

from steerlab._support.checks import as_text, as_texts, show
from steerlab.errors import DataError


def as_nonempty_texts(texts: Iterable[str], what: str) -> list[str]:
    """The texts as a list; a bare string or an empty list is refused."""
    rows = as_texts(f"texts of {what}", texts)
    if not rows:
        raise DataError(f"{what} got no texts; expected at least one. Check the filters that chose them.")
    return rows


# what models write for ASCII signs; translated before NFKC, which takes some of them apart
_SIGNS = str.maketrans("‘’ʼ`´′＇“”‐‑", "'" * 7 + '"' * 2 + "-" * 2, "\u00ad")


def plain_signs(text: str) -> str:
    """The text with ASCII quotes and hyphens, and without soft hyphens."""
    return text.translate(_SIGNS)


def answer_of(text: str) -> str:
    """An answer without what a reasoning model thinks before it, up to "</think>"; nothing where it never ends."""
    text = as_text(text)
    if "<think>" in text and "</think>" not in text:
        warnings.warn(
            "a text ends while the model is still thinking (<think>), so there is no answer to judge: give a larger "
            "max_new_tokens",
            stacklevel=3,
        )
        return text.partition("<think>")[0]
    return text.rpartition("</think>")[2]


def as_values(values: Any, what: str) -> np.ndarray:
    """The values as a one-dimensional float64 array; empty, nested or non-finite input is refused."""
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{what} got {show(values)}: expected one number per example") from error
    if array.ndim != 1 or array.size == 0:
        raise DataError(f"{what} got shape {array.shape}; expected one number per example, at least one")
    bad = int((~np.isfinite(array)).sum())
    if bad:
        raise DataError(f"{what} got {bad} NaN or infinite of {array.size} values; drop or repair those examples first")
    return array


def as_probabilities(values: Any, what: str) -> np.ndarray:
    """Like `as_values`, and each value must lie in [0, 1]."""
    array = as_values(values, what)
    if array.min() < 0 or array.max() > 1:
        raise DataError(
            f"{what} got values from {array.min():g} to {array.max():g}; expected probabilities in [0, 1] "
            "(apply a softmax or sigmoid to logits first)"
        )
    return array
