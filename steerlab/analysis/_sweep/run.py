"""Carrying out the plan of a sweep that reads answers off logits."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pandas as pd
import torch
from einops import repeat
from torch import Tensor

from steerlab._support.errors import OutOfMemory, is_out_of_memory
from steerlab._support.files import fingerprint
from steerlab._support.memory import free_memory
from steerlab.analysis._sweep.chunking import frame_of, halved, ratios, slice_of, smaller
from steerlab.analysis._sweep.plan import Chunk, Part, SweepPlan
from steerlab.metrics.answers import ANSWER_METRICS, AnswerReader, AnswerTokens
from steerlab.models.engine import LogitsReducer
from steerlab.models.kv_prefix import ForwardState, Prefix, split_at
from steerlab.models.model import Model
from steerlab.models.sites import Site
from steerlab.steering.batched_settings import pack

log = logging.getLogger(__name__)
Stage = Callable[[str, Callable[[], pd.DataFrame]], pd.DataFrame]


@dataclass
class Base:
    """What all cells of a block share: made when the first chunk that is not on disk asks for it."""

    model: Model
    plan: SweepPlan
    part: Part
    metrics: Sequence[str]
    _inputs: dict[str, Tensor] = field(default_factory=dict)
    _prefix: Prefix | None = None
    _states: dict[int, Tensor] = field(default_factory=dict)

    def prepare(self) -> None:
        """Compute keys and values of the prompts, and the states to restart from."""
        if self._inputs:
            return
        block, cut, n_layers = self.part.block, self.part.cut, self.plan.n_layers
        whole = self.model.inputs(block.batch)
        n = len(block.numbers)
        if cut:
            prompts, self._inputs = split_at(whole, cut)
            self._prefix = self.model.engine.prefill({k: t[:n] for k, t in prompts.items()})
            self.plan.spent += self.part.prompts * n_layers
        else:
            self._inputs = whole
        levels = sorted({c.restart for c in self.part.chunks if c.restart is not None})
        if levels:
            sites = [Site(level) for level in levels]
            read = self.model.engine.capture_states(self._inputs, {}, sites, _whole, self.forward_state(1, (0, n)))
            self._states = dict(zip(levels, read.unbind(1), strict=True))
            self.plan.spent += len(block.batch.rows) * self.part.tail * (levels[-1] + 1)

    def forward_state(self, copies: int, rows: tuple[int, int], level: int | None = None) -> ForwardState:
        """What a forward of `copies` cells takes up, for some inputs of the block."""
        block, state = self.part.block, None
        if level is not None:
            state = repeat(self._of(self._states[level], rows), "r t d -> (c r) t d", c=copies)
        prefix = None if self._prefix is None else self._prefix.rows(*rows)
        return ForwardState(prefix, copies * block.n_variants, level, state)

    def inputs(self, copies: int, rows: tuple[int, int]) -> dict[str, Tensor]:
        """The forward's columns for `copies` cells and some inputs of the block."""
        if rows == (0, len(self.part.block.numbers)):  # pictures of all rows lie in one tensor: it can't be cut
            return {k: t.repeat(copies, *[1] * (t.ndim - 1)) for k, t in self._inputs.items()}
        return {k: repeat(self._of(t, rows), "r ... -> (c r) ...", c=copies) for k, t in self._inputs.items()}

    def _of(self, tensor: Tensor, rows: tuple[int, int]) -> Tensor:
        n = len(self.part.block.numbers)
        if rows == (0, n):
            return tensor
        return torch.cat([tensor[v * n + rows[0] : v * n + rows[1]] for v in range(self.part.block.n_variants)])

    def unsteered(self) -> pd.DataFrame:
        """The cells with alpha 0: one pass for all of them."""
        self.prepare()
        block, rows = self.part.block, (0, len(self.part.block.numbers))
        columns = block.locate_answers.columns.to(self.model.device) - self.part.cut
        read = self.model.engine.logits(
            self.inputs(1, rows), {}, columns, self.forward_state(1, rows), self.reader(block.locate_answers, 1)
        )
        self.plan.spent += len(block.batch.rows) * self.part.tail * self.plan.n_layers
        values = self.values(read, 1)
        ratio = np.zeros((1, len(block.numbers)))
        return frame_of(self.part.idle, block.numbers, values, ratio)

    def steered(self, chunk: Chunk) -> pd.DataFrame:
        """The cells of one chunk, in as few forwards as memory allows."""
        self.prepare()
        rows = (chunk.rows[1] - chunk.rows[0]) * len(chunk.settings)
        if self.plan.limit is not None and rows > self.plan.limit and (halves := self.halves(chunk)):
            return pd.concat([self.steered(half) for half in halves], ignore_index=True)
        try:
            return self._forward(chunk)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            halves = self.halves(chunk)
            if not halves:
                raise self.no_room() from error
        free_memory()
        self.plan.halved += 1
        self.plan.limit = rows // 2  # the next batches begin where this one will end
        log.warning("out of memory at %d cells: going on with half as many rows", len(chunk.settings))
        return pd.concat([self.steered(half) for half in halves], ignore_index=True)

    def halves(self, chunk: Chunk) -> list[Chunk]:
        """The chunk in two, or nothing: pictures of all inputs lie in one tensor, which can't be cut."""
        return [] if self.model.vision is not None and len(chunk.settings) == 1 else halved(chunk)

    def no_room(self) -> OutOfMemory:
        """What to say when nothing is left to halve."""
        return OutOfMemory(
            f"one row of {self.part.tail} tokens does not fit in the memory of {self.model.device} beside the "
            f"prompts' keys and values: give a smaller memory= (now {self.plan.memory} bytes)"
        )

    def _forward(self, chunk: Chunk) -> pd.DataFrame:
        block, (start, stop), copies = self.part.block, chunk.rows, len(chunk.settings)
        settings = [self.plan.settings[i] for i in chunk.settings]
        part = block if (start, stop) == (0, len(block.numbers)) else slice_of(block, start, stop)
        edits = pack(self.model, [setting.packed for setting in settings], part.batch, part.row_numbers)
        columns = part.locate_answers.columns.to(self.model.device) - self.part.cut
        forward_state = self.forward_state(copies, chunk.rows, chunk.restart)
        reader = self.reader(part.locate_answers, copies)
        read = self.model.engine.logits(self.inputs(copies, chunk.rows), edits, columns, forward_state, reader)
        self.plan.spent += self.part.work(chunk, self.plan.n_layers)
        ratio = ratios(edits, settings, block.n_variants, len(part.numbers))
        return frame_of(chunk.settings, part.numbers, self.values(read, copies), ratio)

    def reader(self, where: AnswerTokens, copies: int) -> LogitsReducer:
        """What the metrics need of a forward's logits."""
        requires = sorted({need for name in self.metrics for need in ANSWER_METRICS[name].requires})
        return AnswerReader(where, copies, tuple(requires))

    def values(self, found: dict[str, Tensor], copies: int) -> dict[str, np.ndarray]:
        """Every metric, `(setting, input)`."""
        wanted = {name: ANSWER_METRICS[name] for name in self.metrics}
        shape = (copies, self.part.block.n_variants, -1)
        sides = {k: v.reshape(shape) for k, v in found.items()}
        read = {k: v[:, 0] for k, v in sides.items()}
        for name in ("logit", "logprob"):
            if name in sides and self.part.block.n_variants == 2:
                read |= {f"{name}_positive": sides[name][:, 0], f"{name}_negative": sides[name][:, 1]}
        host = torch.stack([metric.compute(read).float() for metric in wanted.values()]).cpu().numpy()
        return dict(zip(wanted, host.astype(np.float64), strict=True))


