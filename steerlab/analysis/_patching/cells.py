"""Cells of `patch` packed into few forwards, each of which starts as late as its cells allow.

A cell changes one token at one site: everything below it and before it is as in the corrupted run. So a batch of cells
starts at the output of the block below its lowest site, after the keys and values of the columns before its first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from steerlab._support.memory import halve_on_oom
from steerlab.analysis._patching.pack import pack, start_of
from steerlab.analysis._patching.run import Cell, PatchRun
from steerlab.models.engine import identity
from steerlab.models.interventions import Edit
from steerlab.models.kv_prefix import ForwardState, Prefix, split_at
from steerlab.models.operators import EditRule, Replace
from steerlab.models.sites import Site


def patched_values(run: PatchRun, cells: Sequence[Cell]) -> list[float]:
    """The metric with each cell patched; that of the corrupted run where the clean state is the same."""
    found = dict.fromkeys(cells, run.base)
    if changed := [cell for cell in cells if run.changes(cell)]:
        forwards = Forwards.of(run, changed)
        for batch in forwards.batches:
            run_part = partial(forwards.run_batch, start_of(run.model, batch))  # halves start where their batch does
            values = [value for part in halve_on_oom(run_part, batch) for value in part]
            found |= dict(zip(batch, values, strict=True))
    return list(found.values())


@dataclass(frozen=True)
class Forwards:
    """The batches of cells, and what their forwards start from.

    Attributes:
        run: the pair of prompts.
        batches: the cells that share a forward.
        prefix: keys and values of the corrupted prompt, up to the last column at which a batch starts.
        states: outputs of the corrupted prompt's blocks, `(1, column, hidden)`, at which batches start.
    """

    run: PatchRun
    batches: list[list[Cell]]
    prefix: Prefix | None
    states: dict[int, Tensor]

    @classmethod
    def of(cls, run: PatchRun, cells: Sequence[Cell]) -> Forwards:
        """What these cells need."""
        model = run.model
        batches = pack(model, cells, len(run.corrupted))
        cuts, levels = zip(*(start_of(model, batch) for batch in batches), strict=True)
        known = sorted({level for level in levels if level is not None})
        inputs, prefix, states = model.inputs(model.batch([run.corrupted])), None, {}
        with model.lock:
            if max(cuts):
                prefix = model.prefill(split_at(inputs, max(cuts))[0])
            if known:
                found = model.engine.capture_states(inputs, {}, [Site(level) for level in known], identity)
                states = dict(zip(known, found.unbind(1), strict=True))
        return cls(run, batches, prefix, states)

    def run_batch(self, start_at: tuple[int, int | None], batch: Sequence[Cell]) -> list[float]:
        """The metric of each cell, from one forward, which starts at a column and a block."""
        cut, level = start_at
        prefix = self.prefix.before(cut) if cut and self.prefix is not None else None
        state = None if level is None else self.states[level][:, cut:].repeat(len(batch), 1, 1)
        start = ForwardState(prefix, len(batch), level, state)
        return self.run.values(self.run.corrupted, len(batch), self._edits(batch), cut, start)

    def _edits(self, batch: Sequence[Cell]) -> dict[Site, list[Edit]]:
        """An edit for each site and head: a clean state in the place of one token of each of its rows."""
        edits: dict[Site, list[Edit]] = {}
        for site, head in dict.fromkeys((cell.site, cell.head) for cell in batch):
            vectors = torch.zeros(len(batch), self.run.states[site].shape[-1])
            prompt = torch.zeros(len(batch), len(self.run.corrupted), dtype=torch.bool)
            for number, cell in enumerate(batch):
                if (cell.site, cell.head) == (site, head):
                    vectors[number], prompt[number, cell.column] = self.run.state(cell), True
            width = None if head is None else self.run.head_width(site)
            rule = EditRule(Replace(), None if head is None else (head,), width)
            edits.setdefault(site, []).append(Edit(vectors, prompt, False, rule=rule))
        return edits
