"""What an edit did: how many states it wrote, and how far it moved them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad


@dataclass
class EditStats:
    """What an edit did: the number of states written, and the sum of ‖h' - h‖/‖h‖ over them.

    All stay on the device until they are read.

    Attributes:
        writes, ratio: number and sum per row.
        columns: number and sum per column, `(2, column)`; None for images, whose states have no column.
    """

    writes: Tensor | None = None
    ratio: Tensor | None = None
    columns: Tensor | None = None

    def add(
        self,
        change: Float[Tensor, "rows some hidden"],
        h: Float[Tensor, "rows tokens hidden"],
        mask: Bool[Tensor, "rows tokens"],
        stop: int | None,
    ) -> None:
        """Count the states in `mask`, which are changed by `change`: one for all tokens of a row, or one for each.

        Args:
            change, h, mask: of one forward.
            stop: the column after the last; None for images.
        """
        norms = h.detach().float().norm(dim=-1).clamp_min(1e-12)
        ratios = torch.where(mask, change.float().norm(dim=-1) / norms, 0.0)
        ratio, written = ratios.sum(1), mask.sum(1)
        self.ratio = ratio if self.ratio is None else self.ratio + ratio
        self.writes = written if self.writes is None else self.writes + written
        if stop is not None:
            self.add_columns(torch.stack([mask.sum(0).float(), ratios.sum(0)]), stop - h.shape[1])

    def add_columns(self, table: Float[Tensor, "2 columns"], start: int) -> None:
        """Count what was done at the columns from `start` on."""
        known = table.new_zeros(2, 0) if self.columns is None else self.columns
        grown = pad(known, (0, max(start + table.shape[1] - known.shape[1], 0)))
        grown[:, start : start + table.shape[1]] += table
        self.columns = grown

    def rows(self) -> tuple[Int[Tensor, " rows"], Float[Tensor, " rows"]]:
        """States written and sum of norm ratios, per row of the forward."""
        if self.writes is None or self.ratio is None:
            return torch.zeros(0, dtype=torch.long), torch.zeros(0)
        return self.writes, self.ratio

    def totals(self) -> tuple[int, float]:
        """States written and sum of norm ratios, over all rows."""
        writes, ratio = self.rows()
        return int(writes.sum()), float(ratio.sum())
