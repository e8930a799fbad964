"""Positions: names for the tokens to read or to write.

| position | tokens |
|---|---|
| `"last"` | the last prompt token: its state predicts the first new token |
| `"last-2"` | the prompt token two places before it |
| `"prompt"` | every prompt token, template included |
| `"prompt[3]"` | token 3 of the prompt, counted from 0; none where the prompt is shorter |
| `"generated"` | new tokens while decoding; in a teacher-forced row, the tokens of the answer |
| `"answer"` | the same tokens as `"generated"`, named for teacher-forced rows |
| `"first_difference"` | in a row with one answer of a contrast, the first token that differs from the other answer |
| `"all"` | prompt and generated |
| `"system"`, `"history"`, `"user"`, `"header"` | the parts of the rendered conversation |
| `"last_user"` | the last token of the user turn, before the assistant header |
| `"images"` | the prompt tokens that hold image features; in the vision tower and the projector every patch |
| `"vectors"` | the same, for a model that reads scenes of object vectors |
| `"images[3]"`, `"vectors[3]"` | token 3 of these, counted from 0 |
| `"text"` | every other prompt token |
| `"last_image"`, `"after_image"` | the last token that holds an image feature, and the prompt token after it |
| `"last+generated"` | any union, joined by `+` |
| `3`, `-1`, `slice(0, 4)` | places in the unpadded row: of the prompt to steer, of prompt and answer to read |
| `Match("kill")` | the tokens that overlap this text, there too |
| a `(B, T)` bool tensor | row b, token t of the unpadded row, there too |

`"generated"` starts *after* the last prompt token, so it cannot change the first new token; `"last+generated"` can.
Where an answer is given (`score`, a dose), only names reach it: `generate` counts and matches before there is one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor

from steerlab._support.checks import show
from steerlab.errors import PositionError, SteerlabError
from steerlab.models.encoding import EncodedPrompt
from steerlab.models.template import Messages

if TYPE_CHECKING:
    from steerlab.models.model import Model

NAMES = (
    *("last", "prompt", "generated", "answer", "all", "system", "history", "user", "header", "last_user"),
    *("text", "images", "vectors", "last_image", "after_image", "first_difference"),
)

_LAST_K = re.compile(r"last-(\d+)")
_NUMBERED = re.compile(r"(prompt|images|vectors)\[(\d+)\]")


@dataclass(frozen=True)
class Match:
    """The tokens that overlap any occurrence of `text` in the rendered row; to steer, in the prompt.

    Example:
        >>> steerlab.steer(model, vector, positions=Match("Python"))
    """

    text: str

    def __str__(self) -> str:
        return f"match:{self.text}"


Positions = str | int | slice | Match | Tensor


def includes_generated(positions: Positions) -> bool:
    """Whether positions include tokens that are still to be generated."""
    if not isinstance(positions, str):
        return False
    return any(name in ("all", "generated", "answer") for name in _names(positions))


def resolve(positions: Positions, row: EncodedPrompt, number: int = 0) -> list[int]:
    """The tokens of one row at some positions, ascending, in unpadded coordinates.

    Example:
        >>> resolve("last", row)
        [42]

    Args:
        positions: see the table of this module.
        row: the encoded row.
        number: the row of a bool mask that belongs to it.

    Raises:
        PositionError: unknown name, or a place outside the row.
    """
    _check_position(positions)
    if isinstance(positions, str):
        return sorted({i for name in _names(positions) for i in _named(name, row)})
    if isinstance(positions, Match):
        return row.overlapping(positions.text)
    if isinstance(positions, Tensor):
        return _masked(positions, row, number)
    if isinstance(positions, slice):
        return sorted(range(*positions.indices(len(row))))
    if not -len(row) <= positions < len(row):
        what = "prompt" if len(row) == row.n_prompt else "row"
        raise PositionError(f"position {positions} is outside a {what} of {len(row)} tokens{_label(row)}")
    return [positions % len(row)]


def check_positions(
    given: Sequence[Positions], n_inputs: int, repeated_error: type[SteerlabError] = PositionError
) -> None:
    """Check some positions before they are used: what they are, that no two have one name, and the rows of masks.

    Raises:
        PositionError: names the position; `repeated_error` for two of one name.
    """
    for positions in given:
        _check_position(positions)
        if isinstance(positions, Tensor) and len(positions) != n_inputs:
            raise PositionError(f"the position mask has {len(positions)} rows, but there are {n_inputs} inputs")
    names = [describe(positions) for positions in given]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise repeated_error(
            f"the positions {repeated} were given more than once, and the result could not tell them apart. Give each "
            "once, and each mask by itself."
        )


def row_to_steer(positions: Positions, row: EncodedPrompt) -> EncodedPrompt:
    """Where places to steer are counted or matched: in the prompt, as in `generate`, which has no answer yet."""
    return row if isinstance(positions, str) or len(row) == row.n_prompt else row.head(row.n_prompt)


def resolve_nonempty(positions: Positions, row: EncodedPrompt, number: int = 0) -> list[int]:
    """Like `resolve`, but never empty.

    Raises:
        PositionError: no token of the row is at these positions.
    """
    found = resolve(positions, row, number)
    if not found:
        kinds = ", ".join(f"{s.kind} {s.start}:{s.end}" for s in row.spans)
        name = describe(positions)
        raise PositionError(
            f"position {name} matches no token of the row{_label(row)}; it has {kinds}. See `describe_positions`."
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
    """Like `describe`, but different for different masks: a key for what is computed once per position."""
    if not isinstance(positions, Tensor):
        return describe(positions)
    content = repr(tuple(positions.shape)).encode() + positions.cpu().contiguous().numpy().tobytes()
    return f"mask {hashlib.sha256(content).hexdigest()[:12]}"


def positions_table(model: Model, prompt: str | Messages, **options: Any) -> pd.DataFrame:
    """The tokens of a prompt and the positions that include them.

    Example:
        >>> table = positions_table(model, "How do I bake bread?")
        >>> table.loc[table["last"], "string"]

    Args:
        model: from `steerlab.load`.
        prompt: a text or messages.
        options: for `Model.encode`: `answer`, `images`, ...

    Returns:
        One row per token: `token`, `id`, `string`, `span`, and a bool column per position name.
    """
    row = model.encode(prompt, **options)
    tokens = range(len(row))
    kinds = [span.kind for span in row.spans for _ in range(span.start, span.end)]
    strings = [row.text[a:b] for a, b in row.offsets]
    table = pd.DataFrame({"token": tokens, "id": row.ids, "string": strings, "span": kinds})
    return table.assign(**{name: table["token"].isin(resolve(name, row)) for name in NAMES})


def describe_positions(model: Model, prompt: str | Messages, positions: Positions | None = None, **options: Any) -> str:
    """A text that lists the tokens of a prompt at some positions, to be printed.

    Example:
        >>> print(describe_positions(model, "How do I bake bread?", "last"))
        42 tokens: template 0:1, system 1:23, user 23:38, header 38:42
        last            1 token   41 'Ċ'

    Args:
        model: from `steerlab.load`.
        prompt: a text or messages.
        positions: which; None: every name.
        options: for `Model.encode`: `answer`, `images`, ...
    """
    row = model.encode(prompt, **options)
    lines = [f"{len(row)} tokens: " + ", ".join(f"{s.kind} {s.start}:{s.end}" for s in row.spans)]
    for position in NAMES if positions is None else (positions,):
        tokens = resolve(position, row)
        count = f"{len(tokens):>4} token{'' if len(tokens) == 1 else 's'}"
        text = " ".join(f"{i} {row.text[slice(*row.offsets[i])]!r}" for i in tokens[:12]) or "(none in this row)"
        more = f" ... and {len(tokens) - 12} more" if len(tokens) > 12 else ""
        lines.append(f"{describe(position):<12} {count:<11} {text}{more}")
    return "\n".join(lines)


# a color for each span, readable on white and on black; the names stand below
_COLORS = {
    "system": "#4c8dd6", "history": "#2a9d9d", "user": "#c561b5", "header": "#b8860b", "image": "#5a9e3a",
    "answer": "#d2691e",
}  # fmt: skip


def print_positions(model: Model, prompt: str | Messages, positions: Positions | None = None, **options: Any) -> None:
    """Print what `describe_positions` returns; in a terminal and in a notebook below the prompt, whose tokens have a
    color for their span, and are reversed at `positions`.

    Example:
        >>> model.show_positions("How do I bake bread?", "last+generated")

    Args:
        model, prompt, positions, options: as in `describe_positions`.
    """
    from rich.console import Console
    from rich.text import Text

    lines = describe_positions(model, prompt, positions, **options)
    console = Console(highlight=False, soft_wrap=True)
    if not (console.is_terminal or console.is_jupyter):
        console.print(lines, markup=False, emoji=False)
        return
    row, shown = model.encode(prompt, **options), Text()
    chosen = set() if positions is None else set(resolve(positions, row))
    for span in row.spans:
        for i in range(span.start, span.start + 1 if span.kind == "image" else span.end):  # images have hundreds
            style = _COLORS.get(span.kind, "dim") + " reverse" * (i in chosen)
            text = row.text[slice(*row.offsets[i])].replace("\n", "⏎\n")
            shown.append(f"[{span.end - span.start} tokens]" if span.kind == "image" else text, style=style)
    legend = Text(lines)
    for kind, color in _COLORS.items():
        legend.highlight_regex(rf"(?m)\b{kind}(?= \d+:\d)|^{kind}\b", color)
    console.print(shown, legend, sep="\n")


def _names(positions: str) -> list[str]:
    names = positions.split("+")
    for name in names:
        if name not in NAMES and not _LAST_K.fullmatch(name) and not _NUMBERED.fullmatch(name):
            raise PositionError(
                f"unknown position {name!r}; expected one of {', '.join(NAMES)}, 'last-2', 'prompt[3]', 'images[3]', a "
                "union such as 'last+generated', an int, a slice, Match(text) or a (B, T) bool tensor"
            )
    return names


def _check_position(positions: object) -> None:
    if isinstance(positions, slice):
        parts = (positions.start, positions.stop, positions.step)
        valid = all(part is None or _is_whole(part) for part in parts) and positions.step != 0
    elif isinstance(positions, Match):
        valid = isinstance(positions.text, str)
    else:
        valid = isinstance(positions, str | Tensor) or _is_whole(positions)
    if not valid:
        raise PositionError(
            f"the position is {show(positions)}: expected a name such as 'last', a whole number, a slice of whole "
            "numbers, Match(text) or a (rows, tokens) bool tensor"
        )
    if isinstance(positions, Tensor) and (positions.dtype != torch.bool or positions.ndim != 2):
        shape = tuple(positions.shape)
        raise PositionError(f"a position mask must be a bool tensor (rows, tokens), got {positions.dtype} {shape}")


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _named(name: str, row: EncodedPrompt) -> Sequence[int]:
    prompt = range(row.n_prompt)
    if match := _NUMBERED.fullmatch(name):
        return _named(match[1], row)[int(match[2]) :][:1]
    if match := _LAST_K.fullmatch(name):
        return [k for k in [row.n_prompt - 1 - int(match[1])] if k >= 0]
    if name == "first_difference":
        return [k for k in [row.first_difference] if k is not None and k < len(row)]
    if name == "vectors":  # scenes of object vectors are the images of a model that reads them
        name = "images"
    if name in ("images", "text", "last_image", "after_image"):
        return _around_images(name, row.kind("image"), prompt)
    tokens: dict[str, Sequence[int]] = {
        "all": range(len(row)),
        "prompt": prompt,
        "last": prompt[-1:],
        "generated": range(row.n_prompt, len(row)),
        "answer": range(row.n_prompt, len(row)),
        "last_user": row.kind("user")[-1:],
    }
    return tokens[name] if name in tokens else row.kind(name)


def _around_images(name: str, images: list[int], prompt: range) -> Sequence[int]:
    if name == "text":
        return sorted(set(prompt).difference(images))
    if name == "after_image":  # where the prompt ends in an image there is none, not the first token of the answer
        return [i + 1 for i in images[-1:] if i + 1 in prompt]
    return images if name == "images" else images[-1:]


def _masked(mask: Tensor, row: EncodedPrompt, number: int) -> list[int]:
    if number >= mask.shape[0]:
        raise PositionError(f"the position mask has {mask.shape[0]} rows but there is a row {number}")
    found: list[int] = mask[number].nonzero().flatten().tolist()
    if found and found[-1] >= len(row):
        where = f"token {found[-1]} of a row of {len(row)} tokens{_label(row)}"
        raise PositionError(f"the position mask marks {where}; mask columns count tokens without padding")
    return found


def _label(row: EncodedPrompt) -> str:
    return f" ({row.example_id!r})" if row.example_id else ""
