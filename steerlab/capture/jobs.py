"""What has to be read: one job per row of the model's input, worked out before the model is touched."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, SupportsIndex

import pandas as pd
import torch
from torch import Tensor

from steerlab._support.errors import DataError, LayoutError
from steerlab.capture.activations import INDEX_COLUMNS
from steerlab.data.example import Example, check_examples
from steerlab.models.encoding import Batch, EncodedPrompt
from steerlab.models.model import Model
from steerlab.models.positions import Positions, describe, resolve_nonempty
from steerlab.models.sites import Site

Data = Iterable[str | Example]
Reduce = Literal["mean", "none"]
Layers = Literal["all"] | SupportsIndex | Sequence[SupportsIndex | Site]


@dataclass(frozen=True)
class CaptureRow:
    """One row to run, and the groups of tokens wanted of it: each group becomes one row of activations."""

    row: EncodedPrompt
    groups: tuple[tuple[int, ...], ...]
    labels: tuple[dict[str, Any], ...]


def as_examples(data: Data) -> list[Example]:
    """Prompts as examples: plain text gets its place in the data as its id."""
    if isinstance(data, str):
        raise DataError(f"the data are one string, {data[:40]!r}: give a list of prompts, or [prompt] for one")
    return check_examples(
        item if isinstance(item, Example) else Example(id=str(i), prompt=item) for i, item in enumerate(data)
    )


def as_sites(layers: Layers, model: Model) -> tuple[Site, ...]:
    """The sites meant by `layers`, resolved against the model, ascending, each once, and all in one part of it."""
    if isinstance(layers, str):
        if layers != "all":
            raise LayoutError(f"layers={layers!r}; expected 'all', a layer number, or numbers and Sites")
        layers = range(model.n_layers)
    given = [layers] if isinstance(layers, SupportsIndex) else list(layers)
    if not given:
        raise LayoutError("layers is empty: nothing to read")
    sites = tuple(sorted({model.site(x) for x in given}))
    if len(parts := sorted({site.part for site in sites})) > 1:
        raise LayoutError(
            f"layers has sites in the {' and the '.join(parts)}: their states stand for other things and differ in "
            "width; capture each part by itself"
        )
    return sites


def plan_rows(
    model: Model,
    examples: Sequence[Example],
    positions: Sequence[Positions],
    context: Sequence[Positions],
    reduce: Reduce,
    extra_prompts: Sequence[str] | None = None,
) -> list[CaptureRow]:
    """Every row to run: both sides of each contrast at `positions`, every plain prompt at `context`, and where that is
    read every example's own `extra_prompts` (those named; None: all).

    Without `positions`, each contrast is read where it says itself, and prompts without any contrast at "last".
    Where the contrast adds nothing to the user's turn, the prompt of the positive side *is* the plain prompt, and by
    causality so are its states: the context is then read from there and the plain prompt costs no forward.
    """
    jobs: list[CaptureRow] = []
    paired = any(e.contrast for e in examples)
    for number, example in enumerate(examples):
        pair = example.contrast
        plain = context if paired else positions or ["last"]
        jobs += [_job(model, named, number, {name: plain}, reduce) for name, named in _named(example, extra_prompts)]
        if pair is None:
            jobs.append(_job(model, example, number, {"prompt": plain}, reduce))
            continue
        at = positions or [pair.position]
        shared = not pair.suffix
        first: dict[str, Sequence[Positions]] = {"positive": at}
        if shared and context:
            first["prompt"] = context
        jobs.append(_job(model, example, number, first, reduce, pair.positive, pair.negative))
        jobs.append(_job(model, example, number, {"negative": at}, reduce, pair.negative, pair.positive))
        if not shared and context:
            jobs.append(_job(model, example, number, {"prompt": context}, reduce))
    return [job for job in jobs if job.groups]


def _named(example: Example, extra_prompts: Sequence[str] | None) -> list[tuple[str, Example]]:
    """The example's own captures by name, each as an example with that prompt."""
    missing = [name for name in extra_prompts or () if name not in example.extra_prompts]
    if missing:
        raise DataError(
            f"{example.id!r} has no capture {missing[0]!r}, it has {sorted(example.extra_prompts)}: give "
            f"Example(captures={{{missing[0]!r}: ...}})"
        )
    names = example.extra_prompts if extra_prompts is None else extra_prompts
    return [(name, example.replace(prompt=example.extra_prompts[name], contrast=None)) for name in names]


