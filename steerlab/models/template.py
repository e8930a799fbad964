"""Rendering a conversation with a chat template, and where each part of it begins in the text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import takewhile
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from steerlab._support.checks import show
from steerlab.errors import EncodingError

Messages = Sequence[Mapping[str, Any]]
_Turns = list[dict[str, Any]]
_Render = Callable[..., str]
_MARK, _SYSTEM_MARK = "steerlab-mark", "steerlab-system"  # stand for a reply or the user's words, for a system message


def starts_with_bos(tok: PreTrainedTokenizerBase, text: str) -> bool:
    """Whether the text already begins with the BOS token that the tokenizer would add."""
    return isinstance(tok.bos_token, str) and text.startswith(tok.bos_token)


def with_suffix(prompt: str | Messages, suffix: str) -> str | Messages:
    """A prompt with words appended to the user's last turn, after a space."""
    if not suffix:
        return prompt
    if isinstance(prompt, str):
        return f"{prompt} {suffix}"
    *earlier, last = _turns(prompt)
    content = last["content"]
    longer = f"{content} {suffix}" if isinstance(content, str) else [*content, {"type": "text", "text": f" {suffix}"}]
    return [*earlier, last | {"content": longer}]


def last_text(prompt: str | Messages) -> str:
    """The text of a prompt; of messages, that of the last."""
    return prompt if isinstance(prompt, str) else _message_text(prompt[-1]["content"])


def with_images(prompt: str | Messages, n: int, placeholder: str) -> Messages:
    """Messages whose contents are lists of parts, with `n` images before the last text unless their places are marked.

    Templates of image-text models expect such lists: some silently drop plain strings.
    """
    turns = _turns(prompt)
    for turn in turns:
        if isinstance(turn["content"], str):
            turn["content"] = [{"type": "text", "text": turn["content"]}]
    parts = [part for turn in turns for part in turn["content"]]
    marked = any(part["type"] == "image" or placeholder in part.get("text", "") for part in parts)
    if n and turns and not marked:
        turns[-1]["content"] = [{"type": "image"}] * n + turns[-1]["content"]
    return turns


def render(
    tok: PreTrainedTokenizerBase, prompt: str | Messages, system: str | None, images: bool = False
) -> tuple[str, list[tuple[str, int]], str, str]:
    """The rendered text, the character at which each part begins, and what the template adds before an answer (spaces,
    or nothing) and after it.

    Raises:
        EncodingError: no chat template, or one that refuses or rewrites the conversation; what is no message, or holds
            an image that the model can't read (`images`).
    """
    if tok.chat_template is None:
        raise EncodingError(f"the tokenizer {tok.name_or_path!r} has no chat template; load the model with chat=False")
    messages = _turns(prompt, images)
    if not messages or messages[-1]["role"] != "user":
        raise EncodingError("messages must end with the user's turn; pass the assistant's words as `answer`")
    last = messages[-1]["content"]
    if not _message_text(last).strip() and (isinstance(last, str) or all(part["type"] == "text" for part in last)):
        raise EncodingError("the user's last turn is empty")
    systems = [_message_text(turn["content"]) for turn in messages if turn["role"] == "system"]
    if systems and system is not None:
        raise EncodingError(
            f"system={system!r} was given, but the messages begin with {systems[0]!r}: give one of them"
        )
    if system is not None:
        messages = [{"role": "system", "content": _as_content(system, messages[-1]["content"])}, *messages]

    end = ""

    def text_of(turns: _Turns, header: bool = False) -> str:
        try:
            found = str(tok.apply_chat_template(turns, tokenize=False, add_generation_prompt=header))
            return found if header else found.removesuffix(end)
        except (TemplateError, TypeError) as error:
            raise EncodingError(f"the chat template refuses this conversation: {error}") from error

    without_header, text = text_of(messages), text_of(messages, header=True)
    if not text.startswith(without_header):  # as Phi-3's, which closes a conversation that is not gone on with
        end = str(tok.eos_token or "")
        without_header = text_of(messages)
    if not text.startswith(without_header):
        raise EncodingError("this chat template rewrites the conversation when the assistant's turn is opened")
    given = [message for message in (*systems, system or "") if message.strip()]
    lost = [message for message in given if message.strip() not in text]
    if given and not lost and text_of(_with_marks(messages)).count(_SYSTEM_MARK) < len(given):
        lost = given  # its words stand elsewhere in the text
    if lost:
        which = " or ".join(repr(message[:60]) for message in lost)
        raise EncodingError(f"this chat template drops or changes the system message {which}: leave it out")
    opening, closing = _around_reply(text_of, messages, text)
    user = _user_start(text_of, messages, without_header, closing)
    history = _history_start(text_of, messages, closing, user)
    # a BOS that opens the text once is a part by itself; where every turn opens with it (ChatML) it belongs to the turn
    bos = str(tok.bos_token) if starts_with_bos(tok, text) and text.count(str(tok.bos_token)) == 1 else ""
    bounds = [("template", 0)] if bos else []
    bounds += [("system", len(bos))] if history > len(bos) else []
    bounds += [("history", max(history, len(bos)))] if user > history else []
    bounds += [("user", max(user, len(bos)))]
    bounds += [("header", len(without_header))] if len(text) > len(without_header) else []
    return text, bounds, opening, closing


