"""The model inputs of a capture and the tokens to capture in each, planned before the first forward."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, SupportsIndex

import pandas as pd
import torch
from torch import Tensor

from steerlab._support.checks import check_type, show
from steerlab._support.images import ImageInput
from steerlab.capturing.activations import INDEX_COLUMNS
from steerlab.data.example import Example
from steerlab.errors import DataError, LayoutError, PositionError
from steerlab.models.encoding import Batch, EncodedPrompt
from steerlab.models.kv_prefix import long_rotation_from
from steerlab.models.model import Model
from steerlab.models.positions import Positions, check_positions, describe, resolve_nonempty
from steerlab.models.sites import Site
from steerlab.models.template import Messages, with_suffix

Reduce = Literal["mean", "none"]
Layers = Literal["all"] | SupportsIndex | Sequence[SupportsIndex | Site]
Encoded = Mapping[str, EncodedPrompt]


@dataclass(frozen=True)
class CaptureRow:
    """One input of the model and the groups of tokens to capture; each group becomes one row of activations.

    Attributes:
        prompt: the encoded input.
        groups: token numbers, one tuple per row of activations; empty tuples for patches of the vision tower.
        labels: the index columns of each group.
    """

    prompt: EncodedPrompt
    groups: tuple[tuple[int, ...], ...]
    labels: tuple[dict[str, Any], ...]


def as_sites(layers: Layers, model: Model) -> tuple[Site, ...]:
    """The sites of `layers` in this model, ascending and without duplicates; all in one part of the model."""
    chosen: Any = range(model.n_layers) if isinstance(layers, str) and layers == "all" else layers
    chosen = getattr(chosen, "tolist", lambda: chosen)()  # of an array or a tensor
    if isinstance(chosen, str | bytes | Mapping):
        raise LayoutError(f"layers={show(layers)}: expected 'all', a layer number, or numbers and Sites")
    given = list(chosen) if isinstance(chosen, Iterable) else [chosen]
    if not given:
        raise LayoutError("layers is empty: nothing to capture")
    sites = tuple(sorted({model.site(x) for x in given}))
    parts = sorted({site.state_kind for site in sites})
    if len(parts) > 1:
        raise LayoutError(
            f"layers has sites in the {' and the '.join(parts)}, whose states differ in meaning and width; capture "
            "each part separately"
        )
    return sites


def plan_rows(
    model: Model, examples: Sequence[Example], positions: Sequence[Positions], context: Sequence[Positions],
    reduce: Reduce, extra_prompts: Sequence[str] | None = None, encoded: Encoded | None = None,
) -> list[CaptureRow]:  # fmt: skip
    """The inputs to run: both answers of each contrast with `positions`, every plain prompt with `context`, and, with
    the positions of the plain prompt, the extra prompts (those named; None: all).

    Without `positions`, each contrast has its default position, and prompts without any contrast "last". If the
    contrast has answers without a suffix, the plain prompt is the beginning of its positive input and, by causality,
    has the same states (unless LongRoPE rotates the longer row otherwise): the context is then captured there, which
    saves a forward. `encoded` holds plain prompts by example id that are encoded already. Pairs of whole texts have no
    plain prompt.
    """
    for given in (positions, context):
        check_positions(given, len(examples))
    rows: list[CaptureRow] = []
    has_contrasts = any(example.contrast for example in examples)
    rotated_from = long_rotation_from(model.hf.config.get_text_config())
    for number, example in enumerate(examples):
        pair = example.contrast
        at = positions or [pair.position if pair else "last"]
        if pair is not None and pair.whole_texts:
            for side in ("positive", "negative"):
                text = model.encode(getattr(pair, side), chat=False, example_id=example.id)
                rows.append(_row(example, number, text, {side: at}, reduce))
            continue
        plain = context if has_contrasts else at
        named = _select_prompts(example, extra_prompts) if plain else {}
        has_own_row = pair is None or pair.instructions
        inputs = [(encode_example(model, example, prompt), {name: plain}) for name, prompt in named.items()]
        if pair is not None and pair.instructions:
            for side, added in (("positive", pair.positive), ("negative", pair.negative)):
                inputs.append((encode_example(model, example, with_suffix(example.prompt, added)), {side: at}))
        elif pair is not None and pair.images:
            inputs.append((encode_example(model, example, example.prompt, pair.images), {"positive": at}))
            inputs.append((_encode_plain(model, example, encoded), {"negative": at, "prompt": plain}))
        elif pair is not None:
            row = encode_answer(model, example, "positive", at)
            has_own_row = bool(pair.suffix) or len(row) > (rotated_from or len(row)) >= row.n_prompt
            inputs.append((row, {"positive": at} if has_own_row else {"positive": at, "prompt": context}))
            inputs.append((encode_answer(model, example, "negative", at), {"negative": at}))
        if plain and has_own_row:
            inputs.append((_encode_plain(model, example, encoded), {"prompt": plain}))
        rows += [_row(example, number, prompt, sides, reduce) for prompt, sides in inputs]
    return rows


def plan_image_rows(
    model: Model, examples: Sequence[Example], positions: Sequence[Positions], encoded: Encoded | None = None
) -> list[CaptureRow]:
    """One input per example, its plain prompt, whose images are the same with both answers of a contrast; or both sides
    of a contrast of images.

    Raises:
        PositionError: another position than "images", or an example without images.
    """
    if unknown := [describe(position) for position in positions if describe(position) not in ("images", "vectors")]:
        raise PositionError(
            f"positions={unknown}: states of the vision tower and the projector belong to images, not to tokens; the "
            "only position there is 'images'"
        )
    rows = []
    for number, example in enumerate(examples):
        if not example.images:
            raise PositionError(f"{example.id!r} has no image, so there is nothing to capture at a vision site")
        inputs = {"prompt": _encode_plain(model, example, encoded)}
        if example.contrast and example.contrast.images:
            wanted = encode_example(model, example, example.prompt, example.contrast.images)
            inputs = {"positive": wanted, "negative": inputs["prompt"]}
        for side, row in inputs.items():
            rows.append(CaptureRow(row, ((),), (index_labels(example, number, side, "images"),)))
    return rows


def _select_prompts(example: Example, names: Sequence[str] | None) -> dict[str, str]:
    """The extra prompts of an example with these names; None: all."""
    given = example.extra_prompts
    check_type("extra_prompts", names, (list, tuple, type(None)), "a list of names, or None for all")
    if missing := [name for name in names or () if name not in given]:
        raise DataError(
            f"{example.id!r} has no extra prompt {missing[0]!r}, it has {sorted(given)}: give "
            f"Example(extra_prompts={{{missing[0]!r}: ...}})"
        )
    return {name: given[name] for name in (given if names is None else names)}


def encode_example(
    model: Model, example: Example, prompt: str | Messages, images: Sequence[ImageInput] | None = None, **options: Any
) -> EncodedPrompt:  # fmt: skip
    """A prompt of an example, with the example's images or others in their place."""
    given = example.images if images is None else images
    return model.encode(prompt, system=example.system, example_id=example.id, images=given, **options)


