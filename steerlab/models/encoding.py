"""From prompts to token rows with known spans, and from rows to padded batches."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Int
from PIL.Image import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from steerlab._support.errors import EncodingError
from steerlab._support.images import ImageInput, ZippedImage
from steerlab.models.encoded_prompt import EncodedPrompt, Span
from steerlab.models.template import Messages, render, starts_with_bos
from steerlab.models.vision import Vision

PaddingSide = Literal["left", "right", "aligned"]


@dataclass(frozen=True)
class Batch:
    """Padded rows, ready for a model.

    Attributes:
        input_ids, attention_mask, position_ids: `(batch, tokens)` int64; position ids count real tokens from 0
            (PaliGemma: from 1).
        rows: the unpadded rows.
        offsets: the column of each row's first real token.
        extra: what an image-text model takes besides: pixels, and which tokens are what.
        units: how many tiles (Qwen: patches) each row's pictures are cut into; empty for a text-only model.
    """

    input_ids: Int[Tensor, "batch tokens"]
    attention_mask: Int[Tensor, "batch tokens"]
    position_ids: Int[Tensor, "batch tokens"]
    rows: tuple[EncodedPrompt, ...]
    offsets: tuple[int, ...]
    extra: dict[str, Tensor] = field(default_factory=dict)
    units: tuple[int, ...] = ()

    @property
    def width(self) -> int:
        """Columns, padding included."""
        return self.input_ids.shape[1]

    @property
    def last_prompt_columns(self) -> tuple[int, ...]:
        """The column of every row's last prompt token."""
        return tuple(offset + row.n_prompt - 1 for row, offset in zip(self.rows, self.offsets, strict=True))

    def columns(self, tokens: Sequence[Sequence[int]]) -> Bool[Tensor, "batch tokens"]:
        """A mask of the batch's columns from each row's unpadded tokens."""
        mask = torch.zeros(self.input_ids.shape, dtype=torch.bool)
        for i, (row, offset) in enumerate(zip(tokens, self.offsets, strict=True)):
            mask[i, [offset + token for token in row]] = True
        return mask


def encode(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | Messages,
    *,
    answer: str | None = None,
    other_answer: str | None = None,
    end_turn: bool = False,
    system: str | None = None,
    chat: bool = True,
    example_id: str = "",
    limit: int | None = None,
    images: Sequence[ImageInput] = (),
    vision: Vision | None = None,
) -> EncodedPrompt:
    """Render one prompt (and a teacher-forced answer) into tokens with known spans.

    The answer is tokenized by itself and appended, so that the prompt's tokens, and with them every state at and
    before `"last"`, are the same with any answer and without one.

    Example:
        >>> row = encode(tokenizer, "Hi", answer="Hello!")
        >>> row.kind("answer")
        [31, 32]

    Args:
        tokenizer: a fast tokenizer.
        prompt: the user's text, or whole messages (`[{"role": ..., "content": ...}, ...]`, ending with the user).
        answer: continuation in the assistant turn.
        other_answer: the other answer of the same contrast; it only decides which token is `"first_difference"`.
        end_turn: also append what the template renders after a finished assistant message.
        system: system message for a text prompt; None leaves the template's own default.
        chat: use the chat template; otherwise the text is tokenized as it is.
        example_id: id to carry along.
        limit: the model's context length in tokens.
        images: pictures; they come before the text, or where the prompt holds the model's image token.
        vision: what knows how pictures become tokens, for an image-text model.

    Raises:
        EncodingError: empty prompt, no template, more than `limit` tokens, or not one image token for each picture.
        DataError: a picture can't be read.
    """
    if isinstance(images, str | os.PathLike | Image | ZippedImage):
        raise EncodingError(
            f"the pictures of {example_id!r} are one {type(images).__name__}: give a list, [picture] for one"
        )
    if images and vision is None:
        raise EncodingError(
            f"the prompt {example_id!r} comes with {len(images)} pictures, but this model reads text only: load an "
            "image-text model with its processor"
        )
    if not chat and not isinstance(prompt, str):
        raise EncodingError("messages need a chat template; load the model with chat=True or pass plain text")
    if isinstance(prompt, str) and not prompt.strip():
        raise EncodingError(f"the prompt {example_id!r} is empty")
    if chat:
        asked = prompt if vision is None else with_images(prompt, len(images), vision.placeholder)
        text, bounds, closing = render(tokenizer, asked, system)
    else:
        assert isinstance(prompt, str)
        text, bounds, closing = prompt, [("user", 0)], ""
    if vision is not None:
        text, bounds = vision.fill(text, bounds, images, example_id)
    ids, offsets = _tokenize(tokenizer, text, special=not chat and not starts_with_bos(tokenizer, text))
    spans = _spans(bounds, offsets, [] if vision is None else [i for i, t in enumerate(ids) if t == vision.token_id])
    n_prompt, first_difference = len(ids), None
    if answer is not None:
        tail, places = _tokenize(tokenizer, answer + (closing if end_turn else ""), special=False)
        ids, offsets = ids + tail, offsets + [(a + len(text), b + len(text)) for a, b in places]
        text += answer + (closing if end_turn else "")
        spans.append(Span("answer", n_prompt, len(ids)))
        first_difference = None if other_answer is None else n_prompt + _parting(tokenizer, tail, other_answer, answer)
    if limit is not None and len(ids) > limit:
        raise EncodingError(
            f"the prompt {example_id or text[:40]!r} has {len(ids)} tokens; the model's context holds {limit}. "
            "Shorten it: steerlab never truncates silently."
        )
    if vision is not None:
        _check_pictures(vision, ids, images, example_id or text[:40])
    return EncodedPrompt(
        tuple(ids), tuple(spans), n_prompt, text, tuple(offsets), example_id, tuple(images), first_difference
    )


