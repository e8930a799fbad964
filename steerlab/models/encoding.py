"""From prompts to token rows with known spans, and from rows to padded batches."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from steerlab._support.checks import as_whole, check_option, check_type, show
from steerlab._support.images import ImageInput
from steerlab.errors import DataError, EncodingError
from steerlab.models.template import Messages, render, starts_with_bos, with_images
from steerlab.models.vision import Vision

PaddingSide = Literal["left", "right", "aligned"]


class Span(NamedTuple):
    """Tokens `start` to `end` (exclusive, unpadded coordinates) are of one kind."""

    kind: str
    start: int
    end: int


@dataclass(frozen=True)
class EncodedPrompt:
    """One encoded row: its tokens, their text, and the spans of the conversation they belong to.

    Coordinates are those of the unpadded row, so they mean the same under left and right padding; `Batch` adds the
    offset of the row to get columns.

    Attributes:
        ids: token ids, prompt then answer, without padding.
        spans: spans of the kinds "system", "history" (earlier turns), "user" (the last user turn), "header" (the
            opening of the assistant turn), "answer" (a teacher-forced continuation), "image" (tokens that hold image
            features) and "template" (BOS and other marks outside any turn), in order.
        n_prompt: number of prompt tokens; the rest is the answer.
        text: the rendered text, prompt and answer.
        offsets: the characters `(start, end)` of `text` that each token covers.
        example_id: the id of the example.
        images: the images of the row, in the order of their tokens.
        first_difference: the first token of the answer that differs from the other answer of its contrast; None without
            one.
    """

    ids: tuple[int, ...]
    spans: tuple[Span, ...]
    n_prompt: int
    text: str
    offsets: tuple[tuple[int, int], ...]
    example_id: str = ""
    images: tuple[ImageInput, ...] = ()
    first_difference: int | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def head(self, n: int) -> EncodedPrompt:
        """The first `n` tokens of the row, at least one; later spans are dropped."""
        spans = tuple(Span(s.kind, s.start, min(s.end, n)) for s in self.spans if s.start < n)
        return replace(
            self, ids=self.ids[:n], spans=spans, n_prompt=min(self.n_prompt, n),
            text=self.text[: self.offsets[n - 1][1]], offsets=self.offsets[:n],
        )  # fmt: skip

    def kind(self, name: str) -> list[int]:
        """The tokens of one kind, in order."""
        return [i for span in self.spans if span.kind == name for i in range(span.start, span.end)]

    def overlapping(self, text: str) -> list[int]:
        """The tokens that share a character with any occurrence of `text`."""
        starts = [match.start() for match in re.finditer(f"(?={re.escape(text)})", self.text)] if text else []
        return [i for i, (a, b) in enumerate(self.offsets) if any(a < at + len(text) and b > at for at in starts)]


@dataclass(frozen=True)
class Batch:
    """Padded rows, ready for a model.

    Attributes:
        input_ids, attention_mask, position_ids: `(batch, tokens)` int64; position ids count real tokens from 0
            (PaliGemma: from 1).
        rows: the unpadded rows.
        offsets: the column of each row's first real token.
        extra: further inputs of an image-text model: pixels, and the type of each token.
        units: tiles (Qwen: patches) of each row's images; empty for a text-only model.
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
        """The column of the last prompt token of each row."""
        return tuple(offset + row.n_prompt - 1 for row, offset in zip(self.rows, self.offsets, strict=True))

    def columns(self, tokens: Sequence[Sequence[int]]) -> Bool[Tensor, "batch tokens"]:
        """A mask of the batch's columns, from unpadded tokens of each row."""
        mask = torch.zeros(self.input_ids.shape, dtype=torch.bool)
        for i, (row, offset) in enumerate(zip(tokens, self.offsets, strict=True)):
            mask[i, [offset + token for token in row]] = True
        return mask

    def select(self, keep: Sequence[int]) -> Batch:
        """Some of the rows, in the same columns, without their images."""
        ids, mask, position_ids = (t[list(keep)] for t in (self.input_ids, self.attention_mask, self.position_ids))
        return Batch(ids, mask, position_ids, tuple(self.rows[i] for i in keep), tuple(self.offsets[i] for i in keep))


