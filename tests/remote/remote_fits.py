"""Prompts, and a fitted steerer of every kind for a model."""

from functools import cache

import torch

from steerlab import L2S, Contrast, Example, Site, SteeringVector, capture
from steerlab.methods import P2S, AlphaSteer, Clamp, GradientField, LinearProbe, Operation, Scale, Spherical
from steerlab.methods.base import Steerer
from steerlab.methods.l2s.config import TrainingConfig
from steerlab.models.model import Model

PROMPTS = ("Tell me of the Nile.", "Hi", "What does a heron eat, and where does it sleep at night?")
PAIRS = [Example(p, Contrast("No, never.", "Yes, sure"), id=str(i), behavior="b") for i, p in enumerate(PROMPTS)]
LAYER, CONTEXT = 1, 3


@cache
def fit(model: Model) -> dict[str, Steerer]:
    """One vector for all rows, one per row, a net that predicts vectors, and gates that read the steered state."""
    acts = capture(model, PAIRS, layers=[LAYER, CONTEXT], progress=False)
    size = acts.values.shape[-1]
    draw = torch.Generator().manual_seed(1)
    norm = float(acts.values.norm(dim=-1).mean())
    rows = torch.nn.functional.normalize(torch.randn(len(PAIRS) + 2, size, generator=draw), dim=1) * norm
    recipe = TrainingConfig(epochs=4, learning_rate=1e-2, loss="mse")
    return {
        "mean": SteeringVector({LAYER: rows[-1]}),
        "rows": P2S.from_table(LAYER, {pair.id: row for pair, row in zip(PAIRS, rows, strict=False)}),
        "l2s": L2S(LAYER, context_layer=CONTEXT, hidden_units=3, config=recipe, progress=False).fit(acts),
        "gates": AlphaSteer.from_gates(LAYER, rows[-2:-1] / norm**2, rows[-1:]),
    }


OPERATIONS = (
    "project_out", "replace", "rotate", "clamp", "scale", "fading", "gated by token", "own direction", "heads",
    "spherical", "field",
)  # fmt: skip


@cache
def operations(model: Model) -> dict[str, Steerer]:
    """Every operator, one whose direction is each input's own, one of a single head, and methods that bring theirs."""
    fits, probe, acts = fit(model), LinearProbe(LAYER), capture(model, PAIRS, layers=[LAYER], progress=False)
    mean, width = fits["mean"], model.hidden_size
    probe.w_, probe.b_, probe.threshold_ = torch.randn(width, generator=torch.Generator().manual_seed(2)), 0.0, 0.5
    made = (
        *(Operation(mean, name) for name in OPERATIONS[:3]), Operation(mean, Clamp(-0.1, 0.1)),
        Operation(LAYER, Scale(0.2)), Operation(mean, first=3, decay=0.5), Operation(mean, gate=probe),
        Operation(fits["l2s"], "project_out"), Operation(Site(LAYER, "heads"), Scale(0.0), heads=[1]),
        Spherical(LAYER).fit(acts), GradientField(LAYER, epochs=2, normalize=True).fit(acts),
    )  # fmt: skip
    return dict(zip(OPERATIONS, made, strict=True))
