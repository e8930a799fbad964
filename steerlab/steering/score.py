"""`score`: how likely given answers are, steered or not, by teacher forcing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from steerlab._support.errors import DataError, SteeringError
from steerlab._support.progress import bar as progress_bar
from steerlab.capture.rows import Data, as_examples
from steerlab.models.encoding import Batch, by_length
from steerlab.models.model import Model
from steerlab.steering.generate import apply_prompt_transforms
from steerlab.steering.interventions import Request, build_edits, resolve_interventions, writes_anything


def run_score(
    model: Model,
    prompts: Data,
    answers: Sequence[str],
    requests: Sequence[Request],
    *,
    batch_size: int = 16,
    progress: bool = False,
) -> pd.DataFrame:
    """Score under some requests; `steerlab.score` and `Run.score` both end here."""
    examples = apply_prompt_transforms(as_examples(prompts), requests)
    if len(answers) != len(examples):
        raise DataError(f"{len(examples)} prompts but {len(answers)} answers: give one answer per prompt")
    empty = [e.id for e, answer in zip(examples, answers, strict=True) if not answer]
    if empty:
        raise DataError(f"the answers to {empty[:3]} are empty: there is nothing to score")
    rows = [
        model.encode(e.prompt, answer=a, system=e.system, example_id=e.id, images=e.images)
        for e, a in zip(examples, answers, strict=True)
    ]
    prepared = resolve_interventions(model, requests, examples, batch_size)
    results: dict[int, tuple[float, int, int]] = {}
    written, ratio = 0, 0.0
    with progress_bar(len(rows), "score", "row", progress) as bar:
        for numbers in by_length(rows, batch_size):
            batch = model.batch([rows[i] for i in numbers], "left")
            plan = build_edits(model, prepared, batch, numbers, len(rows))
            keep = max(len(row) - row.n_prompt for row in batch.rows) + 1
            inputs = model.inputs(batch)
            with model.lock:
                found = model.engine.logits(inputs, plan, keep, reduce=reader(batch))
            lengths = [len(row) - row.n_prompt for row in batch.rows]
            read = [(total, n, int(hits)) for (total, hits), n in zip(found.tolist(), lengths, strict=True)]
            results |= dict(zip(numbers, read, strict=True))
            for edit in (e for edits in plan.values() for e in edits):
                more, total = edit.stats.totals()
                written, ratio = written + more, ratio + total
            bar.update(len(numbers))
    if writes_anything(prepared) and written == 0:
        raise SteeringError("alpha is not 0 but no token was steered: the positions match nothing in these rows")
    return _table([e.id for e in examples], results, written, ratio)


def reader(batch: Batch) -> Answers:
    """What is to be read of a batch whose rows end with their answers."""
    lengths = [len(row) - row.n_prompt for row in batch.rows]
    return Answers(tuple(batch.input_ids[i, -n:].clone() for i, n in enumerate(lengths)))  # a view travels whole


@dataclass(frozen=True)
class Answers:
    """From the last columns' logits to `(row, 2)`: the log-probability of each row's answer, and how many of its tokens
    are the argmax.

    Rows are padded on the left, so every answer ends at the last column, and token t is predicted at t - 1.

    Attributes:
        ids: of each row's answer.
    """

    ids: tuple[Tensor, ...]

    def __call__(self, logits: Tensor) -> Tensor:
        logprobs = torch.log_softmax(logits.float(), -1)
        out = []
        for i, answer in enumerate(self.ids):
            target = answer.to(logits.device)
            here = logprobs[i, -len(answer) - 1 : -1]
            out.append(torch.stack([here.gather(-1, target[:, None]).sum(), (here.argmax(-1) == target).sum().float()]))
        return torch.stack(out)

    def for_row(self, number: int) -> Answers:
        """See `PerRowReducer`."""
        return Answers((self.ids[number].clone(),))


def _table(
    example_ids: list[str], results: dict[int, tuple[float, int, int]], written: int, ratio: float
) -> pd.DataFrame:
    rows = [results[i] for i in range(len(example_ids))]
    frame = pd.DataFrame(
        {
            "example_id": example_ids,
            "logprob": [r[0] for r in rows],
            "n_tokens": [r[1] for r in rows],
            "greedy": [r[2] / r[1] for r in rows],
        }
    )
    frame.attrs |= {"steered_tokens": written, "norm_ratio": ratio / written if written else float("nan")}
    return frame
