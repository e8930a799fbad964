"""Log-probabilities of given answers by teacher forcing, and logits of the next token."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from steerlab._support.checks import as_texts, as_whole, show
from steerlab.data.inputs import Data
from steerlab.errors import DataError
from steerlab.models.encoding import Batch
from steerlab.models.interventions import SiteEdits
from steerlab.models.job import background
from steerlab.models.model import Model
from steerlab.models.positions import Positions
from steerlab.steering import batches
from steerlab.steering.batches import Steer, as_requests
from steerlab.steering.counts import Totals, totals
from steerlab.steering.finite import check_finite
from steerlab.steering.requests import Alpha, Scale, resolve_interventions


@background
def score(
    model: Model,
    data: Data,
    answers: Sequence[str],
    *,
    steer: Steer | None = None,
    alpha: Alpha = 1.0,
    positions: Positions | None = None,
    scale: Scale = "raw",
    batch_size: int = 16,
    progress: bool = True,
    blocking: bool = True,  # handled by `background`
) -> pd.DataFrame:
    """Log-probability of given answers by teacher forcing; each row has a vector of its own.

    `"generated"` and `"answer"` both mean the answer's tokens here, as they would be while decoding them.

    Example:
        >>> steerlab.score(model, ["2 + 2 ="], ["4"])[["example_id", "logprob", "n_tokens"]]

    Args:
        model, data, steer, alpha, positions, scale, batch_size, progress, blocking: as in `generate`.
        answers: one per prompt.

    Returns:
        A frame with `example_id`, `logprob` (nats, summed over the answer), `n_tokens` and `greedy` (share of the
        answer's tokens that are the argmax); `.attrs` has `steered_tokens` and `norm_ratio`.

    Raises:
        DataError: not one nonempty answer per prompt; otherwise as `steer`.
    """
    requests = as_requests(model, steer, alpha, positions, scale)
    examples = batches.apply_prompt_transforms(data, requests)
    answers = as_texts("answers", answers)
    if len(answers) != len(examples):
        raise DataError(f"{len(examples)} prompts but {len(answers)} answers: give one answer per prompt")
    if empty := [number for number, answer in enumerate(answers) if not answer]:
        raise DataError(f"the answers number {empty[:3]} (from 0) are empty: there is nothing to score")
    rows = batches.encode_examples(model, examples, answers)
    settings = resolve_interventions(model, requests, examples, batch_size, rows)

    def forward(batch: Batch, edits: SiteEdits) -> tuple[list[list[float]], Totals]:
        reducer = AnswerLogprobs.of(batch)
        keep = max(map(len, reducer.ids)) + 1
        inputs = model.inputs(batch)
        found = model.engine.logits(inputs, edits, keep, reduce=reducer)
        check_finite(found, model, inputs, edits)
        return found.tolist(), totals(edits)

    results, steered, norm_ratio = batches.run_batches(
        model, settings, rows, forward, batch_size=batch_size, label="score", progress=progress,
        in_block=steer is None, hint="the positions match no token of these rows",
    )  # fmt: skip
    frame = pd.DataFrame(results, columns=["logprob", "greedy"], dtype=float)
    frame.insert(0, "example_id", [e.id for e in examples])
    frame.insert(2, "n_tokens", [len(row) - row.n_prompt for row in rows])
    frame["greedy"] /= frame["n_tokens"]
    frame.attrs |= {"steered_tokens": steered, "norm_ratio": norm_ratio}
    return frame


@dataclass(frozen=True)
class AnswerLogprobs:
    """A logits reducer to `(row, 2)`: each answer's log-probability, and how many of its tokens are the argmax.

    Rows are padded on the left, so every answer ends at the last column; token t is predicted at column t - 1.

    Attributes:
        ids: of each row's answer.
    """

    ids: tuple[Tensor, ...]

    @classmethod
    def of(cls, batch: Batch) -> AnswerLogprobs:
        """The reducer of a batch whose rows end with their answers."""
        # copies: a view would be sent to a server with the whole batch
        lengths = [len(row) - row.n_prompt for row in batch.rows]
        return cls(tuple(ids[-n:].clone() for ids, n in zip(batch.input_ids, lengths, strict=True)))

    def __call__(self, logits: Float[Tensor, "row keep vocabulary"]) -> Float[Tensor, "row 2"]:
        logprobs = torch.log_softmax(logits.float(), -1)
        found = []
        for row, ids in zip(logprobs, self.ids, strict=True):
            target, predicted = ids.to(row.device), row[-len(ids) - 1 : -1]
            hits = (predicted.argmax(-1) == target).sum().float()
            found.append(torch.stack([predicted.gather(-1, target[:, None]).sum(), hits]))
        return torch.stack(found)

    def for_row(self, number: int) -> AnswerLogprobs:
        """See `PerRowReducer`."""
        return AnswerLogprobs((self.ids[number].clone(),))


@background
def next_token_logits(
    model: Model,
    data: Data,
    tokens: Sequence[int] | None = None,
    *,
    max_other: bool = False,
    steer: Steer | None = None,
    alpha: Alpha = 1.0,
    positions: Positions | None = None,
    scale: Scale = "raw",
    batch_size: int = 16,
    progress: bool = True,
    blocking: bool = True,  # handled by `background`
) -> Float[Tensor, "row token"]:
    """Logits of the first new token, without generating it; each row has a vector of its own.

    Example:
        >>> yes, no = steerlab.metrics.yes_no_ids(model.tokenizer)
        >>> logits = steerlab.next_token_logits(model, questions, [*yes, *no], steer=l2s, positions="last")

    Args:
        model, data, steer, alpha, positions, scale, batch_size, progress, blocking: as in `generate`.
        tokens: ids of the tokens wanted; None for the whole vocabulary.
        max_other: add a last column with the largest logit among all other tokens.

    Returns:
        `(prompt, token)` float32 on the CPU, in the order of the prompts.

    Raises:
        DataError: no tokens, or `max_other` without tokens; otherwise as `steer`.
    """
    requests = as_requests(model, steer, alpha, positions, scale)
    examples = batches.apply_prompt_transforms(data, requests)
    rows = batches.encode_examples(model, examples)
    chosen = None if tokens is None else _token_ids(model, tokens)
    if max_other and tokens is None:
        raise DataError("max_other=True needs tokens: without them no other token is left")
    settings = resolve_interventions(model, requests, examples, batch_size, rows)
    reducer = NextTokenLogits(chosen, max_other)

    def forward(batch: Batch, edits: SiteEdits) -> tuple[list[Tensor], Totals]:
        inputs = model.inputs(batch)
        found = model.engine.logits(inputs, edits, 1, reduce=reducer).cpu()
        check_finite(found, model, inputs, edits)
        return list(found), totals(edits)

    results, _, _ = batches.run_batches(
        model, settings, rows, forward, batch_size=batch_size, label="next token", progress=progress,
        in_block=steer is None,
        hint="'generated' starts after the last prompt token, so it cannot change the first new token. "
        "Use 'last+generated'.",
    )  # fmt: skip
    return torch.stack(results)


def _token_ids(model: Model, tokens: Sequence[int]) -> tuple[int, ...]:
    if isinstance(tokens, str) or not isinstance(tokens, Iterable):
        raise DataError(f"tokens={show(tokens)}: give token ids in a list, or None for the whole vocabulary")
    found = tuple(as_whole("tokens: one", t, 0, model.hf.config.get_text_config().vocab_size - 1) for t in tokens)
    if not found:
        raise DataError("tokens=[]: give token ids, at least one, or None for the whole vocabulary")
    return found


@dataclass(frozen=True)
class NextTokenLogits:
    """A logits reducer to the last column's logits of some tokens; with `max_other` also the largest of all others."""

    tokens: tuple[int, ...] | None
    max_other: bool

    def __call__(self, logits: Float[Tensor, "row keep vocabulary"]) -> Float[Tensor, "row token"]:
        last = logits[:, -1]
        if self.tokens is None:
            return last.float()
        chosen = torch.tensor(self.tokens, device=last.device)
        found = last[:, chosen]
        if self.max_other:
            found = torch.cat([found, last.index_fill(1, chosen, -torch.inf).amax(1, True)], 1)
        return found.float()

    def for_row(self, number: int) -> NextTokenLogits:
        """See `PerRowReducer`."""
        return self
