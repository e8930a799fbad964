"""What a chat template does to a conversation, and where each part of it begins in the text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from steerlab._support.errors import EncodingError

Messages = Sequence[Mapping[str, Any]]


def message_text(content: str | Sequence[Mapping[str, str]]) -> str:
    """The text of a message, which is a string or a list of parts."""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def starts_with_bos(tok: PreTrainedTokenizerBase, text: str) -> bool:
    """Whether the text already begins with the token that a tokenizer would put before it."""
    bos = tok.bos_token
    return isinstance(bos, str) and text.startswith(bos)


def render(
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
        messages = [{"role": "system", "content": _alike(system, messages[-1]["content"])}, *messages]

    def text_of(turns: list[dict[str, Any]], opened: bool = False) -> str:
        try:
            return str(tok.apply_chat_template(turns, tokenize=False, add_generation_prompt=opened))
        except TemplateError as error:
            raise EncodingError(f"the chat template refuses this conversation: {error}") from error

    end_turn, opened = text_of(messages), text_of(messages, opened=True)
    if not opened.startswith(end_turn):
        raise EncodingError("this chat template rewrites the conversation when the assistant's turn is opened")
    start = _user_start(text_of, messages, end_turn)
    # a BOS that opens the text once is a mark of its own; where every turn opens with it (ChatML) it is the turn's
    bos = tok.bos_token if starts_with_bos(tok, opened) and opened.count(str(tok.bos_token)) == 1 else ""
    head = len(str(bos))
    bounds = [("template", 0)] if head else []
    begun = _history_start(text_of, messages, start)
    bounds += [("system", head)] if begun > head else []
    bounds += [("history", max(begun, head))] if start > begun else []
    bounds += [("user", max(start, head))] + ([("header", len(end_turn))] if len(opened) > len(end_turn) else [])
    return opened, bounds, _closing(text_of, messages, opened)


def _alike(text: str, content: Any) -> Any:
    """A text in the form that the other contents have."""
    return text if isinstance(content, str) else [{"type": "text", "text": text}]


def _user_start(text_of: Any, messages: list[dict[str, Any]], end_turn: str) -> int:
    """Where the last user turn begins in the text.

    Templates may insert a default system message, so the turn is found as what a *second* copy of it adds to the
    conversation; where a template forbids that, the turn is taken to begin with its own words, which a mark put in
    their place finds (the words themselves could also occur in the template).
    """
    whole = messages[-1]["content"]
    content = message_text(whole)
    turn = messages[-1:]
    reply = [{"role": "assistant", "content": _alike(".", whole)}]
    try:
        once, twice = text_of(messages + reply), text_of(messages + reply + turn)
    except EncodingError:
        once, twice = "", ""
    added = twice[len(once) :] if twice.startswith(once) else ""
    if added and content.strip() in added and end_turn.endswith(added):
        return len(end_turn) - len(added)
    mark = "steerlab-user-mark"
    first = mark if isinstance(whole, str) else [*_alike(mark, whole), *whole]
    marked = text_of([*messages[:-1], {"role": "user", "content": first}])
    at = marked.rfind(mark)
    rest = content.strip() if isinstance(whole, str) else marked[at + len(mark) :].strip()
    if at < 0 or marked[:at] != end_turn[:at] or not end_turn[at:].strip().startswith(rest):
        raise EncodingError("this chat template changes the user's words; steerlab can't tell its tokens apart")
    return at


def _history_start(text_of: Any, messages: list[dict[str, Any]], start: int) -> int:
    """Where the first of several turns begins in the text; `start`, the last user turn's, where there is only one."""
    first = next(i for i, message in enumerate(messages) if message["role"] == "user")
    if first == len(messages) - 1:
        return start
    opening = messages[: first + 1]
    return min(_user_start(text_of, opening, text_of(opening)), start)


def _closing(text_of: Any, messages: list[dict[str, Any]], opened: str) -> str:
    mark = "steerlab-closing-mark"
    finished = text_of([*messages, {"role": "assistant", "content": _alike(mark, messages[-1]["content"])}])
    return finished.rpartition(mark)[2] if mark in finished else ""
