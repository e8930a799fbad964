"""`sweep`: which layer, which strength, which positions, which method? Every cell on the same inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from steerlab._support.errors import DataError
from steerlab.analysis._sweep.planned import Metric, Sweep
from steerlab.analysis._sweep.rows import check_unique
from steerlab.analysis._sweep.settings import Methods, make_settings
from steerlab.analysis.protocols import MULTIPLIERS
from steerlab.capture import Activations
from steerlab.capture.rows import Data, Layers, as_examples
from steerlab.data.example import Example
from steerlab.metrics.answers import ANSWER_METRICS
from steerlab.models.job import background
from steerlab.models.model import Model
from steerlab.models.positions import Positions, describe
from steerlab.steering.interventions import Scale

MEMORY = 2**30


def plan(
    model: Model,
    steerer: Methods,
    data: Data,
    layers: Layers | None = None,
    alphas: Sequence[float] = MULTIPLIERS,
    positions: Positions | Sequence[Positions] = "last+generated",
    metric: Metric | Sequence[Metric] | Mapping[str, Metric] = "propensity",
    *,
    train: Activations | Sequence[Example] | None = None,
    scale: Scale = "raw",
    batch_size: int | None = None,
    memory: int = MEMORY,
    generation: Mapping[str, Any] | None = None,
) -> Sweep:
    """Lay out a sweep without running it; arguments as in `sweep`.

    Example:
        >>> print(steerlab.analysis.sweep.plan(model, mean, rows, layers="all", train=acts).explain())
    """
    given = list(data)
    check_unique([e for e in given if isinstance(e, Example)])
    examples = as_examples(given)
    metrics = named_metrics(metric)
    where: list[Positions] = list(positions) if isinstance(positions, list | tuple) else [positions]  # type: ignore[list-item]
    cells = make_settings(
        model, steerer, examples, layers=layers, alphas=alphas, positions=where, scale=scale, train=train,
        batch_size=batch_size or 16,
    )  # fmt: skip
    settings = {
        "methods": list(dict.fromkeys(c.method for c in cells)), "layers": list(dict.fromkeys(c.layer for c in cells)),
        "alphas": [float(a) for a in alphas], "positions": [describe(p) for p in where], "scale": scale,
        "generation": dict(generation or {}),
    }  # fmt: skip
    return Sweep(model, examples, cells, metrics, settings, batch_size=batch_size, memory=memory)


@background
def sweep(
    model: Model,
    steerer: Methods,
    data: Data,
    layers: Layers | None = None,
    alphas: Sequence[float] = MULTIPLIERS,
    positions: Positions | Sequence[Positions] = "last+generated",
    metric: Metric | Sequence[Metric] | Mapping[str, Metric] = "propensity",
    *,
    train: Activations | Sequence[Example] | None = None,
    scale: Scale = "raw",
    folder: str | Path | None = None,
    batch_size: int | None = None,
    memory: int = MEMORY,
    generation: Mapping[str, Any] | None = None,
    progress: bool = True,
    blocking: bool = True,  # `background` takes it
) -> pd.DataFrame:
    """Measure every cell (method, layer, alpha, positions) on the same inputs, as cheaply as is exact.

    Cells are packed as rows of one batch. What lies below the lowest steered block of a batch is computed once and the
    forward restarts from there; where the prompt is not steered, its keys and values are computed once for all cells.

    Example:
        >>> rows = steerlab.data.mwe(path, "openness")
        >>> train, test = rows[:200], rows[200:300]
        >>> frame = steerlab.sweep(model, steerlab.MeanDifference(0), test, layers="all", train=train)
        >>> frame.groupby(["layer", "alpha"]).value.mean()

    Args:
        model: from `steerlab.load`.
        steerer: a Steerer, a list, or `{name: Steerer}`; `{name: {layer: fitted Steerer}}` for vectors made elsewhere.
        data: Examples; metrics of answers need a contrast, whose two answers are compared.
        layers: "all", a layer, or layers and Sites; None: every steerer's own.
        alphas: strengths; 0 is measured once.
        positions: where to write; one, or several in a list.
        metric: names of `steerlab.metrics.ANSWER_METRICS`, functions `(examples, texts) -> numbers` of generated text,
            several in a list, or `{name: metric}`.
        train: Activations or Examples that the steerers are fitted to, at every layer; None: they are fitted already.
            Oracles (P2S) are fitted to the inputs measured.
        scale: "raw", or "norm" for alpha in units of each input's own norm.
        folder: where finished batches are kept; a second call goes on from there, to the same frame.
        batch_size: most rows of a forward; None: as many as keep the device busy. Halved when memory runs out.
        memory: bytes that the prompts' keys and values and the cached states may take.
        generation: `max_new_tokens` (40) and whatever else Hugging Face's `generate` takes, for functions of text.
        progress: show a bar; with a model on a server it also tells where the job stands there.
        blocking: False hands out a `Job` at once, whose `result()` is the frame; for a model on a server.

    Returns:
        One row per measurement: `method, model, layer, alpha, positions, sample, behavior, split, metric, value,
        norm_ratio` (mean of ‖alpha·v‖/‖h‖ over the states written to). `.attrs` has the plan in words, the
        forward-equivalents planned and spent, and provenance.

    Raises:
        DataError: an input without contrast, ids given twice, a metric that is not one finite number per input.
        EncodingError: answers that never part. SteeringError: nothing to sweep over, or vectors that reach nothing that
            is measured.
        MismatchError: the folder belongs to another sweep; both are named. StorageError: the disk is full.
        OutOfMemory: not even one row fits. RemoteError: the server that holds the weights did not do it; with `folder`
            the same call goes on from there.

    Source: own; the propensity is that of arXiv 2407.12404.
    """
    laid_out = plan(
        model, steerer, data, layers, alphas, positions, metric, train=train, scale=scale, batch_size=batch_size,
        memory=memory, generation=generation,
    )  # fmt: skip
    return laid_out.run(folder, progress=progress)


def named_metrics(metric: Metric | Sequence[Metric] | Mapping[str, Metric]) -> dict[str, Metric]:
    """Metrics by name.

    Raises:
        DataError: an unknown name, two metrics of the same one, or none at all.
    """
    if isinstance(metric, Mapping):
        found = dict(metric)
    else:
        listed = [metric] if isinstance(metric, str) or callable(metric) else list(metric)
        names = [m if isinstance(m, str) else getattr(m, "__name__", type(m).__name__) for m in listed]
        if len(set(names)) < len(names):
            raise DataError(f"the metrics are called {names}: give at least one, and each a name of its own in a dict")
        found = dict(zip(names, listed, strict=True))
    if not found:
        raise DataError(f"the metrics are called {[*found]}: give at least one, and each a name of its own in a dict")
    unknown = [m for m in found.values() if isinstance(m, str) and m not in ANSWER_METRICS]
    if unknown:
        raise DataError(
            f"unknown metric {unknown[0]!r}; expected one of {list(ANSWER_METRICS)}, or a function of texts"
        )
    return found
