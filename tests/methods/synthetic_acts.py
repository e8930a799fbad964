"""Synthetic activations whose right answers are known."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from steerlab.capture.activations import Activations
from steerlab.models.sites import Site


def make_acts(
    contexts: Tensor | None,
    targets: Tensor | None,
    *,
    behaviors: Sequence[str] = (),
    ids: Sequence[str] = (),
    layer: int = 3,
    bare: Sequence[str] = (),
    seed: int = 0,
    **info: object,
) -> Activations:
    """Rows of one layer: a prompt row per context and, unless `bare`, a contrast per target.

    The negative is random, the positive is it plus the target.
    """
    size = next(t for t in (contexts, targets) if t is not None)
    n, generator = len(size), torch.Generator().manual_seed(seed)
    ids = list(ids) or [f"s{i:04d}" for i in range(n)]
    behaviors = list(behaviors) or ["b"] * n
    rows, values = [], []

    def add(i: int, side: str, position: str, value: Tensor) -> None:
        rows.append({"example_id": ids[i], "side": side, "position": position, "behavior": behaviors[i]})
        values.append(value)

    for i in range(n):
        if contexts is not None:
            add(i, "prompt", "last", contexts[i])
        if targets is not None and ids[i] not in bare:
            negative = torch.randn(size.shape[1], generator=generator)
            add(i, "positive", "answer", negative + targets[i])
            add(i, "negative", "answer", negative)
    index = pd.DataFrame(rows).assign(split="", column=-1, token=-1, n_tokens=1)
    return Activations(torch.stack(values)[:, None], index, (Site(layer),), dict(info))


def shuffled(acts: Activations, seed: int = 0) -> Activations:
    """The same rows in another order."""
    order = torch.randperm(len(acts), generator=torch.Generator().manual_seed(seed))
    index = acts.index.iloc[order.tolist()].reset_index(drop=True)
    return Activations(acts.values[order], index, acts.sites, acts.info)


def clusters(
    n: int, hidden: int, k: int, *, seed: int, noise: float = 0.3, world: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Contexts around `k` centers, orthogonal unit targets by center, and the center of each row."""
    fixed = torch.Generator().manual_seed(world)
    centers = torch.randn(k, hidden, generator=fixed)
    directions = torch.linalg.qr(torch.randn(hidden, k, generator=fixed)).Q.T
    generator = torch.Generator().manual_seed(seed)
    which = torch.randint(0, k, (n,), generator=generator)
    contexts = centers[which] + noise * torch.randn(n, hidden, generator=generator)
    return contexts, directions[which], which


def normal(*size: int, seed: int = 0) -> Tensor:
    """Standard normal numbers from a generator of their own."""
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))