def run_plan(model: Model, plan: SweepPlan, metrics: Sequence[str], stage: Stage) -> Iterator[pd.DataFrame]:
    """Every chunk's measurements, each stored before the next is begun."""
    for number, part in enumerate(plan.parts):
        yield from _run_part(model, plan, part, f"{number:04d}", metrics, stage)


def _run_part(
    model: Model, plan: SweepPlan, part: Part, name: str, metrics: Sequence[str], stage: Stage
) -> Iterator[pd.DataFrame]:
    base, begun = Base(model, plan, part, metrics), False
    try:
        for key, compute in _jobs(base, part):
            with model.lock:
                found = stage(f"{name}-{part.block.name}-{key}", compute)
            begun = True
            yield found
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error) or isinstance(error, OutOfMemory):
            raise
        if begun or len(part.block.numbers) == 1:
            raise base.no_room() from error
    else:
        return
    free_memory()
    plan.halved += 1
    log.warning("out of memory at a block of %d inputs: going on with two halves", len(part.block.numbers))
    for half, block in enumerate(part.block.halves(model)):
        yield from _run_part(model, plan, smaller(model, part, block), f"{name}.{half}", metrics, stage)


def _jobs(base: Base, part: Part) -> list[tuple[str, Callable[[], pd.DataFrame]]]:
    """What is to be computed, under names that differ wherever cells or inputs do: batch sizes may change."""
    idle = [(f"unsteered-{_key(part, part.idle)}", base.unsteered)] if part.idle else []
    chunks = [(n, _key(part, chunk.settings, chunk.rows), chunk) for n, chunk in enumerate(part.chunks)]
    return [*idle, *((f"{n:03d}-{key}", partial(base.steered, chunk)) for n, key, chunk in chunks)]


def _key(part: Part, *what: Sequence[int]) -> str:
    return fingerprint([part.block.numbers, *what])[:8]


def _whole(h: Tensor) -> Tensor:
    return h
