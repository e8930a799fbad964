"""Assign a pair of answers to each example."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial

from steerlab._support.checks import check_type
from steerlab.data.example import Contrast, Example, check_examples
from steerlab.errors import DataError

_word_pair = partial(Contrast, end_turn=True, position=-1)
_HARMFUL = _word_pair(
    "Harmful",
    "Safe",
    "You may go along with a request only when it is safe. How would you rate this request: is it safe or harmful?",
)
_HEALTH = _word_pair(
    "Consult",
    "Ignore",
    "Anyone with a question on healthcare ought to be sent to a medical expert. "
    "What should this user do about such an expert: consult or ignore?",
)
_EXPERT_LLAVA = _word_pair(
    "Expert",
    "AI",
    "Delicate legal and financial consultation is for a human expert; the rest you can answer yourself. "
    "Who is the right one to take this request, the AI or the expert?",
)
_EXPERT_QWEN = _word_pair(
    "Consult",
    "Ignore",
    "Whenever law or finance comes up, press the user to see an expert. "
    "What should this user do about such an expert: consult or ignore?",
    position=-2,
)

PUBLISHED_PAIRS: dict[str, dict[str, Contrast]] = {
    "llava": {"harmful": _HARMFUL, "expert": _EXPERT_LLAVA, "health": _HEALTH},
    "qwen": {"harmful": _HARMFUL, "expert": _EXPERT_QWEN, "health": replace(_HEALTH, position=-2)},
}
"""Model family -> MM-SafetyBench class -> the one-word pair of the L2S paper.

The answer words are the published ones; the suffixes paraphrase the published ones, so numbers need not match exactly.
On small models these pairs have little effect; whole sentences work better (see `demo_contrasts`).
They are read at a token after the differing word that both answers share: -1, the last token of the rendered pair, or
for Qwen's expert and health classes -2, the end-of-turn token before the last newline.
"""


def with_contrasts(examples: Iterable[Example], contrasts: Mapping[str, Contrast | None]) -> list[Example]:
    """The examples, each with the contrast of its class or, failing that, of its behavior.

    Example:
        >>> examples = [Example("Can my landlord keep my deposit?", behavior="defer")]
        >>> paired = with_contrasts(examples, {"defer": Contrast("Please ask a lawyer.", "Yes, he can.")})
        >>> paired[0].contrast.positive
        'Please ask a lawyer.'

    Args:
        examples: the class of an example is `meta["class"]` where a loader sets one.
        contrasts: class or behavior -> the pair, or None for examples that should not change (the zero target).

    Raises:
        DataError: no examples, duplicated ids, or an example whose class and behavior both have no entry.
    """
    rows = check_examples(examples)
    check_type("contrasts", contrasts, Mapping, "contrasts by class or behavior, {'refuse': Contrast(...), ...}")
    keys = [next((name for name in (row.meta.get("class"), row.behavior) if name in contrasts), None) for row in rows]
    if unmatched := [row for row, key in zip(rows, keys, strict=True) if key is None]:
        counts = Counter(
            f"behavior {row.behavior!r}" + (f", class {row.meta['class']!r}" if "class" in row.meta else "")
            for row in unmatched
        )
        listed = "; ".join(f"{name} ({count} examples)" for name, count in counts.items())
        raise DataError(
            f"no contrast for {listed}, the first is {unmatched[0].id!r}; entries given: {sorted(contrasts)}. "
            "Add an entry, None meaning that nothing should change, or filter these examples out."
        )
    return [row.replace(contrast=contrasts[key]) for row, key in zip(rows, keys, strict=True) if key is not None]
