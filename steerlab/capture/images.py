"""Reading the vision tower and the projector: every row's own patches, whatever is asked about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch

from steerlab._support.errors import PositionError
from steerlab.capture.activations import INDEX_COLUMNS
from steerlab.capture.jobs import CaptureRow, Reduce
from steerlab.data.example import Example
from steerlab.models.encoding import Batch
from steerlab.models.model import Model
from steerlab.models.patches import PatchSelector
from steerlab.models.positions import Positions, describe


def image_rows(model: Model, examples: Sequence[Example], positions: Sequence[Positions]) -> list[CaptureRow]:
    """One job per example: its pictures are the same in both answers of a contrast, so the plain prompt is run.

    Raises:
        PositionError: another position than "images", or a row without pictures.
    """
    other = [describe(position) for position in positions if describe(position) != "images"]
    if other:
        raise PositionError(
            f"positions={other}: in the vision tower and the projector states belong to pictures, not to tokens; the "
            "only position there is 'images'"
        )
    for example in examples:
        if not example.images:
            raise PositionError(f"{example.id!r} has no picture, so there is nothing of it to read at a vision site")
    return [_job(model, example, number) for number, example in enumerate(examples)]


def _job(model: Model, example: Example, number: int) -> CaptureRow:
    row = model.encode(example.prompt, system=example.system, example_id=example.id, images=example.images)
    label: dict[str, Any] = {"example_id": example.id, "side": "prompt", "position": "images"}
    label |= {"behavior": example.behavior, "split": example.split, "token": -1, "order": number}
    return CaptureRow(row, ((),), (label,))


@dataclass
class PatchReader:
    """Makes the selector of each batch, and afterwards the labels of what it selected.

    Attributes:
        reduce: "mean" for one row per example, "none" for one per patch.
    """

    reduce: Reduce
    _read: list[tuple[Sequence[CaptureRow], list[int]]] = field(default_factory=list)

    def select(
        self, jobs: Sequence[CaptureRow], batch: Batch, dtype: torch.dtype, device: torch.device
    ) -> PatchSelector:
        """The selector of a batch of jobs."""
        patches: list[int] = []
        self._read.append((jobs, patches))
        return PatchSelector(batch.units, self.reduce == "mean", dtype, patches)

    def index(self, jobs: Sequence[CaptureRow]) -> pd.DataFrame:
        """The labels of some jobs' rows, once they are read; in parts, if memory ran out."""
        # a part that never came to be read has no counts; one that was read in halves has the same counts twice
        counts = {id(job): n for part, seen in self._read for job, n in zip(part, seen, strict=False)}
        labels: list[dict[str, Any]] = []
        for job in jobs:
            n = counts[id(job)]
            each = [{"column": -1, "n_tokens": n}] if self.reduce == "mean" else _patches(n)
            labels += [job.labels[0] | patch for patch in each]
        return pd.DataFrame(labels)[[*INDEX_COLUMNS, "order"]]


def _patches(n: int) -> list[dict[str, int]]:
    return [{"column": i, "n_tokens": 1} for i in range(n)]
