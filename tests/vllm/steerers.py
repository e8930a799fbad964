"""Fitted steerers and prompts that the tests in vLLM share."""

from functools import cache

import torch

from steerlab import L2S, Contrast, Example, SteeringVector, capture
from steerlab.data.inputs import as_examples
from steerlab.methods import P2S, Clamp, LinearProbe, Operation, Scale
from steerlab.methods.alphasteer.steerer import AlphaSteer
from steerlab.methods.base import Steerer
from steerlab.methods.gradient import GradientStep
from steerlab.methods.l2s.config import TrainingConfig
from steerlab.methods.spherical import RotateWhereAway
from steerlab.models.model import Model
from steerlab.models.sites import Site

QUICK = TrainingConfig(epochs=60, learning_rate=3e-3, standardize=True, loss="mse")
PROMPTS = (
    "Tell me of the Nile.", "Hi", "What does a heron eat, and where does it sleep at night?", "Name a colour.",
    "How far is it from the mill to the old bridge by the willows, on foot?",
)  # fmt: skip
ANSWERS = ("It is a river, and long.", "Hello", "Fish; in reeds.", "Blue", "Not far.")
ENDS = ("north", "seven", "never", "blue", "in France", "yesterday", "my dear", "at sea", "slowly", "gold", "by train")
THINGS = ("heron", "reed", "river", "boat", "mill", "willow", "bridge", "tern")
QUESTIONS = (
    "What is a {}?", "Tell me of the {}.", "Where would I find a {}, and why just there?", "Is the {} old?",
    "Write one line on a {} in spring.", "Which colour has a {} when it rains at night?", "Who made the first {}?",
    "{}?",
)  # fmt: skip


OPERATIONS = (
    "project_out", "replace", "rotate", "clamp", "scale", "fading", "gated by token", "own direction", "spherical",
    "field", "heads",
)  # fmt: skip


def examples(n: int = 64) -> list[Example]:
    """Questions of many lengths, each with two answers of its own: an L2S learns another vector for each."""
    made = []
    for i, (question, thing) in enumerate([(q, t) for q in QUESTIONS for t in THINGS][:n]):
        one, other = ENDS[i % len(ENDS)], ENDS[(i + 1 + i // len(ENDS)) % len(ENDS)]
        made.append(Example(question.format(thing), Contrast(f"Yes, {one}", f"No, {other}"), id=str(i), behavior="b"))
    return made


def fitted_l2s(model: Model, n: int = 64) -> L2S:
    """A net fitted in the middle of a model, which gives every prompt a vector of its own."""
    layer = model.n_layers // 2
    acts = capture(model, examples(n), layers=[layer, model.n_layers - 2], progress=False)
    return L2S(layer, context_layer=model.n_layers - 2, hidden_units=32, config=QUICK, progress=False).fit(acts)


@cache
def steerers(width: int) -> dict[str, Steerer]:
    """One vector for all, one for every row, and gates that read the steered state."""
    draw = torch.Generator().manual_seed(1)
    rows = torch.randn(len(PROMPTS), width, generator=draw)
    w, r = torch.randn(2, width, generator=draw) / width, torch.randn(2, width, generator=draw)
    return {
        "mean": SteeringVector({1: torch.randn(width, generator=draw)}),
        "per row": P2S.from_table(2, {e.id: row for e, row in zip(as_examples(PROMPTS), rows, strict=True)}),
        "gates": AlphaSteer.from_gates((0, 2), w, r),
    }


@cache
def operations(width: int) -> dict[str, Steerer]:
    """Every operator on every token, one whose direction is each input's own, and those of `Spherical` and fields."""
    mean, probe = steerers(width)["mean"], LinearProbe(1)
    probe.w_, probe.b_, probe.threshold_ = torch.randn(width, generator=torch.Generator().manual_seed(2)), 0.0, 0.5
    wide, narrow = (torch.randn(n, width, generator=torch.Generator().manual_seed(3)) / width for n in (4, 2))
    weights = ((wide, torch.zeros(4)), (narrow[:, :4], torch.zeros(2)))
    step = GradientStep(weights, torch.tensor([1.0, -1.0]), 2, 0.5, True)
    made = (
        *(Operation(mean, name) for name in OPERATIONS[:3]), Operation(mean, Clamp(-0.1, 0.1)),
        Operation(1, Scale(0.2)), Operation(mean, first=3, decay=0.5), Operation(mean, gate=probe),
        Operation(steerers(width)["per row"], "project_out"), Operation(mean, RotateWhereAway(20.0, -0.15)),
        Operation(1, step),
        Operation(SteeringVector({Site(1, "heads"): mean.at(1)}), "project_out", heads=[0, 2]),
    )  # fmt: skip
    return dict(zip(OPERATIONS, made, strict=True))
