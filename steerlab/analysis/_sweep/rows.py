"""The rows of a sweep: every input as tokens, in blocks whose prompts are computed once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from steerlab._support.errors import DataError
from steerlab.data.example import Example
from steerlab.metrics.answers import AnswerTokens, locate_answers
from steerlab.models.encoding import Batch, EncodedPrompt
from steerlab.models.model import Model

Kind = Literal["first_difference", "whole", "prompt"]


@dataclass(frozen=True)
class Rows:
    """All inputs as rows of one kind.

    Attributes:
        kind: "choice": prompt and answer up to where the two answers part; "whole": the prompt with the positive and
            with the negative answer; "prompt": for generation.
        variants: one tuple of rows for every variant (two where both answers are forced).
        ids: per input, the positive and the negative answer's token where they part.
    """

    kind: Kind
    variants: tuple[tuple[EncodedPrompt, ...], ...]
    ids: tuple[tuple[int, int], ...] = ()

    @property
    def shared(self) -> list[str]:
        """The inputs whose answers begin with the same token."""
        return [
            r.example_id for r in self.variants[0] if r.first_difference is not None and r.first_difference > r.n_prompt
        ]

    @property
    def width(self) -> float:
        """Mean tokens of a row: what one forward-equivalent runs."""
        lengths = [len(row) for variant in self.variants for row in variant]
        return sum(lengths) / len(lengths)


@dataclass(frozen=True)
class Block:
    """Some inputs whose rows go through the model together.

    Attributes:
        numbers: which inputs.
        batch: their rows, variant by variant, every prompt ending at the same column.
        last: the column of the last prompt token.
    """

    numbers: tuple[int, ...]
    batch: Batch
    last: int
    n_variants: int
    rows: Rows

    @property
    def name(self) -> str:
        """What its stages are called; the same inputs have the same name in a resumed run."""
        return f"{self.numbers[0]}-{len(self.numbers)}"

    @property
    def row_numbers(self) -> list[int]:
        """The input of every row of the batch."""
        return list(self.numbers) * self.n_variants

    @cached_property
    def locate_answers(self) -> AnswerTokens:
        """Where this block's answers are read."""
        ids = [self.rows.ids[i] for i in self.numbers]
        return locate_answers(self.batch, ids * self.n_variants, self.rows.kind == "whole")

    def halves(self, model: Model) -> list[Block]:
        """The same in two, for when memory runs out."""
        half = len(self.numbers) // 2
        return [block_of(model, self.rows, part) for part in (self.numbers[:half], self.numbers[half:])]


def block_of(model: Model, rows: Rows, numbers: Sequence[int]) -> Block:
    """The block of some inputs."""
    chosen = [variant[i] for variant in rows.variants for i in numbers]
    batch = model.batch(chosen, "aligned")
    return Block(tuple(numbers), batch, batch.last_prompt_columns[0], len(rows.variants), rows)


def encode_prompts(model: Model, examples: Sequence[Example]) -> Rows:
    """Prompts alone, for generation."""
    rows = tuple(model.encode(e.prompt, system=e.system, example_id=e.id, images=e.images) for e in examples)
    return Rows("prompt", (rows,))


def encode_answers(model: Model, examples: Sequence[Example], whole: bool) -> Rows:
    """Prompts with the answers of their contrasts.

    Raises:
        DataError: an input has no contrast, or one whose answers belong to another prompt than the plain one.
    """
    bare = [e.id for e in examples if e.contrast is None]
    if bare:
        raise DataError(
            f"{len(bare)} of {len(examples)} inputs have no contrast, first {bare[:3]}: there are no two answers to "
            "compare. Give them one, or measure generated text with a function."
        )
    suffixed = [e.id for e in examples if e.contrast is not None and e.contrast.suffix]
    if suffixed:
        raise DataError(
            f"the contrasts of {suffixed[:3]} ({len(suffixed)} in all) ask something after the prompt (suffix): their "
            "answers can't follow the plain prompt. Give contrasts without a suffix."
        )
    positive, negative = ([_answered(model, e, side) for e in examples] for side in ("positive", "negative"))
    ids = tuple(
        (p.ids[p.first_difference or 0], n.ids[n.first_difference or 0])
        for p, n in zip(positive, negative, strict=True)
    )
    if whole:
        return Rows("whole", (tuple(positive), tuple(negative)), ids)
    return Rows("first_difference", (tuple(row.head(row.first_difference or 0) for row in positive),), ids)


def _answered(model: Model, example: Example, side: Literal["positive", "negative"]) -> EncodedPrompt:
    pair = example.contrast
    assert pair is not None
    answers = (pair.positive, pair.negative) if side == "positive" else (pair.negative, pair.positive)
    return model.encode(
        example.prompt, answer=answers[0], other_answer=answers[1], end_turn=pair.end_turn, system=example.system,
        example_id=example.id, images=example.images,
    )  # fmt: skip


def check_unique(examples: Sequence[Example]) -> None:
    """Refuse two inputs with one id, naming how often each occurs.

    Raises:
        DataError: names them.
    """
    twice = {name: n for name, n in Counter(e.id for e in examples).items() if n > 1}
    if twice:
        told = ", ".join(f"{name!r} ({n} times)" for name, n in list(twice.items())[:3])
        raise DataError(f"{len(twice)} sample ids occur more than once: {told}. Ids join vectors to rows.")
