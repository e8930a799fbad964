"""Synthetic activations of two prompts per input, for detectors of foreign tasks."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from steerlab.capture.activations import Activations
from steerlab.models.sites import Site


def two_prompts(
    primary: Tensor, full: Tensor, injected: Sequence[bool], *, splits: Sequence[str] = (), task: str = "task",
    layers: Sequence[int] | None = None, **info: object,
) -> Activations:  # fmt: skip
    """Rows of the task alone and of task and text, from two tensors `(input, layer, hidden)`."""
    n = len(primary)
    frames = [
        pd.DataFrame(
            {
                "example_id": [f"s{i:04d}" for i in range(n)],
                "side": side,
                "position": "last",
                "behavior": ["injected" if flag else "clean" for flag in injected],
                "split": list(splits) or [""] * n,
                "column": -1,
                "token": -1,
                "n_tokens": 1,
            }
        )
        for side in (task, "prompt")
    ]
    sites = tuple(Site(layer) for layer in (layers or range(primary.shape[1])))
    return Activations(torch.cat([primary, full]), pd.concat(frames, ignore_index=True), sites, dict(info))


def drifting(
    n: int = 1000, hidden: int = 64, layers: int = 1, *, offset: float = 5.0, strength: float = 3.0, seed: int = 0,
    tasks: int | None = None,
) -> tuple[Tensor, Tensor, list[bool]]:  # fmt: skip
    """States after the task alone and after task and text, and whether the text holds a foreign task (every other one).

    Each task has a large offset. A text adds a common shift, noise, and with a foreign task a direction; shift and
    direction are the same for every seed. With `tasks`, the inputs share that many tasks.
    """
    world = torch.Generator().manual_seed(99)
    shift, direction = torch.randn(2, layers, hidden, generator=world)
    direction = strength * direction / direction.norm(dim=-1, keepdim=True)
    generator = torch.Generator().manual_seed(seed)
    of = torch.arange(n) if tasks is None else torch.arange(n) // 2 % tasks  # not in step with the foreign tasks
    primary = offset * torch.randn(int(of.max()) + 1, layers, hidden, generator=generator)[of]
    flags = torch.arange(n) % 2 == 1
    noise = torch.randn(n, layers, hidden, generator=generator)
    return primary, primary + shift + flags[:, None, None] * direction + noise, flags.tolist()