def _encode_plain(model: Model, example: Example, encoded: Encoded | None) -> EncodedPrompt:
    return encoded[example.id] if encoded else encode_example(model, example, example.prompt)


def encode_answer(model: Model, example: Example, side: str, positions: Sequence[Positions] = ()) -> EncodedPrompt:
    """The prompt of an example with the answer of one side of its contrast, which is a pair of answers."""
    pair = example.contrast
    assert pair is not None
    answer, other = (pair.positive, pair.negative) if side == "positive" else (pair.negative, pair.positive)
    # the other answer only where its position is asked for: the answers of a contrast may never differ in a token
    compared = other if any("first_difference" in str(position) for position in positions) else None
    prompt = with_suffix(example.prompt, pair.suffix)
    return encode_example(model, example, prompt, answer=answer, other_answer=compared, end_turn=pair.end_turn)


def _row(
    example: Example, number: int, prompt: EncodedPrompt, sides: Mapping[str, Sequence[Positions]], reduce: Reduce
) -> CaptureRow:
    plain = prompt.head(prompt.n_prompt)  # a position of the plain prompt must not match a word of the answer
    groups: list[tuple[int, ...]] = []
    labels: list[dict[str, Any]] = []
    for side, positions in sides.items():
        for position in positions:
            tokens = resolve_nonempty(position, prompt if side in ("positive", "negative") else plain, number)
            for group in [tuple(tokens)] if reduce == "mean" else [(t,) for t in tokens]:
                column, token = (group[0], prompt.ids[group[0]]) if len(group) == 1 else (-1, -1)
                where = {"column": column, "token": token, "n_tokens": len(group)}
                groups.append(group)
                labels.append(index_labels(example, number, side, position) | where)
    return CaptureRow(prompt, tuple(groups), tuple(labels))