def _turns(prompt: str | Messages, images: bool = True) -> _Turns:
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    if not isinstance(prompt, list | tuple):
        raise EncodingError(f"the prompt is {show(prompt)}: expected a text, or a list of messages")
    for turn in prompt:
        named = isinstance(turn, Mapping) and isinstance(turn.get("role"), str)
        if not named or not _is_content(turn.get("content"), images):
            raise EncodingError(
                f"a message is {show(turn)}: expected {{'role': 'user', 'content': 'Hi'}}, where the content is a text "
                f"or a list of parts such as {{'type': 'text', 'text': 'Hi'}}{'' if images else ', without images'}"
            )
    # a template of texts alone may write a list as it is
    return [dict(turn) if images else {**turn, "content": _message_text(turn["content"])} for turn in prompt]


def _is_content(content: object, images: bool) -> bool:
    if not isinstance(content, list | tuple):
        return isinstance(content, str)
    kinds = [part.get("type") if isinstance(part, Mapping) else None for part in content]
    texts = [part.get("text") for part, kind in zip(content, kinds, strict=True) if kind == "text"]
    return all(isinstance(x, str) for x in (*kinds, *texts)) and (images or len(texts) == len(kinds))


def _message_text(content: str | Sequence[Mapping[str, str]]) -> str:
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def _as_content(text: str, content: Any) -> Any:
    """A text in the form that another content has: a string or a list of parts."""
    return text if isinstance(content, str) else [{"type": "text", "text": text}]


def _user_start(text_of: _Render, messages: _Turns, rendered: str, closing: str) -> int:
    """Where the last user turn begins in the text.

    Templates may insert a default system message, so the turn is found as what a *second* copy of it adds to the
    conversation, after a reply and its end. Where a template forbids that, or puts the system message into that copy,
    the turn is taken to begin with its words, which are found by a mark put in their place (the words themselves could
    also occur in the template).
    """
    whole = messages[-1]["content"]
    content = _message_text(whole).strip()
    reply = [{"role": "assistant", "content": _as_content(_MARK, whole)}]
    try:
        added, marked = (text_of(m + reply + m[-1:]).rpartition(_MARK)[2] for m in (messages, _with_marks(messages)))
        if not added.startswith(closing):  # gpt-oss's ends the last reply in a way of its own
            closing = _earlier_end(text_of, messages, added)
    except EncodingError:
        added = marked = ""
    turn = added.removeprefix(closing)
    if added and content in turn and rendered.endswith(turn) and _SYSTEM_MARK not in marked:
        return len(rendered) - len(turn)
    first = _MARK if isinstance(whole, str) else [*_as_content(_MARK, whole), *whole]
    marked = text_of([*messages[:-1], {"role": "user", "content": first}])
    at = marked.rfind(_MARK)
    rest = content if isinstance(whole, str) else marked[at + len(_MARK) :].strip()
    if at < 0 or marked[:at] != rendered[:at] or not rendered[at:].strip().startswith(rest):
        raise EncodingError("this chat template changes the user's words; steerlab can't find their tokens")
    return at


