"""One pair of prompts: what every cell of `patch` needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from steerlab._support.checks import show
from steerlab.analysis._plain import plain_states
from steerlab.data.example import Example
from steerlab.errors import DataError, PositionError
from steerlab.models.encoding import EncodedPrompt
from steerlab.models.engine import FULL_FORWARD
from steerlab.models.interventions import SiteEdits
from steerlab.models.kv_prefix import ForwardState, split_at
from steerlab.models.model import Model
from steerlab.models.positions import Positions, includes_generated, resolve_nonempty
from steerlab.models.sites import Site
from steerlab.steering.batches import encode_examples
from steerlab.steering.finite import check_finite

Metric = Callable[[Float[Tensor, "row vocabulary"]], Float[Tensor, " row"]]
Alignment = Literal["start", "end"] | Mapping[int, int]


@dataclass(frozen=True)
class LastMetric:
    """A logits reducer to the metric of the last column, a number for each row."""

    metric: Metric

    def __call__(self, logits: Float[Tensor, "row keep vocabulary"]) -> Float[Tensor, " row"]:
        values = []
        for row in logits[:, -1:].float():  # one at a time: a metric that mixed rows would mix cells
            found = self.metric(row)
            if not isinstance(found, Tensor) or found.shape != (1,):
                what = tuple(found.shape) if isinstance(found, Tensor) else show(found)
                raise DataError(f"the metric gave {what} for logits {tuple(row.shape)}: give one number for each row")
            if bool(row.isfinite().all()) and not bool(found.isfinite().all()):
                raise DataError(f"the metric gave {float(found)} for finite logits: give a finite number")
            values.append(found)
        return torch.cat(values)

    def for_row(self, number: int) -> LastMetric:
        """See `PerRowReducer`."""
        return self


class Cell(NamedTuple):
    """A place that is patched: a site, one of its heads (None: all), and a token of the corrupted prompt."""

    site: Site
    head: int | None
    column: int


@dataclass(frozen=True)
class PatchRun:
    """The corrupted prompt, and the states that are put into it.

    Attributes:
        model: which runs it.
        clean, corrupted: the two prompts.
        matched: the token of the clean prompt that belongs to a token of the corrupted one.
        states: of the clean prompt at each site, `(token, width)`, float32.
        metric: of the logits after the last token.
        goal, base: the metric of the clean and of the corrupted prompt.
    """

    model: Model
    clean: EncodedPrompt
    corrupted: EncodedPrompt
    matched: Mapping[int, int]
    states: Mapping[Site, Tensor]
    metric: Metric
    goal: float = field(init=False)
    base: float = field(init=False)

    @classmethod
    def of(
        cls, model: Model, clean: Example, corrupted: Example, sites: Sequence[Site], alignment: Alignment | None,
        metric: Metric,
    ) -> PatchRun:  # fmt: skip
        """A pair of prompts, with the states of the clean one."""
        ours, theirs = encode_examples(model, [clean, corrupted])
        model.try_length(max(len(ours), len(theirs)))
        matched = _matched(len(ours), len(theirs), alignment)
        acts = plain_states(model, [clean], sites, "prompt")
        return cls(model, ours, theirs, matched, {site: acts.at(site) for site in sites}, metric)

    def __post_init__(self) -> None:
        goal, base = (self.values(row, 1, {})[0] for row in (self.clean, self.corrupted))
        if abs(goal - base) <= 1e-6 * max(abs(goal), abs(base)):
            raise DataError(
                f"the metric is {goal:.6g} on the clean prompt and {base:.6g} on the corrupted one: nothing to restore"
            )
        object.__setattr__(self, "goal", goal)
        object.__setattr__(self, "base", base)

    def columns(self, positions: Sequence[Positions]) -> list[int]:
        """The tokens of the corrupted prompt at some positions, without those that the alignment leaves out."""
        if not positions or any(includes_generated(place) for place in positions):
            raise PositionError(f"positions={list(positions)!r}: patch writes to tokens of the prompt: name some")
        found = {c for place in positions for c in resolve_nonempty(place, self.corrupted) if c in self.matched}
        if not found:
            raise DataError("the alignment leaves out every token of these positions: there is nothing to patch")
        return sorted(found)

    @cached_property
    def n_same(self) -> int:
        """The tokens that both prompts begin with, whose states are therefore the same."""
        if self.clean.images or self.corrupted.images:  # the same tokens may hold other images
            return 0
        pairs = zip(self.clean.ids, self.corrupted.ids, strict=False)
        return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(self.clean), len(self.corrupted)))

    def changes(self, cell: Cell) -> bool:
        """Whether the clean prompt's state is another than the one that is there."""
        return cell.column >= self.n_same or self.matched[cell.column] != cell.column

    def state(self, cell: Cell) -> Tensor:
        """The clean prompt's state for a cell; of one head, the states of all heads."""
        return self.states[cell.site][self.matched[cell.column]]

    def head_width(self, site: Site) -> int:
        """The width of one head's state."""
        return self.states[site].shape[-1] // (self.model.n_heads or 1)

    def values(
        self, row: EncodedPrompt, n: int, edits: SiteEdits, cut: int = 0, start: ForwardState = FULL_FORWARD
    ) -> list[float]:
        """The metric of `n` copies of a row under edits, from a forward of the columns from `cut` on."""
        whole = self.model.inputs(self.model.batch([row] * n))
        inputs = split_at(whole, cut)[1] if cut else whole
        with self.model.lock:
            found = self.model.engine.logits(inputs, edits, 1, start, LastMetric(self.metric))
            check_finite(found, self.model, whole, edits)
        return [float(value) for value in found]


def _matched(clean: int, corrupted: int, alignment: Alignment | None) -> dict[int, int]:
    """The token of the clean prompt for each token of the corrupted one, of prompts of these lengths."""
    if isinstance(alignment, Mapping):
        bad = [pair for pair in alignment.items() if pair[0] not in range(corrupted) or pair[1] not in range(clean)]
        if bad:
            raise DataError(
                f"the alignment pairs {bad[:3]}; the corrupted prompt has {corrupted} tokens, the clean one {clean}"
            )
        return {int(ours): int(theirs) for ours, theirs in alignment.items()}
    if alignment not in (None, "start", "end"):
        raise DataError(
            f"alignment={show(alignment)}: expected 'start', 'end', or {{column of the corrupted prompt: column of the "
            "clean one}"
        )
    if alignment is None and clean != corrupted:
        raise DataError(
            f"the clean prompt has {clean} tokens and the corrupted one {corrupted}: say which belong together, "
            "alignment='start', 'end', or {column of the corrupted prompt: column of the clean one}"
        )
    shift = clean - corrupted if alignment == "end" else 0
    return {column: column + shift for column in range(corrupted) if 0 <= column + shift < clean}
