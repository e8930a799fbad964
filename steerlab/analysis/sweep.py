"""`sweep`: which layer, which strength, which positions, which method? Every cell on the same inputs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from steerlab._support.errors import DataError
from steerlab.analysis._sweep.cells import Cell, Methods, make_cells
from steerlab.analysis._sweep.plan import SweepPlan, plan_sweep
from steerlab.analysis._sweep.rows import check_unique, encode_answers, encode_prompts, without_contrast
from steerlab.analysis._sweep.run import run_plan
from steerlab.analysis._sweep.texts import TextMetric, run_texts
from steerlab.analysis.protocols import MULTIPLIERS
from steerlab.analysis.study import Study
from steerlab.capture import Activations
from steerlab.capture.jobs import Data, Layers, as_examples
from steerlab.data.example import Example, data_hash
from steerlab.metrics.answers import ANSWER_METRICS, check_first
from steerlab.models.model import Model
from steerlab.models.positions import Positions, describe
from steerlab.steering.request import Scale

Metric = str | TextMetric
COLUMNS = (
    "method", "model", "layer", "alpha", "positions", "sample", "behaviour", "split", "metric", "value", "norm_ratio",
)  # fmt: skip
MEMORY = 2**30


class Sweep:
    """A sweep that is laid out and not yet run: `explain` tells what it will do and cost, `run` does it.

    Example:
        >>> plan = plan(model, MeanDifference(0), rows, layers="all", train=acts)
        >>> print(plan.explain())
        >>> frame = plan.run()

    Attributes:
        plan: the plan of what is read off logits, or None.
        text_plan: that of what is generated, or None.
    """

    def __init__(
        self, model: Model, examples: list[Example], cells: list[Cell], metrics: Mapping[str, Metric],
        settings: dict[str, Any], *, batch_size: int | None, memory: int,
    ) -> None:  # fmt: skip
        self.model, self.examples, self.cells, self.settings = model, examples, cells, settings
        self.answers = {name: m for name, m in metrics.items() if isinstance(m, str)}
        self.texts = {name: m for name, m in metrics.items() if not isinstance(m, str)}
        self.batch_size = batch_size
        self.plan: SweepPlan | None = None
        self.text_plan: SweepPlan | None = None
        if self.answers:
            named = list(self.answers.values())
            rows = encode_answers(model, examples, any(ANSWER_METRICS[name].whole for name in named))
            check_first(named, rows.shared)
            self.plan = plan_sweep(model, cells, rows, batch_size, memory)
        if self.texts:
            prompts = encode_prompts(model, examples)
            self.text_plan = SweepPlan(cells, prompts, [], model.n_layers, batch_size or 0, memory, [])

    def explain(self) -> str:
        """What will be done, how, and at what cost in forward-equivalents; after `run`, also what was spent."""
        told = [] if self.plan is None else [self.plan.explain()]
        if self.texts:
            told.append(
                f"{', '.join(self.texts)}: {len(self.cells)} cells x {len(self.examples)} inputs are generated, cells "
                "packed as rows; the prompt is computed once where no cell steers it"
            )
        return "\n".join(told)

    def run(self, folder: str | Path | None = None, *, progress: bool = True) -> pd.DataFrame:
        """Measure every cell; see `sweep`."""
        stage = _uncached if folder is None else Study(folder, self._identity()).stage
        parts = []
        total = 0 if self.plan is None else sum(len(p.chunks) + bool(p.idle) for p in self.plan.parts)
        with tqdm(total=total or None, desc="sweep", unit="batch", disable=not progress) as bar:
            if self.plan is not None:
                for frame in run_plan(self.model, self.plan, list(dict.fromkeys(self.answers.values())), stage):
                    parts.append(self._long(frame, self.answers))
                    bar.update(1)
            if self.text_plan is not None:
                options = dict(self.settings["generation"])
                limit = options.pop("max_new_tokens", 40)
                for frame in run_texts(
                    self.model, self.text_plan, self.examples, self.texts, stage,
                    batch_size=self.batch_size, max_new_tokens=limit, options=options,
                ):  # fmt: skip
                    parts.append(self._long(frame, {name: name for name in self.texts}))
                    bar.update(1)
        return self._finished(pd.concat(parts, ignore_index=True))

    def _identity(self) -> dict[str, Any]:
        info = {k: v for k, v in self.model.info().items() if k not in ("versions",)}
        blocks = [] if self.plan is None else [part.block.name for part in self.plan.parts]
        return {
            "study": "sweep", **info, "data": data_hash(self.examples),
            "metrics": sorted({*self.answers.values(), *self.texts}), **self.settings,
            "vectors": _digest(self.cells), "blocks": blocks,
        }  # fmt: skip

    def _long(self, frame: pd.DataFrame, columns: Mapping[str, str]) -> pd.DataFrame:
        """One row a measurement, still numbered; a metric has the name it was given."""
        frame = frame[["cell", "input", "norm_ratio"]].assign(**{name: frame[c] for name, c in columns.items()})
        names = list(columns)
        bad = [name for name in names if not np.isfinite(frame[name]).all()]
        if bad:
            row = frame.loc[~np.isfinite(frame[bad[0]])].iloc[0]
            raise DataError(
                f"{bad[0]} of {self.examples[int(row['input'])].id!r} is {row[bad[0]]} under "
                f"{self.cells[int(row['cell'])].label()}: the model's logits are not finite there. A smaller alpha, or "
                "dtype=torch.float32, may help."
            )
        return frame.melt(
            id_vars=["cell", "input", "norm_ratio"], value_vars=list(names), var_name="metric", value_name="value"
        )

    def _finished(self, long: pd.DataFrame) -> pd.DataFrame:
        """Names in the place of numbers, in the order of metrics, cells and inputs."""
        rank = {name: i for i, name in enumerate([*self.answers, *self.texts])}
        order = long.assign(rank=long["metric"].map(rank)).sort_values(["rank", "cell", "input"], kind="stable")
        cells = pd.DataFrame([cell.label() for cell in self.cells])
        inputs = pd.DataFrame(
            {
                "sample": [e.id for e in self.examples],
                "behaviour": [e.behaviour for e in self.examples],
                "split": [e.split for e in self.examples],
            }
        )
        named = [table.iloc[order[key]].reset_index(drop=True) for table, key in ((cells, "cell"), (inputs, "input"))]
        values = order[["metric", "value", "norm_ratio"]].reset_index(drop=True)
        frame = pd.concat([*named, values], axis=1).assign(model=self.model.id)[list(COLUMNS)]
        frame.attrs |= {"info": self.model.info(), "data": data_hash(self.examples), "settings": self.settings}
        frame.attrs["plan"] = self.explain()
        if self.plan is not None:
            frame.attrs["forward_equivalents"] = {
                "one_a_cell": self.plan.naive, "planned": self.plan.predicted,
                "spent": self.plan.spent / self.plan.forward,
            }  # fmt: skip
        return frame


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
    cells = make_cells(
        model, steerer, examples if metrics else without_contrast(examples), layers=layers, alphas=alphas,
        positions=where, scale=scale, train=train, batch_size=batch_size or 16,
    )  # fmt: skip
    settings = {
        "methods": list(dict.fromkeys(c.method for c in cells)), "layers": list(dict.fromkeys(c.layer for c in cells)),
        "alphas": [float(a) for a in alphas], "positions": [describe(p) for p in where], "scale": scale,
        "generation": dict(generation or {}),
    }  # fmt: skip
    return Sweep(model, examples, cells, metrics, settings, batch_size=batch_size, memory=memory)


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
        progress: show a bar.

    Returns:
        One row per measurement: `method, model, layer, alpha, positions, sample, behaviour, split, metric, value,
        norm_ratio` (mean of ‖alpha·v‖/‖h‖ over the states written to). `.attrs` has the plan in words, the
        forward-equivalents planned and spent, and provenance.

    Raises:
        DataError: an input without contrast, ids given twice, a metric that is not one finite number per input.
        EncodingError: answers that never part. SteeringError: nothing to sweep over, or vectors that reach nothing that
            is measured.
        MismatchError: the folder belongs to another sweep; both are named. StorageError: the disk is full.
        OutOfMemory: not even one row fits.

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
        DataError: an unknown name, or two metrics of the same one.
    """
    if isinstance(metric, Mapping):
        found = dict(metric)
    else:
        listed = [metric] if isinstance(metric, str) or callable(metric) else list(metric)
        names = [m if isinstance(m, str) else getattr(m, "__name__", type(m).__name__) for m in listed]
        if len(set(names)) < len(names) or not names:
            raise DataError(f"the metrics are called {names}: give at least one, and each a name of its own in a dict")
        found = dict(zip(names, listed, strict=True))
    unknown = [m for m in found.values() if isinstance(m, str) and m not in ANSWER_METRICS]
    if unknown:
        raise DataError(
            f"unknown metric {unknown[0]!r}; expected one of {list(ANSWER_METRICS)}, or a function of texts"
        )
    return found


def _digest(cells: Sequence[Cell]) -> str:
    """What the vectors are, in short: other vectors, another sweep."""
    total = hashlib.sha256()
    for cell in cells:
        for shift in cell.shifts:
            for tensor in (shift.vectors, shift.gate):
                if tensor is not None:
                    total.update(tensor.float().contiguous().numpy().tobytes())
    return total.hexdigest()[:16]


def _uncached(name: str, compute: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """A stage of a sweep without a folder."""
    return compute()
