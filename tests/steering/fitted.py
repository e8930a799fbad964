"""Tiny models, made once, and one fitted steerer of every kind for each family."""

from __future__ import annotations

from functools import cache

import torch

from steerlab import L2S, P2S, Contrast, Example, MeanDifference, Model, RandomDirection, capture
from steerlab.methods.base import Steerer
from steerlab.methods.l2s.config import TrainingConfig
from steerlab.testing import tiny_lm

LAYER, CONTEXT_LAYER, HIDDEN = 1, 3, 32
PROMPTS = ("Tell me of the Nile.", "Hi", "What does a heron eat, and where does it sleep at night?")
QUICK = TrainingConfig(epochs=4, learning_rate=1e-2, loss="mse")


@cache
def make_lm(family: str = "llama", backend: str = "nnsight") -> Model:
    """Like the `lm` of all tests, with nnsight as the default."""
    return tiny_lm(family, backend=backend)


@cache
def make_steerers(family: str) -> dict[str, Steerer]:
    """Mean, per-row table, fitted L2S and random direction, all at `LAYER`."""
    model = make_lm(family, "hooks")
    pairs = [Example(str(i), p, "b", Contrast("No, never.", "Yes, sure")) for i, p in enumerate(PROMPTS)]
    acts = capture(model, pairs, layers=[LAYER, CONTEXT_LAYER], progress=False)
    draw = torch.Generator().manual_seed(1)
    rows = torch.randn(len(PROMPTS), HIDDEN, generator=draw)
    l2s = L2S(LAYER, context_layer=CONTEXT_LAYER, hidden_units=3, config=QUICK, progress=False).fit(acts)
    return {
        "mean": MeanDifference.from_tensor(LAYER, torch.randn(HIDDEN, generator=draw)),
        "p2s": P2S.from_table(LAYER, {str(i): row for i, row in enumerate(rows)}),
        "l2s": l2s,
        "random": RandomDirection(LAYER, seed=3).fit(acts),
    }
