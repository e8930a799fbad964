"""From prompts to token rows with known spans, and from rows to padded batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Int
from jinja2 import TemplateError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from steerlab._support.errors import EncodingError
from steerlab.models.tokenmap import Span, TokenMap

Messages = Sequence[Mapping[str, str]]
Side = Literal["left", "right"]


@dataclass(frozen=True)
class Batch:
    """Padded rows, ready for a model.

    Attributes:
        input_ids, attention_mask, position_ids: `(batch, tokens)` int64; position ids count real tokens from 0.
        rows: the unpadded rows.
        offsets: the column of each row's first real token.
    """

    input_ids: Int[Tensor, "batch tokens"]
    attention_mask: Int[Tensor, "batch tokens"]
    position_ids: Int[Tensor, "batch tokens"]
    rows: tuple[TokenMap, ...]
    offsets: tuple[int, ...]

    @property
    def width(self) -> int:
        """Columns, padding included."""
        return self.input_ids.shape[1]

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
    closed: bool = False,
    system: str | None = None,
    chat: bool = True,
    sample: str = "",
    limit: int | None = None,
) -> TokenMap:
    """Render one prompt (and a teacher-forced answer) into tokens with known spans.

    The answer is tokenised by itself and appended, so that the prompt's tokens, and with them every state at and
    before `"last"`, are the same with any answer and without one.

    Example:
        >>> row = encode(tokenizer, "Hi", answer="Hello!")
        >>> row.kind("answer")
        [31, 32]

    Args:
        tokenizer: a fast tokenizer.
        prompt: the user's text, or whole messages (`[{"role": ..., "content": ...}, ...]`, ending with the user).
        answer: continuation in the assistant turn.
        closed: also append what the template renders after a finished assistant message.
        system: system message for a text prompt; None leaves the template's own default.
        chat: use the chat template; otherwise the text is tokenised as it is.
        sample: id to carry along.
        limit: the model's context length in tokens.

    Raises:
        EncodingError: empty prompt, no template, or more than `limit` tokens.
    """
    if not chat and not isinstance(prompt, str):
        raise EncodingError("messages need a chat template; load the model with chat=True or pass plain text")
    if isinstance(prompt, str) and not prompt.strip():
        raise EncodingError(f"the prompt {sample!r} is empty")
    if chat:
        text, bounds, closing = _render(tokenizer, prompt, system)
    else:
        assert isinstance(prompt, str)
        text, bounds, closing = prompt, [("user", 0)], ""
    ids, offsets = _tokenise(tokenizer, text, special=not chat and not _starts_with_bos(tokenizer, text))
    spans = _spans(bounds, offsets)
    n_prompt = len(ids)
    if answer is not None:
        tail, places = _tokenise(tokenizer, answer + (closing if closed else ""), special=False)
        ids, offsets = ids + tail, offsets + [(a + len(text), b + len(text)) for a, b in places]
        text += answer + (closing if closed else "")
        spans.append(Span("answer", n_prompt, len(ids)))
    if limit is not None and len(ids) > limit:
        raise EncodingError(
            f"the prompt {sample or text[:40]!r} has {len(ids)} tokens; the model's context holds {limit}. "
            "Shorten it: steerlab never truncates silently."
        )
    return TokenMap(tuple(ids), tuple(spans), n_prompt, text, tuple(offsets), sample)


def collate(rows: Sequence[TokenMap], pad_id: int, side: Side = "left") -> Batch:
    """Pad rows to one width; position ids count real tokens from 0 on either side."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    offsets = tuple(width - len(row) if side == "left" else 0 for row in rows)
    for i, (row, offset) in enumerate(zip(rows, offsets, strict=True)):
        ids[i, offset : offset + len(row)] = torch.tensor(row.ids)
        mask[i, offset : offset + len(row)] = 1
    return Batch(ids, mask, (mask.cumsum(1) - 1).clamp(min=0), tuple(rows), offsets)


def by_length(rows: Sequence[TokenMap], batch_size: int) -> Iterator[list[int]]:
    """Row numbers in batches of similar length, longest first: little padding, and memory runs out at once or never."""
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def _tokenise(tok: PreTrainedTokenizerBase, text: str, special: bool) -> tuple[list[int], list[tuple[int, int]]]:
    if not getattr(tok, "is_fast", False):
        raise EncodingError(f"{type(tok).__name__} is not a fast tokenizer, so its tokens' places are unknown")
    encoded: Any = tok(text, add_special_tokens=special, return_offsets_mapping=True)
    return list(encoded["input_ids"]), [tuple(pair) for pair in encoded["offset_mapping"]]


