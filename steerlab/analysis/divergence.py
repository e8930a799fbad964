"""How far one model's next-token distributions are from another's on the same texts."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from steerlab._support.checks import as_texts, check_option
from steerlab.data.inputs import Data, as_examples
from steerlab.errors import DataError, MismatchError, SteeringError
from steerlab.methods import kl_divergence
from steerlab.models.encoding import Batch, EncodedPrompt
from steerlab.models.interventions import SiteEdits
from steerlab.models.model import Model
from steerlab.models.positions import Positions
from steerlab.models.ready import check_ready
from steerlab.steering import batches
from steerlab.steering.batches import Steer, as_requests
from steerlab.steering.counts import Totals, totals
from steerlab.steering.requests import Alpha, resolve_interventions

FIRST = ("model", "reference")


def text_divergence(
    model: Model,
    reference: Model,
    data: Data,
    answers: Sequence[str],
    *,
    steer: Steer = (),
    alpha: Alpha = 1.0,
    positions: Positions | None = None,
    first: str = "model",
    batch_size: int = 16,
    progress: bool = True,
) -> pd.DataFrame:
    """KL divergence between a steered model and an unsteered reference over the tokens of given answers.

    `measure_dose` compares a steered model with itself; here the two may have other weights, before and after an edit.

    Example:
        >>> frame = text_divergence(edited, model, prompts, texts, steer=refusal)
        >>> frame["kl"].mean()                                        # nats per token

    Args:
        model: the one that is steered.
        reference: a model with the same tokenizer and template.
        data, answers: prompts, and a text for each.
        steer, alpha, positions: as in `generate`; without `steer`, the model as it is.
        first: which distribution comes first: "model", KL(model || reference), or "reference".
        batch_size: rows of a forward; the logits of all their answers' tokens are held at once, twice.
        progress: show a bar.

    Returns:
        A row for each prompt: `example_id`, `kl` (mean over the answer's tokens, in nats) and `n_tokens`.

    Raises:
        MismatchError: the models read a text as other tokens. SteeringError: a steerer that changes prompts.
        DataError: not one nonempty answer for each prompt; otherwise as `steer`.
    """
    check_option("first", first, FIRST)
    check_ready(reference)
    requests = as_requests(model, steer, alpha, positions, "raw")
    examples, answers = as_examples(data), as_texts("answers", answers)
    if batches.apply_prompt_transforms(examples, requests) != examples:
        raise SteeringError("a steerer changes the prompts: the tokens of the two models can't be compared")
    if len(answers) != len(examples) or not all(answers):
        raise DataError(f"{len(examples)} prompts and {sum(map(bool, answers))} answers with text: give one for each")
    rows = batches.encode_examples(model, examples, answers)
    theirs = batches.encode_examples(reference, examples, answers)
    if different := [e.id for e, one, other in zip(examples, rows, theirs, strict=True) if one.ids != other.ids]:
        raise MismatchError(
            f"{model.id} and {reference.id} read {different[0]!r} as other tokens: give models with one tokenizer"
        )
    settings = resolve_interventions(model, requests, examples, batch_size, rows)
    counts = [len(row) - row.n_prompt for row in rows]

    def forward(batch: Batch, edits: SiteEdits) -> tuple[list[float], Totals]:
        lengths = [len(row) - row.n_prompt for row in batch.rows]
        # rows end with their answers at the last column
        steered: Tensor = model.engine.logits(model.inputs(batch), edits, max(lengths) + 1)
        plain = _plain_logits(reference, batch.rows, max(lengths) + 1)
        with torch.no_grad():
            found = [
                float(kl_divergence(one[-n - 1 : -1], other[-n - 1 : -1].to(one.device), first).mean())
                for one, other, n in zip(steered, plain, lengths, strict=True)
            ]
        return found, totals(edits)

    found, _, _ = batches.run_batches(
        model, settings, rows, forward, batch_size=batch_size, label="divergence", progress=progress, in_block=False,
        hint="the positions match no token of these rows",
    )  # fmt: skip
    return pd.DataFrame({"example_id": [e.id for e in examples], "kl": found, "n_tokens": counts})


def _plain_logits(model: Model, rows: Sequence[EncodedPrompt], keep: int) -> list[Tensor]:
    """The logits of each row's last columns, unsteered, in batches that this model takes: it may not take padding."""
    found: dict[int, Tensor] = {}
    for numbers in model.batches(rows, len(rows), "left"):
        with model.lock:
            logits = model.engine.logits(model.inputs(model.batch([rows[i] for i in numbers])), {}, keep)
        found |= dict(zip(numbers, logits, strict=True))
    return [found[i] for i in range(len(rows))]