def encode(
    tokenizer: PreTrainedTokenizerBase, prompt: str | Messages, *, answer: str | None = None,
    other_answer: str | None = None, end_turn: bool = False, system: str | None = None, chat: bool = True,
    example_id: str = "", limit: int | None = None, images: Sequence[ImageInput] = (), vision: Vision | None = None,
) -> EncodedPrompt:  # fmt: skip
    """Render one prompt (and a teacher-forced answer) into tokens with known spans.

    The answer is tokenized in its place behind the prompt, or by itself where it would change the prompt's tokens.
    These, and every state at and before `"last"`, are therefore the same with any answer and without one.

    Example:
        >>> row = encode(tokenizer, "Hi", answer="Hello!")
        >>> row.kind("answer")
        [31, 32]

    Args:
        tokenizer: a fast tokenizer.
        prompt: the user's text, or whole messages (`[{"role": ..., "content": ...}, ...]`, ending with the user).
        answer: continuation in the assistant turn.
        other_answer: the other answer of a contrast; it decides which token is `"first_difference"`.
        end_turn: also append what the template renders after a finished assistant message, the last one or, where it
            leaves that open, an earlier one.
        system: system message for a text prompt; None leaves the template's default.
        chat: use the chat template; otherwise the text is tokenized as it is.
        example_id: id of the example.
        limit: the model's context length in tokens.
        images: images; they come before the text, or where the prompt holds the model's image token.
        vision: the image processor of an image-text model.

    Raises:
        EncodingError: empty prompt, no template, more than `limit` tokens, or the number of images and image tokens
            differs.
        DataError: an image can't be read.
    """
    _check_arguments(prompt, chat, images, vision, example_id)
    for name, given in (("answer", answer), ("other_answer", other_answer), ("system", system)):
        check_type(name, given, (str, type(None)), "a text or None", EncodingError)
    if system is not None and not chat:
        raise EncodingError(f"without a chat template there is no place for system={system[:40]!r}: give system=None")
    text, bounds, opening, closing = str(prompt), [("user", 0)], "", ""
    if chat:
        turns = prompt if vision is None else with_images(prompt, len(images), vision.placeholder)
        text, bounds, opening, closing = render(tokenizer, turns, system, vision is not None)
    if vision is not None:
        text, bounds = vision.fill(text, bounds, images, example_id)
    special = (not chat or vision is not None) and not starts_with_bos(tokenizer, text)  # as processors do
    ids, offsets = _tokenize(tokenizer, text, special)
    spans = _spans(bounds, offsets, [] if vision is None else [i for i, t in enumerate(ids) if t == vision.token_id])
    n_prompt, first_difference = len(ids), None
    if answer is not None:
        header = text[bounds[-1][1] :] if bounds[-1][0] == "header" else ""
        if "<think>" in header and "</think>" not in header:
            warnings.warn(
                "the chat template opens a block of thoughts, so that answers are read as thoughts; a variable of the "
                "template may turn it off: chat_template = '{% set enable_thinking = false %}' + chat_template",
                stacklevel=2,
            )
        prompt_tokens = (tokenizer, text, ids, offsets, special)
        answer_text = opening + answer.removeprefix(opening) + (closing if end_turn else "")
        ids, offsets = _tokenize_answer(*prompt_tokens, answer_text)
        text += answer_text
        spans.append(Span("answer", n_prompt, len(ids)))
        if other_answer is not None:
            other_ids, _ = _tokenize_answer(*prompt_tokens, opening + other_answer.removeprefix(opening))
            first_difference = _first_difference(ids, other_ids, answer, other_answer)
    name = example_id or text[:40]
    if limit is not None and len(ids) > limit:
        raise EncodingError(f"the prompt {name!r} has {len(ids)} tokens; the model's context holds {limit}. Shorten it")
    if vision is not None:
        vision.check_count(ids, images, name)
    return EncodedPrompt(
        tuple(ids), tuple(spans), n_prompt, text, tuple(offsets), example_id, tuple(images), first_difference
    )


