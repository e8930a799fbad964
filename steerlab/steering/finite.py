"""Logits that are not finite: half precision that overflowed, or a vector that is too long."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LogitsProcessor

from steerlab.errors import ActivationError
from steerlab.models.engine import Inputs
from steerlab.models.interventions import SiteEdits
from steerlab.models.model import Model
from steerlab.models.sites import Site


class NotFinite(Exception):
    """Raised inside `generate` at the first step whose logits are not finite."""


class FiniteLogits(LogitsProcessor):
    """Refuses logits that are NaN or +inf; -inf is how tokens are ruled out."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if _broken(scores):
            raise NotFinite
        return scores


def check_finite(values: Tensor, model: Model, inputs: Inputs, edits: SiteEdits) -> None:
    """Refuse numbers read from logits that are not finite.

    Raises:
        ActivationError: names the first block whose output is not finite.
    """
    if _broken(values):
        raise not_finite(model, inputs, edits)


def not_finite(model: Model, inputs: Inputs, edits: SiteEdits) -> ActivationError:
    """The error for logits that are not finite, with the first block of the prompt whose output is not."""
    where = "on the server" if model.is_remote else _first_block(model, inputs, edits)
    causes = "half precision overflowed" if model.dtype == torch.float16 else "padding can't be masked in this dtype"
    return ActivationError(
        f"the logits of {model.id} are NaN or infinite ({where}): {causes}, or a vector is too long. Load the model "
        f"with dtype=torch.float32 or torch.bfloat16 (it has {model.dtype}), or give a smaller alpha or batch_size=1"
    )


def _first_block(model: Model, inputs: Inputs, edits: SiteEdits) -> str:
    padding = inputs["attention_mask"] == 0

    def select(h: Tensor) -> Tensor:
        return h.isfinite().all(-1) | padding.to(h.device)

    sites = [Site(layer) for layer in range(model.n_layers)]
    finite = model.engine.capture_states(inputs, edits, sites, select).all(-1).all(0).tolist()
    if all(finite):
        return "every block's output is finite for these prompts: it is the head, a later token, or padding"
    return f"layer {finite.index(False)} is the first whose output is not finite"


def _broken(values: Tensor) -> bool:
    return bool((values.isnan() | (values == torch.inf)).any())
