"""Steering by hand: plain Hugging Face forwards, one unpadded row at a time, no cache, one torch hook.

Nothing here uses plans, engines, batches or token maps: it is what the tests of this folder compare with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from steerlab import Model
from steerlab.models.layout import blocks

Columns = Callable[[int, int], list[int]]  # (prompt tokens, tokens so far) -> the columns to write to

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
    """Token ids of a prompt, after earlier turns if there are any, and an answer, and how many of them are prompt."""
    text = model.tokenizer.apply_chat_template(
        [*earlier, {"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    ids = model.tokenizer(text, add_special_tokens=False).input_ids
    tail = model.tokenizer(answer, add_special_tokens=False).input_ids if answer else []
    return ids + tail, len(ids)


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


@torch.no_grad()
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
        model.hf(input_ids=torch.tensor([list(ids)]), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return found


def greedy(
    model: Model, prompt: str, layer: int, delta: Tensor, columns: Columns, steps: int
) -> tuple[tuple[int, ...], list[float]]:
    """New ids, recomputing the whole row at every step; and ‖delta‖/‖h‖ of each state written in the last step."""
    ids, n_prompt = chat_ids(model, prompt)
    ratios: list[float] = []
    for _ in range(steps):
        places = columns(n_prompt, len(ids))
        h = hidden(model, ids)[layer]
        ratios = [float(delta.norm() / h[i].norm()) for i in places]
        with hooked(model, layer, adding(delta, places)):
            ids = [*ids, int(logits(model, ids)[-1].argmax())]
        if ids[-1] == model.tokenizer.eos_token_id:
            break
    return tuple(ids[n_prompt:]), ratios


def said(model: Model, prompt: str, steps: int) -> tuple[int, ...]:
    """New ids under whatever hooks are in place, recomputing the whole row at every step."""
    ids, n_prompt = chat_ids(model, prompt)
    for _ in range(steps):
        ids = [*ids, int(logits(model, ids)[-1].argmax())]
        if ids[-1] == model.tokenizer.eos_token_id:
            break
    return tuple(ids[n_prompt:])


def answer_logprob(model: Model, prompt: str, answer: str) -> float:
    """Summed log-probability of an answer under whatever hooks are in place."""
    ids, n_prompt = chat_ids(model, prompt, answer)
    logprobs = logits(model, ids).log_softmax(-1)
    return float(sum(logprobs[i - 1, ids[i]] for i in range(n_prompt, len(ids))))


def hook_count(model: Model) -> int:
    """Forward hooks and pre-hooks anywhere in the model."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.hf.modules())