def _starts_with_bos(tok: PreTrainedTokenizerBase, text: str) -> bool:
    bos = tok.bos_token
    return isinstance(bos, str) and text.startswith(bos)


def _spans(bounds: list[tuple[str, int]], offsets: list[tuple[int, int]]) -> list[Span]:
    """Spans from the characters at which each part begins; marks the tokenizer adds (BOS, at 0:0) are "template".

    A token can be without characters elsewhere too: many tokenizers trim spaces off the offsets, and a lone space
    keeps its place but no width.
    """
    kinds: list[str] = []
    for a, b in offsets:
        inside = [kind for kind, start in bounds if start <= a]
        kinds.append("template" if a == b == 0 or not inside else inside[-1])
    spans: list[Span] = []
    for i, kind in enumerate(kinds):
        if spans and spans[-1].kind == kind:
            spans[-1] = Span(kind, spans[-1].start, i + 1)
        else:
            spans.append(Span(kind, i, i + 1))
    return spans


def _render(
    tok: PreTrainedTokenizerBase, prompt: str | Messages, system: str | None
) -> tuple[str, list[tuple[str, int]], str]:
    """The rendered text, where each part begins, and what the template puts after a finished answer."""
    if tok.chat_template is None:
        raise EncodingError(
            f"the tokenizer {tok.name_or_path!r} has no chat template; load the model with chat=False for plain text"
        )
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(m) for m in prompt]
    if not messages or messages[-1]["role"] != "user":
        raise EncodingError("messages must end with the user's turn; pass the assistant's words as `answer`")
    if system is not None:
        messages = [{"role": "system", "content": system}, *messages]

    def text_of(turns: list[dict[str, str]], opened: bool = False) -> str:
        try:
            return str(tok.apply_chat_template(turns, tokenize=False, add_generation_prompt=opened))
        except TemplateError as error:
            raise EncodingError(f"the chat template refuses this conversation: {error}") from error

    closed, opened = text_of(messages), text_of(messages, opened=True)
    if not opened.startswith(closed):
        raise EncodingError("this chat template rewrites the conversation when the assistant's turn is opened")
    start = _user_start(text_of, messages, closed)
    # a BOS that opens the text once is a mark of its own; where every turn opens with it (ChatML) it is the turn's
    bos = tok.bos_token if _starts_with_bos(tok, opened) and opened.count(str(tok.bos_token)) == 1 else ""
    head = len(str(bos))
    bounds = [("template", 0)] if head else []
    bounds += [("system", head)] if start > head else []
    bounds += [("user", max(start, head))] + ([("header", len(closed))] if len(opened) > len(closed) else [])
    return opened, bounds, _closing(text_of, messages, opened)


def _user_start(text_of: Any, messages: list[dict[str, str]], closed: str) -> int:
    """Where the last user turn begins in the text.

    Templates may insert a default system message, so the turn is found as what a *second* copy of it adds to the
    conversation; where a template forbids that, the turn is taken to begin with its own words, which a mark put in
    their place finds (the words themselves could also occur in the template).
    """
    content = messages[-1]["content"]
    turn = messages[-1:]
    reply = [{"role": "assistant", "content": "."}]
    try:
        once, twice = text_of(messages + reply), text_of(messages + reply + turn)
    except EncodingError:
        once, twice = "", ""
    added = twice[len(once) :] if twice.startswith(once) else ""
    if added and content.strip() in added and closed.endswith(added):
        return len(closed) - len(added)
    mark = "steerlab-user-mark"
    marked = text_of([*messages[:-1], {"role": "user", "content": mark}])
    at = marked.rfind(mark)
    if at < 0 or marked[:at] != closed[:at] or not closed[at:].lstrip().startswith(content.strip()):
        raise EncodingError("this chat template changes the user's words; steerlab can't tell its tokens apart")
    return at


def _closing(text_of: Any, messages: list[dict[str, str]], opened: str) -> str:
    mark = "steerlab-closing-mark"
    finished = text_of([*messages, {"role": "assistant", "content": mark}])
    return finished.rpartition(mark)[2] if mark in finished else ""
