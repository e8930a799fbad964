"""How rows are given to a model so that each has the states that it has alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from steerlab.models.encoding import EncodedPrompt, PaddingSide


@dataclass(frozen=True)
class RowFormat:
    """How rows are given to a model; `self_check` finds out.

    Attributes:
        first_position: position id of a row's first token; None: the model counts positions itself.
        neutral_sides: where padding leaves the states of a row as they are.
        use_cache: whether decoding with a cache gives the numbers of whole rows.
        no_generation: why the model can't generate, or "".
    """

    first_position: int | None = 0
    neutral_sides: tuple[str, ...] = ("left", "right")
    use_cache: bool = True
    no_generation: str = ""

    def describe(self) -> dict[str, tuple[bool, str]]:
        """By topic, whether all is as usual, and what was found, in words."""
        positions = "counted by the model" if self.first_position is None else f"from {self.first_position}"
        padding = " and ".join(self.neutral_sides) or "no side"
        batches = "" if len(self.neutral_sides) == 2 else "; otherwise rows of equal length share a batch"
        cache = "with a cache" if self.use_cache else "without a cache, which would give other numbers: slow"
        decoding = f"refused: {self.no_generation}" if self.no_generation else f"{cache}, steered as whole rows are"
        return {
            "rows": (not batches, f"position ids {positions}; may be padded on the {padding}{batches}"),
            "decoding": (self.use_cache and not self.no_generation, decoding),
        }

    def may_pad(self, side: PaddingSide) -> bool:
        """Whether rows padded like this keep their states."""
        return {"left", "right"} <= {*self.neutral_sides} if side == "aligned" else side in self.neutral_sides

    def shape(self, rows: Sequence[EncodedPrompt], side: PaddingSide) -> tuple[int, ...]:
        """What inputs must have in common to share a batch; `rows` are those of one input."""
        if self.may_pad(side):
            return ()
        if side != "aligned":
            return tuple(len(row) for row in rows)
        lengths = {"left": [row.n_prompt for row in rows], "right": [len(row) - row.n_prompt for row in rows]}
        return tuple(n for end, some in lengths.items() if end not in self.neutral_sides for n in some)
