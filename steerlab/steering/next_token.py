"""`next_token_logits`: what a model is about to say, from one forward a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from steerlab._support.errors import DataError, SteeringError
from steerlab._support.progress import bar as progress_bar
from steerlab.capture.rows import Data, as_examples
from steerlab.models.encoding import by_length
from steerlab.models.model import Model
from steerlab.steering.generate import apply_prompt_transforms
from steerlab.steering.interventions import Request, build_edits, resolve_interventions, writes_anything


def run_first_logits(
    model: Model,
    prompts: Data,
    tokens: Sequence[int] | None,
    requests: Sequence[Request],
    *,
    max_other: bool = False,
    batch_size: int = 16,
    progress: bool = False,
) -> Float[Tensor, "row token"]:
    """First logits under some requests; `steerlab.next_token_logits` ends here."""
    examples = apply_prompt_transforms(as_examples(prompts), requests)
    rows = [model.encode(e.prompt, system=e.system, example_id=e.id, images=e.images) for e in examples]
    if tokens is not None and (not len(tokens) or not all(isinstance(t, int) and t >= 0 for t in tokens)):
        raise DataError(f"tokens={list(tokens)[:5]}: give token ids, at least one, or None for the whole vocabulary")
    if max_other and tokens is None:
        raise DataError("rest=True was asked for the whole vocabulary, which leaves nothing over: give tokens")
    prepared = resolve_interventions(model, requests, examples, batch_size)
    reduce = _Wanted(None if tokens is None else tuple(tokens), max_other)
    found: dict[int, Tensor] = {}
    written = 0
    with progress_bar(len(rows), "first token", "row", progress) as bar:
        for numbers in by_length(rows, batch_size):
            batch = model.batch([rows[i] for i in numbers], "left")
            plan = build_edits(model, prepared, batch, numbers, len(rows))
            with model.lock:
                chosen = model.engine.logits(model.inputs(batch), plan, 1, reduce=reduce)
            found |= dict(zip(numbers, chosen.cpu(), strict=True))
            written += sum(edit.stats.totals()[0] for edits in plan.values() for edit in edits)
            bar.update(len(numbers))
    if writes_anything(prepared) and written == 0:
        raise SteeringError(
            "alpha is not 0 but no token was steered: 'generated' starts after the last prompt token, so the first new "
            "token never feels it. Use 'last+generated'."
        )
    return torch.stack([found[i] for i in range(len(rows))])


@dataclass(frozen=True)
class _Wanted:
    """The logits of the tokens asked for, of the last column; with `max_other` the largest of all others too."""

    tokens: tuple[int, ...] | None
    max_other: bool

    def __call__(self, logits: Tensor) -> Tensor:
        last = logits[:, -1]
        if self.tokens is None:
            return last.float()
        at = torch.tensor(self.tokens, device=last.device)
        chosen = last[:, at]
        if self.max_other:
            chosen = torch.cat([chosen, last.index_fill(1, at, -torch.inf).amax(1, True)], 1)
        return chosen.float()

    def for_row(self, number: int) -> _Wanted:
        return self
