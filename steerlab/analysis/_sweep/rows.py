"""The inputs of a sweep as token rows, and the batches of inputs whose prompts are computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from steerlab.capturing.rows import encode_answer
from steerlab.data.example import Example
from steerlab.errors import DataError
from steerlab.metrics.answers import AnswerTokens, locate_answers
from steerlab.models.encoding import Batch, EncodedPrompt
from steerlab.models.model import Model


@dataclass(frozen=True)
class SweepRows:
    """All inputs as token rows.

    Attributes:
        kind: "first_difference": prompt and answer up to the first token that differs between the two answers; "whole":
            the prompt with the positive and with the negative answer; "prompt": the prompt, for generation.
        variants: one tuple of rows per variant (two where both answers are forced).
        ids: per input, the positive and the negative answer's first differing token.
    """

    kind: Literal["first_difference", "whole", "prompt"]
    variants: tuple[tuple[EncodedPrompt, ...], ...]
    ids: tuple[tuple[int, int], ...] = ()

    @property
    def same_first_token(self) -> list[str]:
        """The inputs whose two answers begin with the same token."""
        rows = self.variants[0]
        return [r.example_id for r in rows if r.first_difference is not None and r.first_difference > r.n_prompt]

    @property
    def mean_length(self) -> float:
        """Mean tokens of a row: the length of one forward-equivalent."""
        lengths = [len(row) for variant in self.variants for row in variant]
        return sum(lengths) / len(lengths)


@dataclass(frozen=True)
class InputBatch:
    """Some inputs whose rows share forwards.

    Attributes:
        numbers: the inputs.
        batch: their rows, variant by variant; every prompt ends at the same column.
        n_variants: rows per input.
        rows: of all inputs.
    """

    numbers: tuple[int, ...]
    batch: Batch
    n_variants: int
    rows: SweepRows

    @property
    def last(self) -> int:
        """The column of the last prompt token."""
        return self.batch.last_prompt_columns[0]

    @property
    def name(self) -> str:
        """A file name part, the same for the same inputs."""
        return f"{self.numbers[0]}-{len(self.numbers)}"

    @property
    def row_numbers(self) -> list[int]:
        """The input of every row of the batch."""
        return list(self.numbers) * self.n_variants

    @cached_property
    def answers(self) -> AnswerTokens:
        """The columns and tokens of the answers."""
        ids = [self.rows.ids[i] for i in self.numbers]
        return locate_answers(self.batch, ids * self.n_variants, self.rows.kind == "whole")

    def part(self, start: int, stop: int) -> InputBatch:
        """Some of the inputs, in the same columns."""
        n = len(self.numbers)
        if (start, stop) == (0, n):
            return self
        keep = [v * n + i for v in range(self.n_variants) for i in range(start, stop)]
        return InputBatch(self.numbers[start:stop], self.batch.select(keep), self.n_variants, self.rows)


def make_input_batch(model: Model, rows: SweepRows, numbers: Sequence[int]) -> InputBatch:
    """The batch of some inputs."""
    batch = model.batch([variant[i] for variant in rows.variants for i in numbers], "aligned")
    return InputBatch(tuple(numbers), batch, len(rows.variants), rows)


def encode_answers(model: Model, examples: Sequence[Example], whole: bool) -> SweepRows:
    """Prompts with the answers of their contrasts.

    Raises:
        DataError: an input has no contrast, or one whose answers belong to another prompt than the plain one.
    """
    if bare := [e.id for e in examples if e.contrast is None]:
        raise DataError(
            f"{len(bare)} of {len(examples)} inputs have no contrast, first {bare[:3]}: there are no two answers to "
            "compare. Give them one, or measure generated text with a function."
        )
    if other := [e.id for e in examples if e.contrast and (e.contrast.suffix or not e.contrast.has_answers)]:
        raise DataError(
            f"the contrasts of {other[:3]} ({len(other)} in all) change the prompt (a suffix, instructions, or other "
            "images), or are whole texts: they have no answers to the plain prompt. Give contrasts of two answers."
        )
    sides = ("positive", "negative")
    positive, negative = ([encode_answer(model, e, side, ["first_difference"]) for e in examples] for side in sides)
    ids = tuple(
        (p.ids[p.first_difference or 0], n.ids[n.first_difference or 0])
        for p, n in zip(positive, negative, strict=True)
    )
    if whole:
        return SweepRows("whole", (tuple(positive), tuple(negative)), ids)
    return SweepRows("first_difference", (tuple(row.head(row.first_difference or 0) for row in positive),), ids)
