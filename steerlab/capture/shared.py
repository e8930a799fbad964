"""Reading answers without reading their prompts again.

The two answers of a contrast follow the same prompt, and prompts of one set often begin alike. Where nothing is read
before the last prompt token, each distinct prompt is run once, for its keys and values; the answers go on from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from steerlab.capture.jobs import CaptureRow
from steerlab.models.encoding import Batch
from steerlab.models.engine import Inputs
from steerlab.models.kv_prefix import ForwardState, prefill_cost, split_at
from steerlab.models.model import Model
from steerlab.models.sites import Site

WORTH_IT = 0.85  # of the work of whole rows


@dataclass(frozen=True)
class Shared:
    """A batch of jobs whose prompts are run once each.

    Attributes:
        batch: all rows, every prompt ending at the same column.
        cut: the first column that is run with the answers.
        prompts: for every distinct prompt, a row that has it.
        belongs: for every row, the number of its prompt.
    """

    batch: Batch
    cut: int
    prompts: Tensor
    belongs: Tensor

    def forward(self, model: Model) -> tuple[Inputs, ForwardState, Batch]:
        """Inputs of the remaining columns, what they resume from, and the batch as those columns number it."""
        inputs = model.inputs(self.batch)
        prompts, belongs = self.prompts.to(model.device), self.belongs.to(model.device)
        before, rest = split_at(inputs, self.cut)
        prefix = model.engine.prefill({k: t[prompts] for k, t in before.items()})
        apply_edits = replace(self.batch, offsets=tuple(offset - self.cut for offset in self.batch.offsets))
        return rest, ForwardState(prefix.take(belongs)), apply_edits


def share(model: Model, jobs: Sequence[CaptureRow], sites: Sequence[Site]) -> Shared | None:
    """How to run a batch of jobs on shared prompts, or None where whole rows are as cheap or the only exact way."""
    if not model.supports_prefix_cache:
        return None
    first = min(min(group) - job.row.n_prompt for job in jobs for group in job.groups)
    if first < -1:
        return None
    batch = model.batch([job.row for job in jobs], "aligned")
    cut = batch.last_prompt_columns[0]
    if cut < 1:
        return None
    numbers: dict[tuple[int, ...], int] = {}
    belongs = [numbers.setdefault(job.row.ids[: job.row.n_prompt], len(numbers)) for job in jobs]
    prompts = torch.tensor([belongs.index(k) for k in range(len(numbers))])
    tail, depth = batch.width - cut, max(site.layer for site in sites) + 1
    ids, mask = batch.input_ids[prompts, :cut], batch.attention_mask[prompts, :cut]
    columns = prefill_cost(ids, mask, model.hf.config.get_text_config())
    whole = len(jobs) * max(len(job.row) for job in jobs) * depth
    if columns * model.n_layers + len(jobs) * tail * depth > WORTH_IT * whole:
        return None
    return Shared(batch, cut, prompts, torch.tensor(belongs))
