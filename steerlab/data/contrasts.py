"""Which pair of answers goes with which example."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

from steerlab._support.errors import DataError
from steerlab.data.example import Contrast, Example, check_examples

_HARMFUL = Contrast(
    "Harmful",
    "Safe",
    suffix=(
        "You may go along with a request only when it is safe. How would you rate this request: is it safe or harmful?"
    ),
    end_turn=True,
    position=-1,
)
_HEALTH = Contrast(
    "Consult",
    "Ignore",
    suffix=(
        "Anyone with a question on healthcare ought to be sent to a medical expert. "
        "What should this user do about such an expert: consult or ignore?"
    ),
    end_turn=True,
    position=-1,
)
_EXPERT_LLAVA = Contrast(
    "Expert",
    "AI",
    suffix=(
        "Delicate legal and financial consultation is for a human expert; the rest you can answer yourself. "
        "Who is the right one to take this request, the AI or the expert?"
    ),
    end_turn=True,
    position=-1,
)
_EXPERT_QWEN = Contrast(
    "Consult",
    "Ignore",
    suffix=(
        "Whenever law or finance comes up, press the user to see an expert. "
        "What should this user do about such an expert: consult or ignore?"
    ),
    end_turn=True,
    position=-1,
)

PUBLISHED_PAIRS: dict[str, dict[str, Contrast]] = {
    "llava": {"harmful": _HARMFUL, "expert": _EXPERT_LLAVA, "health": _HEALTH},
    "qwen": {
        "harmful": _HARMFUL,
        "expert": replace(_EXPERT_QWEN, position=-2),
        "health": replace(_HEALTH, position=-2),
    },
}
"""Model family -> MM-SafetyBench class -> the one-word pair of the L2S paper.

The answer words are the published ones; the suffixes say the same in other words, so numbers need not match
to the digit. On small models these pairs move little; whole sentences do better (see `demo_contrasts`).
They are read at a token that both sides share and that comes after the differing word: -1, the last of the rendered
pair, or for Qwen's expert and health classes -2, the end-of-turn token before the last newline.
"""


def with_contrasts(examples: Iterable[Example], contrasts: Mapping[str, Contrast | None]) -> list[Example]:
    """The examples, each with the contrast of its class or, failing that, of its behavior.

    Example:
        >>> rows = [Example(id="1", prompt="Can my landlord keep my deposit?", behavior="defer")]
        >>> paired = with_contrasts(rows, {"defer": Contrast("Please ask a lawyer.", "Yes, he can.")})
        >>> paired[0].contrast.positive
        'Please ask a lawyer.'

    Args:
        examples: rows; the class is `meta["class"]` where a loader sets one.
        contrasts: class or behavior -> the pair, or None for rows that should not change (the zero target).

    Raises:
        DataError: no rows, duplicated ids, or a row whose class and behavior both have no entry.
    """
    rows = check_examples(examples)
    keys = [_key(row, contrasts) for row in rows]
    missing = Counter(
        f"behavior {row.behavior!r}" + (f", class {row.meta['class']!r}" if "class" in row.meta else "")
        for row, key in zip(rows, keys, strict=True)
        if key is None
    )
    if missing:
        listed = "; ".join(f"{name} ({count} examples)" for name, count in missing.items())
        first = next(row.id for row, key in zip(rows, keys, strict=True) if key is None)
        raise DataError(
            f"no contrast for {listed}, the first is {first!r}; entries given: {sorted(contrasts)}. "
            "Add an entry, None meaning that nothing should change, or filter these examples out."
        )
    return [row.replace(contrast=contrasts[key]) for row, key in zip(rows, keys, strict=True) if key is not None]


def _key(example: Example, contrasts: Mapping[str, Contrast | None]) -> str | None:
    """The more specific name goes first: a class is a part of a behavior."""
    names = (example.meta.get("class"), example.behavior)
    return next((name for name in names if name is not None and name in contrasts), None)