def _history_start(text_of: _Render, messages: _Turns, closing: str, user: int) -> int:
    """Where the first of several turns begins in the text; the start of the last user turn if it is the only one.

    Raises:
        EncodingError: a template that writes the first turns differently, or the system message behind them.
    """
    first = next(i for i, message in enumerate(messages) if message["role"] == "user")
    if first == len(messages) - 1:
        return user
    marked = _with_marks(messages)
    n_marks = sum(turn != message for turn, message in zip(marked[:first], messages, strict=False))
    _beginning(text_of, marked, first, closing, n_marks)
    return min(len(_beginning(text_of, messages, first, closing)), user)


def _beginning(text_of: _Render, messages: _Turns, first: int, closing: str, n_marks: int = 0) -> str:
    """What stands before turn `first`, which the whole conversation begins with too, and `n_marks` system messages."""
    alone = text_of(messages[: first + 1])
    found = alone[: _user_start(text_of, messages[: first + 1], alone, closing)]
    if not text_of(messages).startswith(found) or found.count(_SYSTEM_MARK) < n_marks:
        raise EncodingError(
            "this chat template writes what comes before the first turn elsewhere in a longer conversation: give a "
            "single turn, or leave the system message out"
        )
    return found


def _around_reply(text_of: _Render, messages: _Turns, text: str) -> tuple[str, str]:
    """The spaces that the template adds before an answer, which `text` opens, and what it adds after one.

    Where it leaves the last answer open, that is what ends one that a turn follows.
    """
    finished = [*messages, {"role": "assistant", "content": _as_content(_MARK, messages[-1]["content"])}]
    before, marked, closing = text_of(finished).rpartition(_MARK)
    if not before.startswith(text) and len(messages) > 1:  # Mistral's writes the system message into the last turn
        with suppress(EncodingError):
            before, text = text_of([messages[-1], finished[-1]]).rpartition(_MARK)[0], text_of(messages[-1:], True)
    gap = before.removeprefix(text)
    opening = gap if gap.isspace() else ""
    if closing or not marked:
        return opening, closing
    try:
        return opening, _earlier_end(text_of, messages, text_of([*finished, messages[-1]]).rpartition(_MARK)[2])
    except EncodingError:  # the template knows no second turn
        return opening, ""


def _earlier_end(text_of: _Render, messages: _Turns, added: str) -> str:
    """What ends a reply in `added`, before a user's turn: what ends that turn too, or all that is not of the turn."""
    last = messages[-1]
    end = text_of([*messages[:-1], last | {"content": _as_content(_MARK, last["content"])}]).rpartition(_MARK)[2]
    if end and added.startswith(end):
        return end
    backwards = zip(reversed(added), reversed(text_of([last])), strict=False)
    end = added[: len(added) - sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], backwards))]
    if end.rfind("<") > end.rfind(">"):  # "_end|><|user_start|>" is also what follows <|system
        end = added[: added.find(">", len(end)) + 1]
    return end


def _with_marks(messages: _Turns) -> _Turns:
    """The messages with a mark in the place of each system message's text, whose words may stand in the template too.

    An empty text stays: templates may leave it out.
    """

    def marked(turn: dict[str, Any]) -> dict[str, Any]:
        text = _message_text(turn["content"]).strip() if turn["role"] == "system" else ""
        return turn | {"content": _as_content(_SYSTEM_MARK, turn["content"])} if text else turn

    return [marked(turn) for turn in messages]
