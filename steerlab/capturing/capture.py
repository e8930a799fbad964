"""`capture`: hidden states of a model while it reads prompts and answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import torch

from steerlab._support.checks import check_option, show
from steerlab._support.files import fingerprint
from steerlab._support.memory import halve_on_oom
from steerlab._support.progress import bar as progress_bar
from steerlab._support.progress import interruptible
from steerlab.capturing.activations import Activations, CapturedBatch
from steerlab.capturing.rows import (
    CaptureRow,
    Encoded,
    Layers,
    Reduce,
    TokenSelector,
    as_sites,
    index_frame,
    plan_image_rows,
    plan_rows,
)
from steerlab.capturing.shared import share_prompts
from steerlab.capturing.store import Store
from steerlab.data.example import data_hash
from steerlab.data.inputs import Data, as_examples
from steerlab.errors import DataError, PositionError
from steerlab.models.encoding import PaddingSide
from steerlab.models.engine import FULL_FORWARD, StateSelector
from steerlab.models.job import background
from steerlab.models.model import Model
from steerlab.models.patches import PatchSelector, refuse_padded_images
from steerlab.models.positions import Positions, describe, position_key
from steerlab.models.ready import check_ready
from steerlab.models.sites import Site

Where = Positions | Sequence[Positions]


@overload
def capture(model: Model, data: Data, *, folder: None = None, **options: Any) -> Activations: ...


@overload
def capture(model: Model, data: Data, *, folder: str | Path, **options: Any) -> Store: ...


@background  # type: ignore[misc]  # the overloads abbreviate the parameters below to **options
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
    encoded: Encoded | None = None,
    folder: str | Path | None = None,
    progress: bool = True,
    blocking: bool = True,  # read by `background`
) -> Activations | Store:
    """Capture activations at any sites and positions, with one forward and one host copy per batch.

    The model is read unsteered, also inside `with steerlab.steer(...)`. A state is what its module computes, before
    hooks of your own on that module; what these change is first seen at "block_in" of the next block.

    Example:
        >>> acts = steerlab.capture(model, ["Hello there", "How are you?"], layers=[3, 7], positions="last")
        >>> acts.at(7).shape
        torch.Size([2, 576])
        >>> acts = steerlab.capture(model, pairs)          # examples with a contrast: both answers, and the context
        >>> store = steerlab.capture(model, pairs, folder="acts/")
        >>> acts = store.load(layers=[16])                 # only this layer is loaded into memory

    Args:
        model: from `steerlab.load`.
        data: prompts, or Examples. Examples with a contrast are run with both answers (sides "positive" and
            "negative", captured at `positions`); their plain prompt (side "prompt") is captured at `context`.
        layers: "all", a layer, or a list of layers and Sites; 0-based outputs of decoder blocks. Sites of the vision
            tower or the projector (`Site(1, part="vision")`) are captured without other sites, at positions="images":
            the images of the plain prompt, the mean of their patches ("mean") or each patch ("none"). CLIP's class
            state counts as a patch. The index column `column` is the number of the patch in the order
            of the module's output (Qwen2.5-VL orders patches by windows).
        positions: one position or several (see `steerlab.models.positions`). None takes the `position` of each
            contrast, and "last" for prompts without contrasts.
        context: positions in the plain prompt of examples with a contrast, or None. Where some have one, prompts
            without a contrast are read at `context` too, and not at all without it.
        extra_prompts: which `extra_prompts` of the examples to capture, where the plain prompt is captured; their names
            are further sides. None: all.
        reduce: "mean" averages the tokens of a position into one row (in float32), "none" keeps one row per token.
        batch_size: token sequences per forward; halved, with a warning, when memory runs out.
        padding: side to pad on; the result does not depend on it.
        dtype: of the values returned and copied.
        encoded: plain prompts that are encoded already, by example id; they are not encoded again.
        folder: write every batch to a safetensors file in this folder and return a `Store`; a second call with the
            same arguments captures only what is missing. None: return the Activations.
        progress: show a progress bar; for a model on a server it also shows the state of the job.
        blocking: False returns a `Job`, whose `result()` waits for the return value; for models on a server.

    Returns:
        Activations `(row, site, hidden)`, rows in the order of the data; with `folder`, a `Store` of them.

    Raises:
        DataError, EncodingError, PositionError, LayoutError: bad input, found before the first forward.
        ActivationError: a value is NaN or infinite.
        MismatchError: the folder holds another capture; the message names the differences.
        OutOfMemory: a single row does not fit.
        RemoteError: the server that holds the weights failed.
        SteerlabError: the model is in training mode or compiled, or autocast is on: its numbers would be others.
    """
    check_ready(model)
    check_option("reduce", reduce, ("mean", "none"))
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise DataError(f"dtype={show(dtype)}: expected a PyTorch dtype such as torch.float32")
    examples, sites = as_examples(data), as_sites(layers, model)
    at, ctx = _as_list(positions), _as_list(context)
    if positions is not None and not at:
        raise PositionError("positions is empty: give at least one, or None for the defaults")
    if sites[0].part == "text":
        rows = plan_rows(model, examples, at, ctx, reduce, extra_prompts, encoded)
    else:
        rows, at, ctx = plan_image_rows(model, examples, at, encoded), ["images"], []
    info = model.info() | {
        "data": data_hash(examples), "positions": [describe(position) for position in at],
        "context": [describe(position) for position in ctx], "reduce": reduce,
        "sites": [str(site) for site in sites], "tokens": fingerprint([row.prompt.ids for row in rows]),
    }  # fmt: skip
    run = BatchRunner(model, sites, dtype, padding, reduce)
    numbered = model.batches([row.prompt for row in rows], batch_size, padding)
    batches = [[rows[i] for i in numbers] for numbers in numbered]
    store = None
    if folder is not None:
        # the batches too: which rows share one depends on the padding that the model takes
        settings = {
            "batch_size": batch_size, "storage": str(dtype), "batches": fingerprint(numbered),
            # in the index, and in no other hash
            "labels": fingerprint([*(e.split for e in examples), *(extra_prompts or ())]),
            "masks": fingerprint([position_key(position) for position in (*at, *ctx)]),
        }  # fmt: skip
        store = Store.create(Path(folder), info, settings, sites, len(batches))
    found: list[CapturedBatch] = []

    def done() -> str:
        return "" if store is None else f"{sum(map(store.has_shard, range(len(batches))))} of {len(batches)} batches"

    with progress_bar(len(rows), "capture", "row", progress) as bar, interruptible(folder, done):
        for number, batch in enumerate(batches):
            if store is None:
                found += run(batch)
            elif not store.has_shard(number):
                store.write_shard(number, run(batch))
            bar.update(len(batch))
    if store is not None:
        return store
    return Activations.join(found, sites, info | {"bytes_copied": sum(values.nbytes for values, _ in found)})


@dataclass(frozen=True)
class BatchRunner:
    """Runs batches of planned rows.

    Attributes:
        model, sites, dtype, padding, reduce: as in `capture`.
    """

    model: Model
    sites: tuple[Site, ...]
    dtype: torch.dtype
    padding: PaddingSide
    reduce: Reduce

    def __call__(self, rows: Sequence[CaptureRow]) -> list[CapturedBatch]:
        """The activations of a batch on the host; in several parts after memory ran out."""
        return halve_on_oom(self._run, rows, describe=self._describe)

    def _run(self, rows: Sequence[CaptureRow]) -> CapturedBatch:
        model, text = self.model, self.sites[0].part == "text"
        shared = share_prompts(model, rows, self.sites) if text else None
        counts: list[int] = []  # of patches per row: `PatchSelector` fills it
        with model.lock:
            if shared is None:
                batch, start = model.batch([row.prompt for row in rows], self.padding), FULL_FORWARD
                inputs = model.inputs(batch)
            else:
                inputs, start, batch = shared.prefill(model)  # start: the keys and values of the shared prompts
            if not text:
                refuse_padded_images(batch.extra)
            patches = PatchSelector(batch.units, self.reduce == "mean", self.dtype, counts)
            selector: StateSelector = TokenSelector.of(rows, batch, self.dtype, model.device) if text else patches
            # the only host copy of the batch: the selected states
            values = model.engine.capture_states(inputs, {}, self.sites, selector, start).cpu()
        return values, index_frame(rows, counts, self.reduce)

    def _describe(self, rows: Sequence[CaptureRow]) -> str:
        return (
            f"one row of {len(rows[0].prompt)} tokens does not fit in the memory of {self.model.device}; "
            "load the model in a smaller dtype, on a larger device, or shorten the prompt"
        )


def _as_list(where: Where | None) -> list[Positions]:
    if where is None:
        return []
    return list(where) if isinstance(where, list | tuple) else [where]  # type: ignore[list-item]
