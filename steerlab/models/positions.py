"""One language of positions, for reading and for writing.

| position | tokens |
|---|---|
| `"last"` | the last prompt token: its state predicts the first new token |
| `"last-2"` | the prompt token two places before it |
| `"prompt"` | every prompt token, template included |
| `"prompt[3]"` | the prompt's token 3, counted from 0; never an answer's, also where the prompt is shorter |
| `"generated"` | new tokens while decoding; in a teacher-forced row, the answer's tokens |
| `"answer"` | the same tokens as `"generated"`, named for teacher-forced rows |
| `"first_difference"` | in a row with one answer of a contrast, its first token that the other answer does not share |
| `"all"` | prompt and generated |
| `"system"`, `"history"`, `"user"`, `"header"` | the parts of the rendered conversation |
| `"last_user"` | the last token of the user turn, before the assistant header |
| `"images"` | the prompt tokens that hold a picture's features; in the vision tower and the projector every patch |
| `"text"` | every prompt token that does not |
| `"last_image"`, `"after_image"` | the last token that holds a picture's features, and the prompt's one after it |
| `"last+generated"` | any union, joined by `+` |
| `3`, `-1`, `slice(0, 4)` | places in the unpadded row (prompt, then answer) |
| `Match("kill")` | the tokens that overlap this text |
| a `(B, T)` bool tensor | row b, token t of the unpadded row |

`"generated"` starts *after* the last prompt token, so it cannot change the first new token; `"last+generated"` can.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steerlab._support.errors import PositionError
from steerlab.models.encoded_prompt import EncodedPrompt

NAMES = (
    *("last", "prompt", "generated", "answer", "all", "system", "history", "user", "header", "last_user"),
    *("text", "images", "last_image", "after_image", "first_difference"),
)

_BEFORE_LAST = re.compile(r"last-\d+")
_OF_PROMPT = re.compile(r"prompt\[\d+\]")


@dataclass(frozen=True)
class Match:
    """The tokens that overlap any occurrence of `text` in the rendered row.

    Example:
        >>> steerlab.steer(model, vector, positions=Match("Python"))
    """

    text: str

    def __str__(self) -> str:
        return f"match:{self.text}"


Positions = str | int | slice | Match | Tensor


def includes_generated(positions: Positions) -> bool:
    """Whether tokens that do not exist yet are meant too."""
    if not isinstance(positions, str):
        return False
    return any(name in ("all", "generated", "answer") for name in _names(positions))


def resolve(positions: Positions, row: EncodedPrompt, number: int = 0) -> list[int]:
    """The tokens of one row that a position means, ascending, in unpadded coordinates.

    Example:
        >>> resolve("last", row)
        [42]

    Args:
        positions: see the table of this module.
        row: the encoded row.
        number: the row's place in the data, for bool masks.

    Raises:
        PositionError: unknown name, or a place outside the row.
    """
    if isinstance(positions, str):
        return sorted({i for name in _names(positions) for i in _named(name, row)})
    if isinstance(positions, Match):
        return row.overlapping(positions.text)
    if isinstance(positions, Tensor):
        return _masked(positions, row, number)
    if isinstance(positions, slice):
        return sorted(range(*positions.indices(len(row))))
    if not -len(row) <= positions < len(row):
        raise PositionError(f"position {positions} is outside a row of {len(row)} tokens{_who(row)}")
    return [positions % len(row)]


def resolve_nonempty(positions: Positions, row: EncodedPrompt, number: int = 0) -> list[int]:
    """Like `resolve`, but refuses a row in which nothing is meant."""
    found = resolve(positions, row, number)
    if not found:
        kinds = ", ".join(f"{s.kind} {s.start}:{s.end}" for s in row.spans)
        raise PositionError(
            f"position {describe(positions)} matches no token of the row{_who(row)}; it has {kinds}. "
            "`model.show_positions(prompt)` lists what each name means."
        )
    return found


def describe(positions: Positions) -> str:
    """A short name for tables: the name itself, `3`, `0:4`, `match:kill` or `mask`."""
    if isinstance(positions, Tensor):
        return "mask"
    if isinstance(positions, slice):
        step = () if positions.step is None else (positions.step,)
        return ":".join("" if x is None else str(x) for x in (positions.start, positions.stop, *step))
    return str(positions)


def position_key(positions: Positions) -> str:
    """Like `describe`, but different masks have different names: a key for what is computed once a position."""
    if not isinstance(positions, Tensor):
        return describe(positions)
    content = repr(tuple(positions.shape)).encode() + positions.cpu().contiguous().numpy().tobytes()
    return f"mask {hashlib.sha256(content).hexdigest()[:12]}"


def _names(positions: str) -> list[str]:
    names = positions.split("+")
    for name in names:
        if name not in NAMES and not _BEFORE_LAST.fullmatch(name) and not _OF_PROMPT.fullmatch(name):
            raise PositionError(
                f"unknown position {name!r}; expected one of {', '.join(NAMES)}, 'last-2', 'prompt[3]', a union "
                "such as 'last+generated', an int, a slice, Match(text) or a (B, T) bool tensor"
            )
    return names


def _named(name: str, row: EncodedPrompt) -> Sequence[int]:
    if name == "all":
        return range(len(row))
    if name == "prompt":
        return range(row.n_prompt)
    if _OF_PROMPT.fullmatch(name):
        place = int(name[len("prompt[") : -1])
        return [place] if place < row.n_prompt else []
    if name.startswith("last") and (name == "last" or _BEFORE_LAST.fullmatch(name)):
        place = row.n_prompt - 1 - int(name.removeprefix("last")[1:] or 0)
        return [place] if place >= 0 else []
    if name in ("generated", "answer"):
        return range(row.n_prompt, len(row))
    if name == "first_difference":
        return [row.first_difference] if row.first_difference is not None and row.first_difference < len(row) else []
    if name == "last_user":
        return row.kind("user")[-1:]
    if name in ("images", "text", "last_image", "after_image"):
        images = row.kind("image")
        if name == "text":
            return sorted(set(range(row.n_prompt)).difference(images))
        if name == "after_image":  # in a prompt that ends in a picture there is none: an answer's token is not meant
            return [i + 1 for i in images[-1:] if i + 1 < row.n_prompt]
        return images if name == "images" else images[-1:]
    return row.kind(name)


def _masked(mask: Tensor, row: EncodedPrompt, number: int) -> list[int]:
    if mask.dtype != torch.bool or mask.ndim != 2:
        raise PositionError(
            f"a position mask must be a bool tensor (rows, tokens), got {mask.dtype} {tuple(mask.shape)}"
        )
    if number >= mask.shape[0]:
        raise PositionError(f"the position mask has {mask.shape[0]} rows but there is a row {number}")
    found: list[int] = mask[number].nonzero().flatten().tolist()
    if found and found[-1] >= len(row):
        raise PositionError(
            f"the position mask marks token {found[-1]} of a row of {len(row)} tokens{_who(row)}; "
            "mask columns count unpadded tokens, the same under left and right padding"
        )
    return found


def _who(row: EncodedPrompt) -> str:
    return f" ({row.example_id!r})" if row.example_id else ""
