"""Steering by hand: plain Hugging Face forwards, one unpadded row at a time, no cache, one torch hook.

No edits, engines, batches or encoded prompts are used: tests compare with these functions.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from steerlab import Site
from steerlab.models.layout import blocks, module_at
from steerlab.models.model import Model

Columns = Callable[[int, int], list[int]]  # (prompt tokens, tokens so far) -> the columns to steer

COLUMNS: dict[str, Columns] = {
    "all": lambda prompt, n: list(range(n)), "prompt": lambda prompt, n: list(range(prompt)),
    "last": lambda prompt, n: [prompt - 1], "generated": lambda prompt, n: list(range(prompt, n)),
    "last+generated": lambda prompt, n: list(range(prompt - 1, n)),
}  # fmt: skip


def chat_ids(
    model: Model, prompt: str, answer: str = "", earlier: Sequence[dict[str, str]] = ()
) -> tuple[list[int], int]:
    """Token ids of earlier turns, a prompt and an answer, and how many of them are prompt."""
    turns = [*earlier, {"role": "user", "content": prompt}]
    text = model.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    ids = model.tokenizer(text, add_special_tokens=False).input_ids
    return ids + (model.tokenizer(answer, add_special_tokens=False).input_ids if answer else []), len(ids)


@contextmanager
def changing(
    module: nn.Module, change: Callable[[Tensor], Tensor], of_input: bool = False, prepend: bool = False
) -> Iterator[None]:
    """Replace the output of a module, or its first argument, by `change` of it."""

    def before(_: Any, args: Any, kwargs: Any) -> Any:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": change(kwargs["hidden_states"])}

    def after(_: Any, args: Any, kwargs: Any, output: Any) -> Any:
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    register, hook = (module.register_forward_pre_hook, before) if of_input else (module.register_forward_hook, after)
    with register(hook, prepend=prepend, with_kwargs=True):
        yield


def hooked(model: Model, site: Site | int, change: Callable[[Tensor], Tensor]) -> AbstractContextManager:
    """Replace the states of a site, or the output of a block, by `change` of them."""
    site, layout = Site(site) if isinstance(site, int) else site, model.layout
    names = {"mlp_out": layout.mlp_name, "attn_out": layout.attention_name, "heads": layout.heads_name}
    module = module_at(blocks(model.hf, layout)[site.layer], names.get(site.point) or "")
    return changing(module, change, site.point in ("block_in", "heads"))


@contextmanager
def under(hooks: Iterable[AbstractContextManager]) -> Iterator[None]:
    """All the hooks at once, in their order."""
    with ExitStack() as stack:
        for hook in hooks:
            stack.enter_context(hook)
        yield


def adding(delta: Tensor, columns: Sequence[int]) -> Callable[[Tensor], Tensor]:
    """A function that adds one vector, or one for each column, to some columns of a `(1, tokens, hidden)` state."""

    def change(h: Tensor) -> Tensor:
        h = h.clone()
        h[:, list(columns)] += delta.to(h)
        return h

    return change


def turned(h: Tensor, u: Tensor, share: float) -> Tensor:
    """Each state turned towards u by a share of the angle between them."""
    angle = torch.arccos((h @ u / h.norm(dim=-1)).clamp(-1, 1))[..., None]
    across = h - (h @ u)[..., None] * u
    across = across / across.norm(dim=-1, keepdim=True)
    return h.norm(dim=-1, keepdim=True) * (torch.cos((1 - share) * angle) * u + torch.sin((1 - share) * angle) * across)


@torch.no_grad()
def logits(model: Model, ids: Sequence[int]) -> Tensor:
    """`(tokens, vocabulary)` of one row."""
    return model.hf(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0]


def hidden(model: Model, ids: Sequence[int]) -> list[Tensor]:
    """`(tokens, hidden)` after each block, of one row; the last one before the final norm."""
    found: list[Tensor] = []
    with under(hooked(model, k, lambda h: found.append(h[0].clone()) or h) for k in range(model.n_layers)):
        logits(model, ids)
    return found


def new_ids(model: Model, prompt: str, steps: int) -> tuple[int, ...]:
    """Greedy new ids under the hooks in place, recomputing the whole row at every step."""
    ids, n_prompt = chat_ids(model, prompt)
    while len(ids) < n_prompt + steps and ids[-1] != model.tokenizer.eos_token_id:
        ids = [*ids, int(logits(model, ids)[-1].argmax())]
    return tuple(ids[n_prompt:])


def answer_logprob(model: Model, prompt: str, answer: str) -> float:
    """Summed log-probability of an answer under the hooks in place."""
    ids, n_prompt = chat_ids(model, prompt, answer)
    logprobs = logits(model, ids).log_softmax(-1)
    return float(sum(logprobs[i - 1, ids[i]] for i in range(n_prompt, len(ids))))


def hook_count(model: Model) -> int:
    """Forward hooks and pre-hooks anywhere in the model."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.hf.modules())