def _job(
    model: Model,
    example: Example,
    number: int,
    wanted: dict[str, Sequence[Positions]],
    reduce: Reduce,
    answer: str | None = None,
    other_answer: str | None = None,
) -> CaptureRow:
    pair = example.contrast
    text = example.prompt
    if answer is not None and pair is not None and pair.suffix:
        text = f"{text} {pair.suffix}"
    end_turn = pair.end_turn if pair is not None and answer is not None else False
    # only where it is asked for: the answers of a contrast may begin alike and never part
    named = (
        other_answer if any("first_difference" in str(name) for names in wanted.values() for name in names) else None
    )
    row = model.encode(
        text, answer=answer, other_answer=named, end_turn=end_turn, system=example.system, example_id=example.id,
        images=example.images,
    )  # fmt: skip
    plain = row.head(row.n_prompt)  # no position of the prompt may mean a word of the answer
    groups: list[tuple[int, ...]] = []
    labels: list[dict[str, Any]] = []
    for side, names in wanted.items():
        for name in names:
            answered = side in ("positive", "negative")
            tokens = resolve_nonempty(name, row if answered else plain, number)
            for group in [tuple(tokens)] if reduce == "mean" else [(t,) for t in tokens]:
                groups.append(group)
                labels.append(_label(example, side, name, group, row, number))
    return CaptureRow(row, tuple(groups), tuple(labels))


def _label(
    example: Example, side: str, position: Positions, group: tuple[int, ...], row: EncodedPrompt, number: int
) -> dict[str, Any]:
    single = len(group) == 1
    return {
        "example_id": example.id,
        "side": side,
        "position": describe(position),
        "behavior": example.behavior,
        "split": example.split,
        "column": group[0] if single else -1,
        "token": row.ids[group[0]] if single else -1,
        "n_tokens": len(group),
        "order": number,
    }


@dataclass(frozen=True)
class TokenSelector:
    """Picks the wanted tokens out of a batch's state on the device, and averages each group.

    Only the tokens asked for are touched, so whatever the padding holds can't leak in.
    """

    rows: Tensor
    columns: Tensor
    lengths: Tensor
    dtype: torch.dtype

    @classmethod
    def of(cls, jobs: Sequence[CaptureRow], batch: Batch, dtype: torch.dtype, device: torch.device) -> TokenSelector:
        """The selector of a batch of jobs."""
        flat = [
            (i, offset + token)
            for i, (job, offset) in enumerate(zip(jobs, batch.offsets, strict=True))
            for group in job.groups
            for token in group
        ]
        rows, columns = torch.tensor(flat, device=device).T
        return cls(rows, columns, torch.tensor([len(g) for job in jobs for g in job.groups], device=device), dtype)

    def __call__(self, h: Tensor) -> Tensor:
        """`(batch, tokens, hidden)` to `(group, hidden)`."""
        tokens = h[self.rows.to(h.device), self.columns.to(h.device)]
        if len(self.lengths) == len(self.rows):
            return tokens.to(self.dtype)
        means = torch.segment_reduce(tokens.float(), "mean", lengths=self.lengths.to(h.device))
        return means.to(self.dtype)

    def row(self, number: int, start: int) -> tuple[TokenSelector, Tensor]:
        """The selector of one row by itself, whose column `start` is its first, and which groups those are of all."""
        group = torch.arange(len(self.lengths), device=self.lengths.device).repeat_interleave(self.lengths)
        own = self.rows == number
        groups = group[own].unique_consecutive()
        columns = self.columns[own] - start
        return TokenSelector(torch.zeros_like(columns), columns, self.lengths[groups], self.dtype), groups


def index_of(jobs: Sequence[CaptureRow]) -> pd.DataFrame:
    """The index frame of the jobs' rows, in their order, with the sample's place in the data as `order`."""
    frame = pd.DataFrame([label for job in jobs for label in job.labels])
    if frame.empty:
        raise DataError("nothing was asked for: give at least one position")
    return frame[[*INDEX_COLUMNS, "order"]]