def single_token(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    """The id of a text that is one token.

    Raises:
        DataError: it is none or several.
    """
    ids = tokenizer(text, add_special_tokens=False).input_ids if isinstance(text, str) else []
    if len(ids) != 1:
        raise DataError(f"{show(text)} is {len(ids)} tokens of this model: give texts of one token each")
    return int(ids[0])


def collate(
    rows: Sequence[EncodedPrompt], pad_id: int, side: PaddingSide = "left", vision: Vision | None = None, first: int = 0
) -> Batch:
    """Pad rows to one width; position ids count real tokens on either side, from `first`.

    "aligned" pads prompts on the left and answers on the right, so that every prompt ends at the same column.
    """
    check_option("padding", side, ("left", "right", "aligned"), EncodingError)
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
    first = first if vision is None else vision.family.first_position
    batch = Batch(ids, mask, (mask.cumsum(1) - 1).clamp(min=0) + first, tuple(rows), offsets)
    if vision is None:
        return batch
    image_mask = batch.columns([row.kind("image") for row in rows]).long()
    answer_mask = batch.columns([range(row.n_prompt, len(row)) for row in rows]).long()
    expansions = [vision.expand(row.images) for row in rows]
    units = tuple(expansion.units for expansion in expansions)
    return replace(batch, extra=vision.inputs(expansions, image_mask, answer_mask), units=units)


def by_length(
    rows: Sequence[EncodedPrompt], batch_size: int, shapes: Sequence[tuple[int, ...]] | None = None
) -> Iterator[list[int]]:
    """Row numbers in batches of similar length, longest first: little padding, and memory runs out at once or never.

    Rows of a batch have the same shape, where `shapes` are given.
    """
    size = as_whole("batch_size", batch_size, error=EncodingError)
    groups: dict[tuple[int, ...], list[int]] = {}
    for i in sorted(range(len(rows)), key=lambda i: -len(rows[i])):
        groups.setdefault(shapes[i] if shapes else (), []).append(i)
    for group in groups.values():
        for start in range(0, len(group), size):
            yield group[start : start + size]


def _check_arguments(
    prompt: str | Messages, chat: bool, images: Sequence[ImageInput], vision: Vision | None, name: str
) -> None:
    if not isinstance(images, list | tuple):
        raise EncodingError(f"the images of {name!r} are {show(images)}: give a list, [image] for one")
    if images and vision is None:
        raise EncodingError(f"{name!r} comes with {len(images)} images, but this model reads text only: give it none")
    if not chat and not isinstance(prompt, str):
        need = "messages need a chat template; load the model with chat=True or pass plain text"
        raise EncodingError(f"the prompt is {show(prompt)}: {need}")
    if isinstance(prompt, str) and not prompt.strip():
        raise EncodingError(
            f"the prompt {name!r} is empty; a pair of whole texts has none: give steerlab.pairs(..., prompts=[...])"
        )


def _first_difference(ids: Sequence[int], other_ids: Sequence[int], answer: str, other_answer: str) -> int:
    for number, (token, other) in enumerate(zip(ids, other_ids, strict=False)):
        if token != other:
            return number
    raise EncodingError(f"the answers {answer!r} and {other_answer!r} never differ: one begins with the other's tokens")


def _tokenize(tok: PreTrainedTokenizerBase, text: str, special: bool) -> tuple[list[int], list[tuple[int, int]]]:
    if not getattr(tok, "is_fast", False):
        raise EncodingError(f"{type(tok).__name__} is not a fast tokenizer: it does not report token offsets")
    if broken := re.search("[\ud800-\udfff]", text):
        raise EncodingError(f"{text[:40]!r} holds {broken[0]!r}, a lone surrogate, which is no UTF-8: take it out")
    encoded: Any = tok(text, add_special_tokens=special, return_offsets_mapping=True)
    ids, offsets = list(encoded["input_ids"]), [tuple(pair) for pair in encoded["offset_mapping"]]
    while special and len(ids) > 1 and offsets[-1] == (0, 0):  # an end of the text, after which nothing would follow
        ids, offsets = ids[:-1], offsets[:-1]
    return ids, offsets


def _tokenize_answer(
    tok: PreTrainedTokenizerBase, text: str, ids: list[int], offsets: list[tuple[int, int]], special: bool, answer: str
) -> tuple[list[int], list[tuple[int, int]]]:
    """A prompt's tokens and an answer's, in its place: SentencePiece makes others of the answer alone.

    Where the answer would change the prompt's tokens, it is tokenized by itself.
    """
    whole, places = _tokenize(tok, text + answer, special)
    if whole[: len(ids)] == ids and places[len(ids) - 1][1] <= len(text):  # unknown characters may be one token
        return whole, places
    own, places = _tokenize(tok, answer, special=False)
    return ids + own, offsets + [(a + len(text), b + len(text)) for a, b in places]


def _spans(bounds: list[tuple[str, int]], offsets: list[tuple[int, int]], image_tokens: Sequence[int]) -> list[Span]:
    """Spans from the character at which each part begins; marks that the tokenizer adds (BOS, at 0:0) are "template".

    Other tokens can be empty too: many tokenizers trim spaces off the offsets, and a lone space keeps its place but no
    width.
    """
    kinds: list[str] = []
    for a, b in offsets:
        inside = [kind for kind, start in bounds if start <= a]
        kinds.append("template" if a == b == 0 or not inside else inside[-1])
    for i in image_tokens:
        kinds[i] = "image"
    spans: list[Span] = []
    for i, kind in enumerate(kinds):
        start = spans.pop().start if spans and spans[-1].kind == kind else i
        spans.append(Span(kind, start, i + 1))
    return spans
