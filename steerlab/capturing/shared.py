"""Run each distinct prompt of a batch once, and continue all its answers from the prompt's keys and values.

The two answers of a contrast follow the same prompt, and many prompts of a data set begin alike. This is possible
where no position before the last prompt token is captured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from steerlab.capturing.rows import CaptureRow
from steerlab.models.encoding import Batch
from steerlab.models.engine import Inputs
from steerlab.models.kv_prefix import ForwardState, split_at
from steerlab.models.model import Model
from steerlab.models.sites import Site

MAX_COST = 0.85  # of the cost of running whole rows


@dataclass(frozen=True)
class SharedPrompts:
    """A batch whose distinct prompts are run once each.

    Attributes:
        batch: all rows, every prompt ending at the same column.
        cut: the first column that is run with the answers.
        prompts: for every distinct prompt, the number of a row with it.
        prompt_of: for every row, the number of its prompt.
    """

    batch: Batch
    cut: int
    prompts: Tensor
    prompt_of: Tensor

    def prefill(self, model: Model) -> tuple[Inputs, ForwardState, Batch]:
        """Run the prompts; the inputs of the remaining columns, the state to continue from, and the batch shifted to
        those columns.
        """
        before, rest = split_at(model.inputs(self.batch), self.cut)
        prefix = model.prefill({k: t[self.prompts.to(t.device)] for k, t in before.items()})
        shifted = replace(self.batch, offsets=tuple(offset - self.cut for offset in self.batch.offsets))
        return rest, ForwardState(prefix.take(self.prompt_of.to(model.device))), shifted


def share_prompts(model: Model, rows: Sequence[CaptureRow], sites: Sequence[Site]) -> SharedPrompts | None:
    """How to run a batch with shared prompts, or None if that is not exact or not cheaper than whole rows."""
    first = min(min(group) - row.prompt.n_prompt for row in rows for group in row.groups)
    if first < -1 or not model.row_format.may_pad("aligned") or not model.supports_prefix_cache:
        return None
    batch = model.batch([row.prompt for row in rows], "aligned")
    cut = batch.last_prompt_columns[0]
    if cut < 1:
        return None
    numbers: dict[tuple[int, ...], int] = {}
    prompt_of = [numbers.setdefault(row.prompt.ids[: row.prompt.n_prompt], len(numbers)) for row in rows]
    prompts = torch.tensor([prompt_of.index(k) for k in range(len(numbers))])
    tail, depth = batch.width - cut, max(site.layer for site in sites) + 1
    ids, mask = batch.input_ids[prompts, :cut], batch.attention_mask[prompts, :cut]
    columns = model.prefill_cost(ids, mask)
    whole = len(rows) * max(len(row.prompt) for row in rows) * depth
    if columns * model.n_layers + len(rows) * tail * depth > MAX_COST * whole:
        return None
    return SharedPrompts(batch, cut, prompts, torch.tensor(prompt_of))
