"""How far a steered model is from the unsteered one, on the unsteered model's own answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from steerlab._support.checks import as_number, as_whole
from steerlab.data.inputs import Data, as_examples
from steerlab.errors import SteeringError
from steerlab.models.encoding import Batch, EncodedPrompt, Span
from steerlab.models.engine import Inputs, identity
from steerlab.models.interventions import SiteEdits
from steerlab.models.kv_prefix import MIN_PREFIX, ForwardState, split_at
from steerlab.models.model import Model
from steerlab.models.positions import Positions, check_positions
from steerlab.models.sites import Site
from steerlab.steering import generate, interventions
from steerlab.steering.batches import Steer, apply_prompt_transforms, as_requests, encode_examples
from steerlab.steering.counts import totals
from steerlab.steering.finite import check_finite
from steerlab.steering.interventions import BatchedSetting, build_edits, first_written_column, restart_layer
from steerlab.steering.requests import Scale, resolve_interventions

KEPT = 2**30  # bytes of unsteered log-probabilities that are kept between strengths


@dataclass(frozen=True)
class Dose:
    """How far a steered model is from the unsteered one.

    Attributes:
        kl: the quantile over tokens of KL(steered, unsteered), in nats.
        norm_ratio: mean ‖h' - h‖/‖h‖ over the states changed.
    """

    kl: float
    norm_ratio: float


@dataclass
class AnswerBatch:
    """Rows whose doses are measured in one forward, and what is the same at every strength.

    Attributes:
        numbers: of the rows.
        batch: the rows.
        inputs: of the columns that each strength computes.
        start: where its forwards start.
        columns: those, among the ones computed, that predict the longest answer.
        whole: the inputs of all columns, for error messages.
        unsteered: log-probabilities without steering; None where they are computed anew.
    """

    numbers: Sequence[int]
    batch: Batch
    inputs: Inputs
    start: ForwardState
    columns: Tensor
    whole: Inputs
    unsteered: Tensor | None = None

    def logprobs(self, model: Model, edits: SiteEdits) -> Tensor:
        """Of every answer's tokens, `(row, token, vocabulary)`."""
        logits = model.engine.logits(self.inputs, edits, self.columns.to(model.device), self.start)
        check_finite(logits, model, self.whole, edits)
        return logits.float().log_softmax(-1)


@dataclass
class AnsweredPrompts:
    """The prompts with the unsteered model's answers, under which the dose of a steerer is measured.

    Attributes:
        rows, settings: the texts, and the steerer's interventions.
        name: of the steerer.
        quantile: over the answers' tokens.
        batch_size: rows of a forward.
    """

    model: Model
    rows: list[EncodedPrompt]
    settings: list[BatchedSetting]
    name: str
    quantile: float
    batch_size: int

    @classmethod
    def of(
        cls, model: Model, data: Data, steer: Steer, alpha: float | None, quantile: float, max_new_tokens: int,
        positions: Positions | None, scale: Scale, batch_size: int,
    ) -> AnsweredPrompts:  # fmt: skip
        """Let the model answer; without an alpha the settings are for any."""
        as_number("quantile", quantile, 1e-6, 1.0)
        as_whole("max_new_tokens", max_new_tokens)
        examples = as_examples(data)
        requests = as_requests(model, steer, 1.0 if alpha is None else alpha, positions, scale)
        if apply_prompt_transforms(examples, requests) != examples:
            raise SteeringError("a steerer that changes the prompt has no dose: there are no tokens to compare")
        answers = generate(
            model, examples, steer=(), max_new_tokens=max_new_tokens, batch_size=batch_size, progress=False
        )
        prompts = encode_examples(model, examples)
        rows = [continued(row, ids) for row, ids in zip(prompts, answers.ids, strict=True)]
        settings = resolve_interventions(model, requests, examples, batch_size, prompts, check_alpha=alpha is not None)
        name = " and ".join(request.steerer.name for request in requests)
        if not interventions.writes_anything(settings):
            raise SteeringError(f"{name} changes none of these inputs")
        for setting in settings:
            check_positions([setting.positions], len(rows))
        return cls(model, rows, settings, name, quantile, batch_size)

    def dose(self, alpha: float | None = None) -> Dose:
        """The dose at a strength, or at the settings' own.

        Raises:
            SteeringError: the positions match no token of the answers.
        """
        settings = self.settings if alpha is None else [replace(one, alpha=alpha) for one in self.settings]
        found: list[Tensor] = []
        steered, ratios = 0, 0.0
        for part in self._batches:
            edits = build_edits(self.model, settings, part.batch, part.numbers)
            with self.model.lock:
                after, before = part.logprobs(self.model, edits), self._unsteered(part)
            differences = after.exp() * (after - before)
            kl = differences.masked_fill(after.isneginf(), 0.0).sum(-1).clamp_min(0).cpu()  # 0 log 0 is 0
            found += [row[: len(e) - e.n_prompt] for row, e in zip(kl, part.batch.rows, strict=True)]
            more, total = totals(edits)
            steered, ratios = steered + more, ratios + total
        if not steered:
            raise SteeringError("no token was steered: the positions match no token of the unsteered answers")
        return Dose(float(torch.cat(found).double().quantile(self.quantile)), ratios / steered)

    def _unsteered(self, part: AnswerBatch) -> Tensor:
        """Computed once, as long as all batches' numbers fit in `KEPT`."""
        if part.unsteered is not None:
            return part.unsteered
        found = part.logprobs(self.model, {})
        kept = sum(other.unsteered.nbytes for other in self._batches if other.unsteered is not None)
        if kept + found.nbytes <= KEPT:
            part.unsteered = found
        return found

    @cached_property
    def _batches(self) -> list[AnswerBatch]:
        """Batches in which every prompt ends at the same column."""
        return [self._prepare(numbers) for numbers in self.model.batches(self.rows, self.batch_size, "aligned")]

    def _prepare(self, numbers: Sequence[int]) -> AnswerBatch:
        """What no strength changes is computed once: columns before the first written, blocks below the first."""
        model, batch = self.model, self.model.batch([self.rows[n] for n in numbers], "aligned")
        whole, last = model.inputs(batch), batch.last_prompt_columns[0]
        longest = max(len(row) - row.n_prompt for row in batch.rows)
        cut = first_written_column(model, batch, self.settings, numbers)
        cut = cut if cut >= MIN_PREFIX else 0
        level = restart_layer(self.settings) if model.supports_layer_restart else None
        rest, prefix, state = whole, None, None
        with model.lock:
            if cut:
                before, rest = split_at(whole, cut)
                prefix = model.prefill(before)
            if level is not None:
                state = model.engine.capture_states(rest, {}, [Site(level)], identity, ForwardState(prefix))[:, 0]
        start = ForwardState(prefix, layer=level, state=state)
        return AnswerBatch(numbers, batch, rest, start, torch.arange(longest) + last - cut, whole)


def continued(row: EncodedPrompt, ids: Sequence[int]) -> EncodedPrompt:
    """A prompt with given tokens as its answer."""
    end = (len(row.text), len(row.text))
    spans = (*row.spans, Span("answer", len(row), len(row) + len(ids)))
    return replace(row, ids=(*row.ids, *ids), spans=spans, offsets=row.offsets + (end,) * len(ids))