def index_labels(example: Example, number: int, side: str, position: Positions) -> dict[str, Any]:
    """The index columns of a group of tokens of an example, with its number as `order`."""
    return {
        "example_id": example.id, "side": side, "position": describe(position), "behavior": example.behavior,
        "split": example.split, "token": -1, "order": number,
    }  # fmt: skip


@dataclass(frozen=True)
class TokenSelector:
    """Selects token groups from the states of a batch, on the device, and averages each group.

    Only the selected tokens are read, so the states of padding tokens cannot affect the result.

    Attributes:
        rows, columns: of every token to read, group after group.
        lengths: number of tokens of each group.
        dtype: of the result.
    """

    rows: Tensor
    columns: Tensor
    lengths: Tensor
    dtype: torch.dtype

    @classmethod
    def of(cls, rows: Sequence[CaptureRow], batch: Batch, dtype: torch.dtype, device: torch.device) -> TokenSelector:
        """The selector of a batch."""
        flat = [
            (i, offset + token)
            for i, (row, offset) in enumerate(zip(rows, batch.offsets, strict=True))
            for group in row.groups
            for token in group
        ]
        numbers, columns = torch.tensor(flat, device=device).T
        lengths = torch.tensor([len(group) for row in rows for group in row.groups], device=device)
        return cls(numbers, columns, lengths, dtype)

    def __call__(self, h: Tensor) -> Tensor:
        """`(batch, tokens, hidden)` to `(group, hidden)`."""
        tokens = h[self.rows.to(h.device), self.columns.to(h.device)]
        if len(self.lengths) == len(self.rows):
            return tokens.to(self.dtype)
        return torch.segment_reduce(tokens.float(), "mean", lengths=self.lengths.to(h.device)).to(self.dtype)

    def row(self, number: int, start: int) -> tuple[TokenSelector, Tensor]:
        """The selector of one row whose first column is `start`, and the numbers of its groups."""
        group = torch.arange(len(self.lengths), device=self.lengths.device).repeat_interleave(self.lengths)
        inside = self.rows == number
        groups = group[inside].unique_consecutive()
        columns = self.columns[inside] - start
        return TokenSelector(torch.zeros_like(columns), columns, self.lengths[groups], self.dtype), groups


def index_frame(rows: Sequence[CaptureRow], patches: Sequence[int], reduce: Reduce) -> pd.DataFrame:
    """The index of the rows' token groups, or of their patches, with the number of the example as the column `order`.

    `patches` is the number of patches of each row of a vision site; empty for tokens.
    """
    labels = [label for row in rows for label in row.labels]
    if patches:
        columns = [(label, n, range(n)) for label, n in zip(labels, patches, strict=True)]
        if reduce == "mean":
            labels = [label | {"column": -1, "n_tokens": n} for label, n, _ in columns]
        else:
            labels = [label | {"column": i, "n_tokens": 1} for label, _, numbers in columns for i in numbers]
    return pd.DataFrame(labels)[[*INDEX_COLUMNS, "order"]]
