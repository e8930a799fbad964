"""Cells done one by one with `steer`, and a method that does all that methods may do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

import steerlab
from steerlab import Example, MeanDifference, Model, Site
from steerlab.capture import Activations
from steerlab.methods.base import Context, Intervention, Steerer


def at(site: int | Site, seed: int = 0, hidden: int = 32) -> MeanDifference:
    """A random vector that is felt."""
    return MeanDifference.from_tensor(site, 2 * torch.randn(hidden, generator=torch.Generator().manual_seed(seed)))


class Odd(Steerer):
    """All that a method may do at once: a vector from the state met, a gate of its own, two sites."""

    def __init__(self, kind: str, site: Site) -> None:
        self.kind, self.site = kind, site

    def fit(self, acts: Activations) -> Odd:
        return self

    def vectors(self, context: Context) -> Float[Tensor, "batch hidden"]:
        return at(self.site).vectors(context)

    def interventions(self, context: Context) -> tuple[Intervention, ...]:
        gate = torch.linspace(0, 1, len(context.example_ids))
        if self.kind == "flight":
            return (Intervention(self.site, vector_fn=lambda h: 0.5 * h.flip(-1)),)
        if self.kind == "gated flight":
            return (Intervention(self.site, gate=gate, vector_fn=lambda h: 0.5 * h.flip(-1)),)
        if self.kind == "two":
            return Intervention(self.site, self.vectors(context)), Intervention(
                Site(3, "mlp_out"), self.vectors(context)
            )
        return (Intervention(self.site, self.vectors(context), gate),)


def alone(
    model: Model, steerer: Steerer, rows: Sequence[Example], alpha: float, positions: str, scale: Any = "raw"
) -> list[float]:
    """`logprob_difference` of every row, by `steer` and `score`."""
    pairs = [e.contrast for e in rows if e.contrast]
    with steerlab.steer(model, steerer, alpha=alpha, positions=positions, scale=scale) as run:
        plus, minus = (
            run.score(rows, answers)["logprob"]
            for answers in ([p.positive for p in pairs], [p.negative for p in pairs])
        )
    return list(plus - minus)


def check(frame: pd.DataFrame, methods: dict[str, Any], one: Callable[..., list[float]], **close: float) -> None:
    """Every cell of a frame against the cell done alone."""
    cells = frame.groupby(["method", "alpha", "positions"], sort=False)
    assert len(cells) == len(methods) * frame["alpha"].nunique() * frame["positions"].nunique()
    idle = frame[frame["alpha"] == 0].groupby("example_id")["value"].first()
    for (method, alpha, positions), cell in cells:
        wanted = one(methods[method], alpha, positions)
        assert cell["value"].tolist() == pytest.approx(wanted, **({"abs": 2e-4, "rel": 1e-4} | close)), (method, alpha)
        felt = np.abs(cell["value"].to_numpy() - idle[cell["example_id"]].to_numpy()).max()
        assert (felt > 1e-3) == (alpha != 0), (method, alpha, positions)
