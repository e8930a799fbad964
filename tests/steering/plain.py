"""Steering by hand: plain Hugging Face forwards, one unpadded row at a time, no cache, one torch hook.

No edits, engines, batches or encoded prompts are used: the tests of this folder compare with these functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from steerlab import Model
from steerlab.models.layout import blocks

Columns = Callable[[int, int], list[int]]  # (prompt tokens, tokens so far) -> the columns to steer

COLUMNS: dict[str, Columns] = {
    "all": lambda prompt, n: list(range(n)),
    "prompt": lambda prompt, n: list(range(prompt)),
    "last": lambda prompt, n: [prompt - 1],
    "generated": lambda prompt, n: list(range(prompt, n)),
    "last+generated": lambda prompt, n: list(range(prompt - 1, n)),
}


def chat_ids(
    model: Model, prompt: str, answer: str = "", earlier: Sequence[dict[str, str]] = ()
) -> tuple[list[int], int]:
    """Token ids of earlier turns, a prompt and an answer, and how many of them are prompt."""
    turns = [*earlier, {"role": "user", "content": prompt}]
    text = model.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    ids = model.tokenizer(text, add_special_tokens=False).input_ids
    return ids + (model.tokenizer(answer, add_special_tokens=False).input_ids if answer else []), len(ids)


@contextmanager
def hooked(model: Model, layer: int, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Replace the output of one block by `change` of it."""

    def after(_: Any, args: Any, output: Any) -> Any:
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    handle = blocks(model.hf, model.layout)[layer].register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()


def adding(delta: Tensor, columns: Sequence[int]) -> Callable[[Tensor], Tensor]:
    """A function that adds one vector to some columns of a `(1, tokens, hidden)` state."""

    def change(h: Tensor) -> Tensor:
        h = h.clone()
        h[:, list(columns)] += delta.to(h)
        return h

    return change


@torch.no_grad()
def logits(model: Model, ids: Sequence[int]) -> Tensor:
    """`(tokens, vocabulary)` of one row."""
    return model.hf(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0]


def hidden(model: Model, ids: Sequence[int]) -> list[Tensor]:
    """`(tokens, hidden)` after each block, of one row; the last one before the final norm."""
    found: list[Tensor] = []
    handles = [
        block.register_forward_hook(
            lambda _, args, out: found.append((out[0] if isinstance(out, tuple) else out)[0].clone())
        )
        for block in blocks(model.hf, model.layout)
    ]
    try:
        logits(model, ids)
    finally:
        for handle in handles:
            handle.remove()
    return found


def new_ids(model: Model, prompt: str, steps: int) -> tuple[int, ...]:
    """Greedy new ids under the hooks in place, recomputing the whole row at every step."""
    ids, n_prompt = chat_ids(model, prompt)
    while len(ids) < n_prompt + steps and ids[-1] != model.tokenizer.eos_token_id:
        ids = [*ids, int(logits(model, ids)[-1].argmax())]
    return tuple(ids[n_prompt:])


def greedy(
    model: Model, prompt: str, layer: int, delta: Tensor, columns: Columns, steps: int
) -> tuple[tuple[int, ...], list[float]]:
    """Greedy new ids with `delta` at some columns, and ‖delta‖/‖h‖ of each state steered in the last step."""
    n_prompt = chat_ids(model, prompt)[1]
    ratios: list[float] = []

    def change(h: Tensor) -> Tensor:
        places = columns(n_prompt, h.shape[1])
        ratios[:] = (delta.norm() / h[0, places].norm(dim=-1)).tolist()
        return adding(delta, places)(h)

    with hooked(model, layer, change):
        return new_ids(model, prompt, steps), ratios


def answer_logprob(model: Model, prompt: str, answer: str) -> float:
    """Summed log-probability of an answer under the hooks in place."""
    ids, n_prompt = chat_ids(model, prompt, answer)
    logprobs = logits(model, ids).log_softmax(-1)
    return float(sum(logprobs[i - 1, ids[i]] for i in range(n_prompt, len(ids))))


def hook_count(model: Model) -> int:
    """Forward hooks and pre-hooks anywhere in the model."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.hf.modules())
