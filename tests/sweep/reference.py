"""What a sweep must equal: one plain forward with a hook per setting and input, or `steer` for each setting."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plain
import pytest
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.hooks import RemovableHandle

import steerlab
from steerlab import Activations, Contrast, Example, MeanDifference, Site, SteeringVector
from steerlab.methods.base import Context, Intervention, Steerer
from steerlab.models.model import Model

PROMPTS = (
    "Do herons sleep in the reeds by night, or do they stand there and wait for the morning?", "Is it cold?",
    "Do fish sleep?", "Where do the herons of the north go when the lakes are frozen over, and why do they go?", "Why?",
)  # fmt: skip
ALPHAS = (-1.0, 0.0, 0.5, 2.0)


def questions(positive: str = "(A)", negative: str = "(B)") -> list[Example]:
    """Five inputs of different lengths; the wanted answer alternates, and the default answers differ at token two."""
    pairs = [Contrast(*both, position="first_difference") for both in ((negative, positive), (positive, negative))]
    return [
        Example(prompt, id=f"q{i}", behavior="herons", split=("test", "validation")[i % 2], contrast=pairs[i % 2])
        for i, prompt in enumerate(PROMPTS)
    ]


def random_vector(site: int | Site, seed: int = 0, hidden: int = 32) -> MeanDifference:
    """A random vector, large enough to change the answers."""
    return SteeringVector({site: 2 * torch.randn(hidden, generator=torch.Generator().manual_seed(seed))})


def vectors(model: Model, seed: int = 0) -> dict[int, MeanDifference]:
    """A random vector for every layer."""
    return {k: random_vector(k, 100 * seed + k, model.hidden_size) for k in range(model.n_layers)}


def text_length(examples: Sequence[Example], texts: Sequence[str]) -> list[float]:
    """A metric of generated text."""
    return [len(text) / 3 for text in texts]


class Recorder:
    """A metric that stores the texts it gets; its value is their length."""

    __name__ = "length"

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def __call__(self, examples: Sequence[Example], texts: Sequence[str]) -> list[float]:
        assert [e.id for e in examples] == [e.id for e in questions()]
        self.calls.append(list(texts))
        return [float(len(text)) for text in texts]


def written(folder: Path) -> dict[str, int]:
    """When each file of a sweep's stages was written."""
    return {p.name: p.stat().st_mtime_ns for p in (folder / "stages").iterdir()}


def at_forward(model: Model, number: int, act: Callable[[], object]) -> RemovableHandle:
    """Until the handle is removed: `act` is called before the model's forward of this number, counted from 0."""
    left = [number]

    def count(*_: object) -> None:
        left[0] -= 1
        if left[0] == -1:
            act()

    return model.hf.register_forward_pre_hook(count)


@torch.no_grad()
def expected(model: Model, example: Example, site: Site, delta: Tensor, positions: str) -> dict[str, float]:
    """All metrics of answers for one setting and input."""
    pair = example.contrast
    assert pair is not None
    sums, rows = {}, {}
    for side in ("positive", "negative"):
        ids, n = plain.chat_ids(model, example.prompt, getattr(pair, side))
        with plain.hooked(model, site, plain.adding(delta, plain.COLUMNS[positions](n, len(ids)))):
            logits = model.hf(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()
        places = torch.arange(n, len(ids))
        picked = logits[places - 1, torch.tensor(ids)[places]]
        sums[side] = (float(picked.sum()), float((picked - logits[places - 1].logsumexp(-1)).sum()))
        rows[side] = (ids, n, logits)
    (ids, n, logits), (other, _, _) = rows["positive"], rows["negative"]
    first = next(i for i in range(n, len(ids)) if ids[i] != other[i])
    here = logits[first - 1]
    plus, minus = here[ids[first]], here[other[first]]
    return {
        "propensity": float(plus - minus), "accuracy": float(plus > minus),
        "answer_probability": float((plus - here.logsumexp(-1)).exp() + (minus - here.logsumexp(-1)).exp()),
        "logprob": sums["positive"][1], "logprob_difference": sums["positive"][1] - sums["negative"][1],
        "logit_sum_difference": sums["positive"][0] - sums["negative"][0],
    }  # fmt: skip


class AnyIntervention(Steerer):
    """A method with a function of the state, a gate per row, or two sites, by `kind`."""

    def __init__(self, kind: str, site: Site) -> None:
        self.kind, self.site = kind, site

    def fit_activations(self, acts: Activations) -> None:
        pass

    def vectors(self, context: Context) -> Float[Tensor, "batch hidden"]:
        return random_vector(self.site).vectors(context)

    def interventions(self, context: Context) -> tuple[Intervention, ...]:
        gate = torch.linspace(0, 1, len(context.example_ids)) if "gate" in self.kind else None
        if "function" in self.kind:
            return (Intervention(self.site, gate=gate, vector_fn=lambda h: 0.5 * h.flip(-1)),)
        sites = (self.site, Site(3, "mlp_out")) if self.kind == "two sites" else (self.site,)
        return tuple(Intervention(site, self.vectors(context), gate) for site in sites)


KINDS = ("function", "gated function", "gate", "two sites")


def by_score(
    model: Model, steerer: Steerer, rows: Sequence[Example], alpha: float, positions: str, scale: Any = "raw"
) -> list[float]:
    """`logprob_difference` of every row, by `steer` and `score`."""
    pairs = [e.contrast for e in rows if e.contrast]
    with steerlab.steer(model, steerer, alpha=alpha, positions=positions, scale=scale) as run:
        plus = run.score(rows, [pair.positive for pair in pairs])["logprob"]
        minus = run.score(rows, [pair.negative for pair in pairs])["logprob"]
    return list(plus - minus)


def check_settings(
    frame: pd.DataFrame, methods: dict[str, Any], one: Callable[..., list[float]], **close: float
) -> None:
    """Compare every setting of a frame with `one(method, alpha, positions)`, and see that alpha changes the values."""
    settings = frame.groupby(["method", "alpha", "positions"], sort=False)
    assert len(settings) == len(methods) * frame["alpha"].nunique() * frame["positions"].nunique()
    unsteered = frame[frame["alpha"] == 0].groupby("example_id")["value"].first()
    for (method, alpha, positions), rows in settings:
        wanted = pytest.approx(one(methods[method], alpha, positions), **({"abs": 2e-4, "rel": 1e-4} | close))
        assert rows["value"].tolist() == wanted, (method, alpha)
        change = np.abs(rows["value"].to_numpy() - unsteered[rows["example_id"]].to_numpy()).max()
        assert (change > 1e-3) == (alpha != 0), (method, alpha, positions)
