"""What a plan really did to the states."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass
class EditStats:
    """What really happened to the states, row by row: kept on the device, read once at the end."""

    forwards: int = 0
    writes: Tensor | None = None
    ratio: Tensor | None = None

    def add(
        self,
        vectors: Float[Tensor, "rows hidden"],
        h: Float[Tensor, "rows tokens hidden"],
        mask: Bool[Tensor, "rows tokens"],
    ) -> None:
        """Count the written states of each row and sum ‖delta‖/‖h‖ over them."""
        norms = h.detach().float().norm(dim=-1).clamp_min(1e-12)
        ratio = torch.where(mask, vectors.float().norm(dim=-1)[:, None] / norms, 0.0).sum(1)
        written = mask.sum(1)
        self.forwards += 1
        self.ratio = ratio if self.ratio is None else self.ratio + ratio
        self.writes = written if self.writes is None else self.writes + written

    def rows(self) -> tuple[Int[Tensor, " rows"], Float[Tensor, " rows"]]:
        """Per row of the forward, the states written to and the sum of their norm ratios."""
        if self.writes is None or self.ratio is None:
            return torch.zeros(0, dtype=torch.long), torch.zeros(0)
        return self.writes, self.ratio

    def totals(self) -> tuple[int, float]:
        """The number of states written to, and the sum of their norm ratios."""
        writes, ratio = self.rows()
        return int(writes.sum()), float(ratio.sum())
