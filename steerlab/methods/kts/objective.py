"""What KL-then-steer makes small, and what it must not destroy."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from steerlab.errors import SteeringError
from steerlab.models._hooks import HooksEngine
from steerlab.models.encoding import Batch, EncodedPrompt
from steerlab.models.engine import choose_columns, forward_inputs
from steerlab.models.interventions import SiteEdits
from steerlab.models.model import Model


def kl_divergence(
    model: Float[Tensor, "token vocabulary"], reference: Float[Tensor, "token vocabulary"], first: str = "model"
) -> Float[Tensor, " token"]:
    """KL divergence of the next-token distributions of each token, in nats, from their logits.

    Example:
        >>> kl_divergence(logits, logits).abs().max() < 1e-6

    Args:
        first: "model": KL(model || reference); "reference": KL(reference || model).
    """
    q, p = (logits.float().log_softmax(-1) for logits in (model, reference))
    if first == "reference":
        q, p = p, q
    # less q and plus p, whose sums are equal: no term is negative, and the gradient of equal ones is exactly 0
    return (q.exp() * (q - p) - q.exp() + p.exp()).sum(-1)


def counted_tokens(batch: Batch, tokens: str) -> Bool[Tensor, "row column"]:
    """The columns whose prediction of the next token counts.

    Args:
        tokens: "answer": those that predict a token of the answer; "text": every token; "padded": every column.
    """
    real = batch.attention_mask.bool()
    if tokens == "padded":
        return torch.ones_like(real)
    if tokens == "text":
        return real
    found = torch.zeros_like(real)
    for i, (row, start) in enumerate(zip(batch.rows, batch.offsets, strict=True)):
        found[i, start + row.n_prompt - 1 : start + len(row) - 1] = True
    return found


class PairedForwards:
    """Forwards of the trained model, steered or not, and of the model that it was.

    Args:
        model: around the weights that are trained.
        peft_model: the PEFT model around the same weights.
    """

    def __init__(self, model: Model, peft_model: Any) -> None:
        self.model, self.peft_model = model, peft_model
        self.engine = HooksEngine(model.hf, model.layout)

    def logits(
        self, batch: Batch, edits: SiteEdits, counted: Bool[Tensor, "row column"], *, original: bool = False
    ) -> Float[Tensor, "token vocabulary"]:
        """Logits of the tokens that count, row by row, under edits; `original`: without what was trained."""
        keep = counted.any(0).nonzero().flatten()
        given = forward_inputs(self.model.hf, self.model.inputs(batch), keep.to(self.model.device))
        with self.peft_model.disable_adapter() if original else nullcontext(), self.engine.hooked(edits):
            found: Tensor = self.model.hf(**given).logits
        return choose_columns(found, keep, "logits_to_keep" in given)[counted[:, keep].to(found.device)]

    @torch.no_grad()
    def reference(self, batch: Batch, tokens: str, edits: SiteEdits | None = None) -> Float[Tensor, "token vocabulary"]:
        """Logits of the original, unsteered or under edits of its own, for each token that counts."""
        return self.logits(batch, edits or {}, counted_tokens(batch, tokens), original=True)

    def divergence(
        self, batch: Batch, edits: SiteEdits, tokens: str, first: str, reference: Float[Tensor, "token vocabulary"]
    ) -> Float[Tensor, " token"]:
        """KL of the model under the edits and a reference (`reference`), for each token that counts.

        Raises:
            SteeringError: it is not finite.
        """
        found = kl_divergence(self.logits(batch, edits, counted_tokens(batch, tokens)), reference, first)
        if not bool(found.detach().isfinite().all()):
            raise SteeringError("the KL of a steered forward is not finite: give smaller coefficients or learning_rate")
        return found

    def answer_logprobs(self, batch: Batch, edits: SiteEdits, *, original: bool = False) -> list[float]:
        """Log-probability per token of each row's answer under edits."""
        counted = counted_tokens(batch, "answer")
        logits = self.logits(batch, edits, counted, original=original)
        wanted = torch.tensor([token for row in batch.rows for token in row.ids[row.n_prompt :]], device=logits.device)
        found = logits.float().log_softmax(-1).gather(1, wanted[:, None])[:, 0]
        return [float(row.mean()) for row in found.split(counted.sum(1).tolist())]


def batches_of(model: Model, rows: Sequence[EncodedPrompt], size: int) -> list[Batch]:
    """The rows as right-padded batches."""
    return [model.batch([rows[i] for i in numbers], "right") for numbers in model.batches(rows, size, "right")]
