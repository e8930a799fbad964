"""Which token is what: the map from a row's tokens to the parts of the conversation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from steerlab._support.images import ImageInput


class Span(NamedTuple):
    """Tokens `start` to `end` (exclusive, unpadded coordinates) are of one kind."""

    kind: str
    start: int
    end: int


@dataclass(frozen=True)
class EncodedPrompt:
    """One encoded row: its tokens, their text, and the spans of the conversation they belong to.

    Coordinates are those of the unpadded row, so they mean the same under left and right padding; `Batch` adds
    the row's offset when it needs columns.

    Attributes:
        ids: token ids, prompt then answer, without padding.
        spans: spans of the kinds "system", "history" (earlier turns), "user" (the last user turn), "header" (the
            opening of the assistant turn), "answer" (a teacher-forced continuation), "image" (the tokens that hold a
            picture's features) and "template" (BOS and other marks outside any turn), in order.
        n_prompt: how many leading tokens are prompt; the rest is the answer.
        text: the rendered text, prompt and answer.
        offsets: the characters `(start, end)` of `text` each token covers.
        example_id: the id of the input this row encodes.
        images: the row's pictures, in the order of their tokens.
        first_difference: the answer's first token that the other answer of its contrast does not share; None without
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
        """The row's first `n` tokens, at least one; spans that are cut off are left out."""
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
        found: set[int] = set()
        at = self.text.find(text)
        while at >= 0 and text:
            end = at + len(text)
            found.update(i for i, (a, b) in enumerate(self.offsets) if a < end and b > at)
            at = self.text.find(text, at + 1)
        return sorted(found)
