"""`generate`: text from a model, steered or not, a whole batch at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, overload

import torch

from steerlab._support.errors import EncodingError, SteeringError
from steerlab._support.progress import bar as progress_bar
from steerlab.capture.rows import Data, as_examples
from steerlab.data.example import Example
from steerlab.models.beam_images import check_beam_images
from steerlab.models.encoding import by_length
from steerlab.models.engine import Inputs
from steerlab.models.interventions import Edit, ImageEdit, SiteEdits
from steerlab.models.model import Model
from steerlab.steering.interventions import Request, build_edits, resolve_interventions, writes_anything


@dataclass(frozen=True)
class Generations(Sequence[str]):
    """Generated texts in the order of the prompts; behaves as a sequence of strings.

    Attributes:
        texts: the new text of each row, without special tokens.
        ids: the new token ids of each row, end of turn included, padding removed.
        example_ids: the input each row belongs to (repeated when `num_return_sequences` > 1).
        steered_tokens: token states behind these texts that were written to, summed over sites and steerers: each text
            counts with a prompt of its own. States after a row's end of turn are not counted, nor those of beams that
            were given up on the way.
        norm_ratio: mean of ‖alpha·v‖/‖h‖ over all states written to, those left out of the count included; nan where
            nothing was steered.
    """

    texts: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]
    example_ids: tuple[str, ...]
    steered_tokens: int
    norm_ratio: float

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> tuple[str, ...]: ...
    def __getitem__(self, i: int | slice) -> str | tuple[str, ...]:
        return self.texts[i]

    def __len__(self) -> int:
        return len(self.texts)


def run_generate(
    model: Model,
    prompts: Data,
    requests: Sequence[Request],
    *,
    max_new_tokens: int = 60,
    batch_size: int = 16,
    seed: int = 0,
    progress: bool = False,
    **options: Any,
) -> Generations:
    """Generate under some requests; `steerlab.generate` and `Run.generate` both end here."""
    examples = apply_prompt_transforms(as_examples(prompts), requests)
    rows = [model.encode(e.prompt, system=e.system, example_id=e.id, images=e.images) for e in examples]
    _check_room(model, rows, max_new_tokens)
    check_beam_images(model, rows, options)
    prepared = resolve_interventions(model, requests, examples, batch_size)
    ids: dict[int, list[tuple[int, ...]]] = {}
    written, ratio = 0, 0.0
    shown = progress_bar(len(rows), "generate", "row", progress)
    with shown as bar, model.lock, _seeded(model, seed):  # locked throughout: threads would draw from one random state
        for numbers in by_length(rows, batch_size):
            batch = model.batch([rows[i] for i in numbers], "left")
            plan = build_edits(model, prepared, batch, numbers, len(rows))
            new = new_ids(model, model.inputs(batch, positions=False), plan, max_new_tokens, options)
            per_row = len(new) // len(numbers)
            for place, i in enumerate(numbers):
                ids[i] = new[place * per_row : (place + 1) * per_row]
            more, total = _steered(plan, new)
            written, ratio = written + more, ratio + total
            bar.update(len(numbers))
    if writes_anything(prepared) and written == 0:
        raise SteeringError(
            "alpha is not 0 but no token was steered: 'generated' starts after the last prompt token, so a single new "
            "token never feels it. Use 'last+generated', or more new tokens."
        )
    flat = [(e.id, tokens) for i, e in enumerate(examples) for tokens in ids[i]]
    texts = tuple(str(model.tokenizer.decode(list(t), skip_special_tokens=True)).strip() for _, t in flat)
    mean = ratio / written if written else float("nan")
    return Generations(texts, tuple(t for _, t in flat), tuple(s for s, _ in flat), written, mean)


def new_ids(
    model: Model, inputs: Inputs, plan: SiteEdits, max_new_tokens: int, options: dict[str, Any]
) -> list[tuple[int, ...]]:
    """The new ids of every row of a batch padded on the left, end of turn included."""
    merged = {"do_sample": False, "pad_token_id": model.tokenizer.pad_token_id} | options
    out = model.engine.generate(inputs, plan, max_new_tokens=max_new_tokens, **merged)
    stop = _ends(model, options)
    return [_trimmed(row, stop) for row in out[:, inputs["input_ids"].shape[1] :].tolist()]


def _ends(model: Model, options: dict[str, Any]) -> set[int]:
    """The token ids that end a row: the caller's, or else the model's."""
    config = options.get("generation_config") or model.hf.generation_config
    ends = options.get("eos_token_id", getattr(config, "eos_token_id", None))
    return set() if ends is None else set(torch.as_tensor(ends).flatten().tolist())


def _trimmed(row: list[int], stop: set[int]) -> tuple[int, ...]:
    """New ids up to and including the end of turn; what follows is padding."""
    end = next((i + 1 for i, token in enumerate(row) if token in stop), len(row))
    return tuple(row[:end])


def _steered(plan: SiteEdits, new: list[tuple[int, ...]]) -> tuple[int, float]:
    """States behind the rows returned that were written to, and the sum of their norm ratios.

    The last new token of a row is never fed back, so a row of n new tokens has n - 1 decoded states. The tally also has
    the steps of rows that had already ended and of beams that were dropped: no one can tell from it which, so they
    keep their share in the mean ratio and lose it in the count.
    """
    written, ratio = 0, 0.0
    for edit in (e for edits in plan.values() for e in edits):
        writes, total = edit.stats.totals()
        if isinstance(edit, ImageEdit):
            written, ratio = written + writes, ratio + total
        elif writes:
            alive = min(writes, int(edit.prompt.sum()) * (len(new) // len(edit.prompt)) + _decoded(new, edit))
            written, ratio = written + alive, ratio + total * alive / writes
    return written, ratio


def _decoded(new: list[tuple[int, ...]], edit: Edit) -> int:
    row_mask = [True] * len(edit.prompt) if edit.row_mask is None else edit.row_mask.tolist()
    copies = len(new) // len(row_mask)
    return sum(len(row) - 1 for i, row in enumerate(new) if row_mask[i // copies]) if edit.generated else 0


def apply_prompt_transforms(examples: list[Example], requests: Sequence[Request]) -> list[Example]:
    """The examples with the prompts that the steerers want asked (instruction baselines change them)."""
    for request in (r for r in requests if not r.is_off):
        examples = [e.replace(prompt=request.steerer.transform_prompt(e.prompt)) for e in examples]
    return examples


def _check_room(model: Model, rows: Sequence[Any], max_new_tokens: int) -> None:
    limit = model.context_length
    longest = max(rows, key=len)
    if limit is not None and len(longest) + max_new_tokens > limit:
        raise EncodingError(
            f"the prompt {longest.example_id!r} has {len(longest)} tokens; with {max_new_tokens} new ones it "
            f"outgrows the "
            f"model's context of {limit}. Lower max_new_tokens or shorten it."
        )


@contextmanager
def _seeded(model: Model, seed: int) -> Iterator[None]:
    """Sampling from a seed, with the caller's random state left as it was."""
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
