"""`capture`: what a model's layers hold while it reads."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from steerlab._support.errors import OutOfMemory, is_out_of_memory
from steerlab._support.files import fingerprint
from steerlab._support.memory import free_memory
from steerlab._support.progress import bar as progress_bar
from steerlab.capture.activations import Activations
from steerlab.capture.images import PatchReader, image_rows
from steerlab.capture.jobs import (
    CaptureRow,
    Data,
    Layers,
    Reduce,
    TokenSelector,
    as_examples,
    as_sites,
    index_of,
    plan_rows,
)
from steerlab.capture.shared import share
from steerlab.capture.store import Store
from steerlab.data.example import data_hash
from steerlab.models.encoding import Batch, PaddingSide, by_length
from steerlab.models.engine import FULL_FORWARD, StateSelector
from steerlab.models.job import background
from steerlab.models.model import Model
from steerlab.models.positions import Positions, describe
from steerlab.models.sites import Site

log = logging.getLogger(__name__)
Where = Positions | Sequence[Positions]


@background
def capture(
    model: Model,
    data: Data,
    *,
    layers: Layers = "all",
    positions: Where | None = None,
    context: Where | None = "last",
    extra_prompts: Sequence[str] | None = None,
    reduce: Reduce = "mean",
    batch_size: int = 16,
    padding: PaddingSide = "right",
    dtype: torch.dtype = torch.float32,
    progress: bool = True,
    blocking: bool = True,  # `background` takes it
) -> Activations:
    """Read activations at any set of sites and positions: one trace per batch, one host copy per batch.

    Example:
        >>> acts = steerlab.capture(model, ["Hello there", "How are you?"], layers=[3, 7], positions="last")
        >>> acts.at(7).shape
        torch.Size([2, 576])
        >>> acts = steerlab.capture(model, pairs)          # examples with a contrast: both answers, and the context

    Args:
        model: from `steerlab.load`.
        data: prompts, or Examples. Examples with a contrast are run with both answers (sides "positive" and
            "negative", read at `positions`); their plain prompt (side "prompt") is read at `context`.
        layers: "all", a layer, or a list of layers and Sites; 0-based outputs of decoder blocks. Sites of the vision
            tower or the projector (`Site(1, part="vision")`) are read by themselves, at positions="images": the plain
            prompt's pictures, all their patches ("mean") or each ("none"). CLIP's class state counts as a patch, and
            `column` in the index is the module's own order, which in Qwen2.5-VL goes by windows.
        positions: one position or several (see `steerlab.models.positions`); by default each contrast is read where it
            says ("answer", or the token of a published word pair), and prompts without contrasts at "last".
        context: positions read of the plain prompt of examples with a contrast, or None.
        extra_prompts: which of the examples' own `extra_prompts` to read, where the plain prompt is read; each is a
            side of its
            own name. None: all they have.
        reduce: "mean" averages the tokens of a position into one row (in float32), "none" keeps one row a token.
        batch_size: rows per forward; halved, with a warning, when memory runs out.
        padding: side to pad on; the result does not depend on it.
        dtype: dtype of the values returned and copied.
        progress: show a progress bar; with a model on a server it also tells where the job stands there.
        blocking: False hands out a `CaptureRow` at once, whose `result()` are the activations; for a model on a server.

    Returns:
        Activations `(row, site, hidden)`, rows in the order of the data.

    Raises:
        DataError, EncodingError, PositionError, LayoutError: bad input, found before the first forward.
        ActivationError: a value is NaN or infinite.
        OutOfMemory: not even one row fits.
        RemoteError: the server that holds the weights did not do it.
    """
    jobs, sites, info = _prepare(model, data, layers, positions, context, extra_prompts, reduce)
    parts: list[Tensor] = []
    frames: list[pd.DataFrame] = []
    with progress_bar(len(jobs), "capture", "row", progress) as bar:
        for chunk in _batches(jobs, batch_size):
            values, index = _read(model, chunk, sites, dtype, padding, reduce)
            parts.append(values)
            frames.append(index)
            bar.update(len(chunk))
    info["bytes_copied"] = sum(part.nbytes for part in parts)
    return in_order(torch.cat(parts), pd.concat(frames, ignore_index=True), sites, info)


@background
def capture_to(
    folder: str | Path,
    model: Model,
    data: Data,
    *,
    layers: Layers = "all",
    positions: Where | None = None,
    context: Where | None = "last",
    extra_prompts: Sequence[str] | None = None,
    reduce: Reduce = "mean",
    batch_size: int = 16,
    padding: PaddingSide = "right",
    dtype: torch.dtype = torch.float32,
    progress: bool = True,
    blocking: bool = True,  # `background` takes it
) -> Store:
    """Like `capture`, but every batch goes to a safetensors shard as soon as it is read, and a second call resumes.

    Example:
        >>> store = steerlab.capture_to("acts/", model, pairs)
        >>> acts = store.load(layers=[16])           # only these layers come into memory

    Raises:
        MismatchError: the folder holds a capture of something else; both are named.
    """
    jobs, sites, info = _prepare(model, data, layers, positions, context, extra_prompts, reduce)
    chunks = list(_batches(jobs, batch_size))
    identity = {k: v for k, v in info.items() if k not in ("versions", "backend")}
    identity |= {"batch_size": batch_size, "storage": str(dtype)}
    store = Store.create(Path(folder), info, identity, sites, len(chunks))
    with progress_bar(len(jobs), "capture", "row", progress) as bar:
        for number, chunk in enumerate(chunks):
            if not store.has(number):
                store.put(number, *_read(model, chunk, sites, dtype, padding, reduce))
            bar.update(len(chunk))
    return store


def _read(
    model: Model,
    jobs: Sequence[CaptureRow],
    sites: Sequence[Site],
    dtype: torch.dtype,
    padding: PaddingSide,
    reduce: Reduce,
) -> tuple[Tensor, pd.DataFrame]:
    """The activations of one batch of jobs and what each row of them is."""
    if sites[0].part == "text":
        return run_rows(model, jobs, sites, dtype, padding), index_of(jobs)
    reader = PatchReader(reduce)
    values = run_rows(model, jobs, sites, dtype, padding, reader.select)
    return values, reader.index(jobs)


def run_rows(
    model: Model,
    jobs: Sequence[CaptureRow],
    sites: Sequence[Site],
    dtype: torch.dtype,
    padding: PaddingSide,
    selector: Callable[[Sequence[CaptureRow], Batch, torch.dtype, torch.device], StateSelector] = TokenSelector.of,
) -> Tensor:
    """The activations of one batch of jobs, on the host; split in two when memory runs out."""
    try:
        shared = share(model, jobs, sites) if sites[0].part == "text" else None
        with model.lock:
            if shared is None:
                batch, forward_state = model.batch([job.row for job in jobs], padding), FULL_FORWARD
                inputs = model.inputs(batch)
            else:
                inputs, forward_state, batch = shared.forward(model)
            # the one host copy of the batch: what was selected, and nothing else
            return model.engine.capture_states(
                inputs, {}, sites, selector(jobs, batch, dtype, model.device), forward_state
            ).cpu()
    except (torch.OutOfMemoryError, RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        if len(jobs) == 1:
            raise OutOfMemory(
                f"one row of {len(jobs[0].row)} tokens does not fit in the memory of {model.device}; "
                "load the model in a smaller dtype, on a larger device, or shorten the prompt"
            ) from error
    free_memory()
    half = len(jobs) // 2
    log.warning("out of memory at a batch of %d rows: going on with %d and %d", len(jobs), half, len(jobs) - half)
    parts = [run_rows(model, part, sites, dtype, padding, selector) for part in (jobs[:half], jobs[half:])]
    return torch.cat(parts)


def in_order(values: Tensor, index: pd.DataFrame, sites: tuple[Site, ...], info: dict[str, Any]) -> Activations:
    """Rows back in the order of the data (batches were formed by length)."""
    order = index.sort_values("order", kind="stable").index
    index = index.loc[order].drop(columns="order").reset_index(drop=True)
    return Activations(values[order.tolist()], index, sites, info)


def _prepare(
    model: Model,
    data: Data,
    layers: Layers,
    positions: Where | None,
    context: Where | None,
    extra_prompts: Sequence[str] | None,
    reduce: Reduce,
) -> tuple[list[CaptureRow], tuple[Site, ...], dict[str, Any]]:
    examples = as_examples(data)
    at, ctx = _listed(positions), _listed(context)
    sites = as_sites(layers, model)
    text = sites[0].part == "text"
    jobs = plan_rows(model, examples, at, ctx, reduce, extra_prompts) if text else image_rows(model, examples, at)
    if not text:  # whatever was said, or left unsaid, this is what is read
        at, ctx = ["images"], []
    info = model.info() | {
        "data": data_hash(examples),
        "positions": [describe(p) for p in at],
        "context": [describe(p) for p in ctx],
        "reduce": reduce,
        "sites": [str(site) for site in sites],
        "tokens": fingerprint([job.row.ids for job in jobs]),
    }
    return jobs, sites, info


def _listed(where: Where | None) -> list[Positions]:
    if where is None:
        return []
    return list(where) if isinstance(where, list | tuple) else [where]  # type: ignore[list-item]


def _batches(jobs: Sequence[CaptureRow], batch_size: int) -> Iterator[list[CaptureRow]]:
    for numbers in by_length([job.row for job in jobs], batch_size):
        yield [jobs[i] for i in numbers]
