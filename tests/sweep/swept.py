"""A sweep done the obvious way: one plain forward a cell and input, no batch, no cache, one hook a layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from steerlab import Contrast, Example, MeanDifference, Model
from steerlab.models.layout import blocks

PROMPTS = (
    "Do herons sleep in the reeds by night, or do they stand there and wait for the morning?",
    "Is it cold?",
    "Do fish sleep?",
    "Where do the herons of the north go when the lakes are frozen over, and why do they go?",
    "Why?",
)
ALPHAS = (-1.0, 0.0, 0.5, 2.0)


def questions(positive: str = "(A)", negative: str = "(B)") -> list[Example]:
    """Five inputs of different lengths, each with two answers that part at their second token."""
    pairs = [
        Contrast(*answers, position="first_difference") for answers in ((negative, positive), (positive, negative))
    ]
    return [
        Example(f"q{i}", prompt, behavior="herons", split=("test", "validation")[i % 2], contrast=pairs[i % 2])
        for i, prompt in enumerate(PROMPTS)
    ]


def vectors(model: Model, seed: int = 0) -> dict[int, MeanDifference]:
    """A random vector for every layer, large enough to be felt."""
    generator = torch.Generator().manual_seed(seed)
    return {
        layer: MeanDifference.from_tensor(layer, 2 * torch.randn(model.hidden_size, generator=generator))
        for layer in range(model.n_layers)
    }


def columns(positions: str, n_prompt: int, n: int) -> list[int]:
    return {
        "all": list(range(n)),
        "prompt": list(range(n_prompt)),
        "last": [n_prompt - 1],
        "last+generated": list(range(n_prompt - 1, n)),
        "generated": list(range(n_prompt, n)),
    }[positions]


def tokens(model: Model, example: Example, answer: str) -> tuple[list[int], int]:
    text = model.tokenizer.apply_chat_template(
        [{"role": "user", "content": example.prompt}], tokenize=False, add_generation_prompt=True
    )
    prompt = model.tokenizer(text, add_special_tokens=False).input_ids
    return prompt + model.tokenizer(answer, add_special_tokens=False).input_ids, len(prompt)


@torch.no_grad()
def logits(model: Model, ids: Sequence[int], layer: int, delta: Tensor, at: Sequence[int]) -> Tensor:
    """`(token, vocabulary)` of one row with `delta` added to the output of one block at some columns."""

    def after(_: Any, args: Any, output: Any) -> Any:
        h = (output[0] if isinstance(output, tuple) else output).clone()
        h[:, list(at)] += delta.to(h)
        return (h, *output[1:]) if isinstance(output, tuple) else h

    handle = blocks(model.hf, model.layout)[layer].register_forward_hook(after)
    try:
        return model.hf(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0].float()
    finally:
        handle.remove()


def expected(model: Model, example: Example, layer: int, delta: Tensor, positions: str) -> dict[str, float]:
    """All metrics of answers for one cell and input."""
    pair = example.contrast
    assert pair is not None
    found, sums = {}, {}
    for side, answer in (("positive", pair.positive), ("negative", pair.negative)):
        ids, n = tokens(model, example, answer)
        rows = logits(model, ids, layer, delta, columns(positions, n, len(ids)))
        picked = torch.stack([rows[i - 1, ids[i]] for i in range(n, len(ids))])
        norm = torch.stack([rows[i - 1].logsumexp(-1) for i in range(n, len(ids))])
        sums[side] = (float(picked.sum()), float((picked - norm).sum()))
        found[side] = (ids, n, rows)
    (ids, n, rows), (other, _, _) = found["positive"], found["negative"]
    first_difference = next(i for i in range(n, len(ids)) if ids[i] != other[i])
    here = rows[first_difference - 1]
    plus, minus = here[ids[first_difference]], here[other[first_difference]]
    return {
        "propensity": float(plus - minus),
        "accuracy": float(plus > minus),
        "answer_probability": float((plus - here.logsumexp(-1)).exp() + (minus - here.logsumexp(-1)).exp()),
        "logprob": sums["positive"][1],
        "logprob_difference": sums["positive"][1] - sums["negative"][1],
        "logit_sum_difference": sums["positive"][0] - sums["negative"][0],
    }
