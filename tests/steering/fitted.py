"""Tiny models, made once, and one fitted steerer of every kind for each family."""

from functools import cache

import plain
import pytest
import torch
from torch import Tensor

from steerlab import L2S, Contrast, Example, SteeringVector, capture
from steerlab.data.inputs import as_examples
from steerlab.methods import P2S, RandomDirection
from steerlab.methods.base import Intervention, Steerer
from steerlab.methods.l2s.config import TrainingConfig
from steerlab.models.model import Model
from steerlab.testing import tiny_lm

LAYER, CONTEXT_LAYER, HIDDEN, STEPS = 1, 3, 32, 6
PROMPTS = ("Tell me of the Nile.", "Hi", "What does a heron eat, and where does it sleep at night?")
IDS = tuple(example.id for example in as_examples(PROMPTS))
ANSWERS = ("the reeds", "no", "fish, in the reeds by night")
QUICK = TrainingConfig(epochs=4, learning_rate=1e-2, loss="mse")
backends = pytest.mark.parametrize("backend", ["nnsight", "hooks"])
sides = pytest.mark.parametrize("side", ["left", "right"])


@cache
def make_lm(family: str = "llama", backend: str = "nnsight") -> Model:
    """The same tiny model every time."""
    return tiny_lm(family, backend=backend)


@cache
def make_steerers(family: str) -> dict[str, Steerer]:
    """Mean, per-row table, fitted L2S and random direction, all at `LAYER`."""
    model = make_lm(family, "hooks")
    pairs = [Example(p, Contrast("No, never.", "Yes, sure"), id=str(i), behavior="b") for i, p in enumerate(PROMPTS)]
    acts = capture(model, pairs, layers=[LAYER, CONTEXT_LAYER], progress=False)
    draw = torch.Generator().manual_seed(1)
    rows = torch.randn(len(PROMPTS), HIDDEN, generator=draw)
    return {
        "mean": SteeringVector({LAYER: torch.randn(HIDDEN, generator=draw)}),
        "p2s": P2S.from_table(LAYER, dict(zip(IDS, rows, strict=True))),
        "l2s": L2S(LAYER, context_layer=CONTEXT_LAYER, hidden_units=3, config=QUICK, progress=False).fit(acts),
        "random": RandomDirection(LAYER, seed=3).fit(acts),
    }


def own_vector(model: Model, steerer: Steerer, prompt: str, number: int) -> Tensor:
    """A prompt's vector by hand, from the steerer's fitted tensors."""
    if isinstance(steerer, P2S):
        return steerer.table_[number]
    if not isinstance(steerer, L2S):
        return steerer.vector_
    ids, n_prompt = plain.chat_ids(model, prompt)
    context = plain.hidden(model, ids)[CONTEXT_LAYER][n_prompt - 1]
    weights = dict(steerer.net_.state_dict())
    return weights["decoder.weight"] @ torch.tanh(weights["encoder.weight"] @ context + weights["encoder.bias"])


class Fixed(Steerer):
    """A method without anything to fit: it makes the interventions that it is given."""

    def __init__(self, *given: Intervention) -> None:
        self.given, self.sites = given, tuple(intervention.site for intervention in given)

    def fit_activations(self, acts):
        pass

    def vectors(self, context):
        raise NotImplementedError

    def interventions(self, context):
        return self.given