def _parting(tokenizer: PreTrainedTokenizerBase, tail: Sequence[int], other_answer: str, answer: str) -> int:
    """The first token of an answer that its rival does not share."""
    other = _tokenize(tokenizer, other_answer, special=False)[0]
    parts = [i for i, (a, b) in enumerate(zip(tail, other, strict=False)) if a != b]
    if not parts:
        raise EncodingError(
            f"the answers {answer!r} and {other_answer!r} never part: the tokens of one are the beginning of "
            f"the other's. "
            "Give answers that differ at some token."
        )
    return parts[0]


def _check_pictures(vision: Vision, ids: Sequence[int], images: Sequence[ImageInput], name: str) -> None:
    """One image token for each feature, or features would go to the wrong tokens."""
    found, wanted = sum(t == vision.token_id for t in ids), vision.tokens(images)
    if found < wanted:
        raise EncodingError(
            f"the tokenizer dropped {wanted - found} of the {wanted} image tokens of {name!r}; switch its "
            "truncation off"
        )
    if found > wanted:
        raise EncodingError(
            f"the text of {name!r} holds {found - wanted} image tokens ({vision.token}) besides those of its "
            f"{len(images)} pictures: take them out"
        )


def with_images(prompt: str | Messages, n: int, placeholder: str) -> Messages:
    """Messages whose contents are lists of parts, with `n` pictures before the last text if nothing marks their place.

    Templates of image-text models expect such lists: some drop plain strings without a word.
    """
    turns: list[dict[str, Any]] = (
        [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(m) for m in prompt]
    )
    for turn in turns:
        if isinstance(turn["content"], str):
            turn["content"] = [{"type": "text", "text": turn["content"]}]
    parts = [part for turn in turns for part in turn["content"]]
    marked = sum(p["type"] == "image" or placeholder in p.get("text", "") for p in parts)
    if n and turns and not marked:
        turns[-1]["content"] = [{"type": "image"}] * n + turns[-1]["content"]
    return turns


def collate(
    rows: Sequence[EncodedPrompt], pad_id: int, side: PaddingSide = "left", vision: Vision | None = None
) -> Batch:
    """Pad rows to one width; position ids count real tokens on either side.

    "aligned" pads prompts on the left and answers on the right, so that every prompt ends at the same column.
    """
    longest = max(row.n_prompt for row in rows)
    answers = max(len(row) - row.n_prompt for row in rows)
    width = longest + answers if side == "aligned" else max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    shift = {"left": lambda r: width - len(r), "right": lambda r: 0, "aligned": lambda r: longest - r.n_prompt}[side]
    offsets = tuple(shift(row) for row in rows)
    for i, (row, offset) in enumerate(zip(rows, offsets, strict=True)):
        ids[i, offset : offset + len(row)] = torch.tensor(row.ids)
        mask[i, offset : offset + len(row)] = 1
    first = 0 if vision is None else vision.first_position
    batch = Batch(ids, mask, (mask.cumsum(1) - 1).clamp(min=0) + first, tuple(rows), offsets)
    if vision is None:
        return batch
    images = batch.columns([row.kind("image") for row in rows]).long()
    forced = batch.columns([range(row.n_prompt, len(row)) for row in rows]).long()
    seen = [vision.expand(row.images) for row in rows]
    units = tuple(expansion.units for expansion in seen)
    return replace(batch, extra=vision.inputs(seen, images, forced), units=units)


def by_length(rows: Sequence[EncodedPrompt], batch_size: int) -> Iterator[list[int]]:
    """Row numbers in batches of similar length, longest first: little padding, and memory runs out at once or never."""
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def _tokenize(tok: PreTrainedTokenizerBase, text: str, special: bool) -> tuple[list[int], list[tuple[int, int]]]:
    if not getattr(tok, "is_fast", False):
        raise EncodingError(f"{type(tok).__name__} is not a fast tokenizer, so its tokens' places are unknown")
    encoded: Any = tok(text, add_special_tokens=special, return_offsets_mapping=True)
    return list(encoded["input_ids"]), [tuple(pair) for pair in encoded["offset_mapping"]]


def _spans(bounds: list[tuple[str, int]], offsets: list[tuple[int, int]], images: Sequence[int] = ()) -> list[Span]:
    """Spans from the characters at which each part begins; marks the tokenizer adds (BOS, at 0:0) are "template".

    A token can be without characters elsewhere too: many tokenizers trim spaces off the offsets, and a lone space
    keeps its place but no width.
    """
    kinds: list[str] = []
    for a, b in offsets:
        inside = [kind for kind, start in bounds if start <= a]
        kinds.append("template" if a == b == 0 or not inside else inside[-1])
    for i in images:
        kinds[i] = "image"
    spans: list[Span] = []
    for i, kind in enumerate(kinds):
        if spans and spans[-1].kind == kind:
            spans[-1] = Span(kind, spans[-1].start, i + 1)
        else:
            spans.append(Span(kind, i, i + 1))
    return spans
