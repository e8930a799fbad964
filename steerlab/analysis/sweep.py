"""`sweep`: every method, layer, strength and position on the same inputs, as cheaply as is exact."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from steerlab._support.checks import as_whole, check_type
from steerlab._support.contents import content_fingerprint
from steerlab._support.display import notebook_html
from steerlab._support.files import fingerprint
from steerlab._support.progress import bar as progress_bar
from steerlab._support.progress import interruptible
from steerlab.analysis._sweep.plan import AnswerForwards, plan_answers
from steerlab.analysis._sweep.rows import SweepRows, encode_answers
from steerlab.analysis._sweep.run import check_positions_exist, run_answers
from steerlab.analysis._sweep.settings import Methods, Setting, as_alphas, make_settings
from steerlab.analysis._sweep.texts import TextMetric, run_texts
from steerlab.analysis.study import Study
from steerlab.capturing import Activations
from steerlab.capturing.rows import Layers
from steerlab.data.example import Example, data_hash
from steerlab.data.inputs import Data, as_examples
from steerlab.errors import DataError, SteeringError
from steerlab.metrics.answers import ANSWER_METRICS, check_first
from steerlab.models.job import background
from steerlab.models.model import Model
from steerlab.models.operators import EditRule
from steerlab.models.positions import Positions, position_key
from steerlab.models.ready import check_ready
from steerlab.steering.batches import encode_examples
from steerlab.steering.finite import not_finite
from steerlab.steering.interventions import build_edits
from steerlab.steering.padding import option_in_use
from steerlab.steering.requests import Scale

Metric = str | TextMetric
MEMORY = 2**30
MULTIPLIERS = (-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5)  # of arXiv 2407.12404
COLUMNS = (
    "method", "model", "layer", "alpha", "positions", "example_id", "behavior", "split", "metric", "value",
    "norm_ratio",
)  # fmt: skip


@dataclass
class SweepPlan:
    """What a sweep will run, from `sweep(..., dry_run=True)`.

    Example:
        >>> plan = steerlab.sweep(model, rows, MeanDifference(), train=acts, dry_run=True)
        >>> print(plan.explain())
        >>> frame = plan.run()

    Attributes:
        model, examples, settings: what is measured, on which inputs, under which settings.
        answer_metrics: names of `ANSWER_METRICS`, by the name in the frame.
        text_metrics: functions of generated text, by name.
        arguments: of the sweep, for the frame's `.attrs`.
        batch_size: limit on the rows of a forward, or None.
        answers: the forwards whose logits are read, or None.
        prompts: the rows from which text is generated, or None.
        texts: after `run`, the generated texts: `method, layer, alpha, positions, example_id, text, ids, norm_ratio`,
            one row per setting and input, in the order of both; None before, and where no text is measured.
    """

    model: Model
    examples: list[Example]
    settings: list[Setting]
    answer_metrics: dict[str, str]
    text_metrics: dict[str, TextMetric]
    arguments: dict[str, Any]
    batch_size: int | None
    answers: AnswerForwards | None
    prompts: SweepRows | None
    texts: pd.DataFrame | None = None

    def __repr__(self) -> str:
        return f"SweepPlan({len(self.settings)} settings x {len(self.examples)} inputs on {self.model.id})"

    def _repr_html_(self) -> str:
        return notebook_html(self, self.explain())

    def explain(self) -> str:
        """The forwards and their cost in forward-equivalents, in words; after `run` also what was spent."""
        lines = [] if self.answers is None else [self.answers.explain()]
        if self.prompts is not None:
            lines.append(
                f"{', '.join(self.text_metrics)}: texts of {len(self.settings)} settings x {len(self.examples)} inputs "
                "are generated, settings batched as rows; the prompt is computed once where no setting steers it"
            )
        return "\n".join(lines)

    def run(self, folder: str | Path | None = None, *, progress: bool = True) -> pd.DataFrame:
        """Measure every setting; see `sweep`."""
        check_ready(self.model)
        study = None if folder is None else Study(folder, self._identity())
        stage = (lambda _, compute: compute()) if study is None else study.stage
        total = None if self.answers is None else self.answers.n_batches
        frames: list[pd.DataFrame] = []
        with (
            progress_bar(total, "sweep", "batch", progress) as bar,
            interruptible(folder, lambda: f"{study.n_finished if study else 0} finished batches"),
        ):

            def emit(columns: Mapping[str, str], frame: pd.DataFrame) -> None:
                frames.append(self._long(frame, columns))
                bar.update(1)

            if self.answers is not None:
                names = list(dict.fromkeys(self.answer_metrics.values()))
                run_answers(self.model, self.answers, names, stage, partial(emit, self.answer_metrics))
            if self.prompts is not None:
                found = run_texts(
                    self.model, self.settings, self.prompts, self.examples, self.text_metrics, stage,
                    partial(emit, {name: name for name in self.text_metrics}),
                    batch_size=self.batch_size, options=self.arguments["generation"],
                )  # fmt: skip
                self.texts = self._with_labels(found, ["text", "ids", "norm_ratio"])
        return self._labeled(pd.concat(frames, ignore_index=True))

    def _identity(self) -> dict[str, Any]:
        info = {k: v for k, v in self.model.info().items() if k != "versions"}
        groups = [] if self.answers is None else [group.inputs.name for group in self.answers.groups]
        inputs = [one for one in (self.answers.rows if self.answers else None, self.prompts) if one is not None]
        tokens = fingerprint([[one.ids, [row.ids for rows in one.variants for row in rows]] for one in inputs])
        options = [] if self.prompts is None else [self.arguments["generation"], self.model.hf.generation_config]
        places = [one.positions_or(setting.positions) for setting in self.settings for one in setting.interventions]
        if not all(isinstance(place, str) for place in places):  # earlier versions steered given answers there, too
            info |= {"places": "of the prompt"}
        return {
            "study": "sweep", **info, "data": data_hash(self.examples), "groups": groups, "tokens": tokens,
            "metrics": sorted({*self.answer_metrics.values(), *self.text_metrics}), **self.arguments,
            "vectors": _vectors_hash(self.settings), "generation_fingerprint": content_fingerprint(options),
        }  # fmt: skip

    def _long(self, frame: pd.DataFrame, columns: Mapping[str, str]) -> pd.DataFrame:
        """One row per measurement, settings and inputs as numbers."""
        keys = ["setting", "input", "norm_ratio"]
        frame = frame[keys].assign(**{name: frame[column] for name, column in columns.items()})
        for name in columns:
            bad = frame[~np.isfinite(frame[name])]
            if len(bad):
                raise self._not_finite(name, bad.iloc[0])
        return frame.melt(id_vars=keys, value_vars=list(columns), var_name="metric", value_name="value")

    def _not_finite(self, name: str, row: pd.Series) -> DataError:
        """The error for a measurement that is not finite, with the first block whose output is not."""
        number, setting = int(row["input"]), self.settings[int(row["setting"])]
        batch = self.model.batch(encode_examples(self.model, [self.examples[number]]))
        found = not_finite(self.model, self.model.inputs(batch), build_edits(self.model, [setting], batch, [number]))
        return DataError(f"{name} of {self.examples[number].id!r} is {row[name]} under {setting.label()}: {found}")

    def _with_labels(self, frame: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
        """Some columns of a frame, with the labels of its settings and inputs in place of their numbers."""
        settings = pd.DataFrame([setting.label() for setting in self.settings])
        inputs = pd.DataFrame([{"example_id": e.id, "behavior": e.behavior, "split": e.split} for e in self.examples])
        tables = [(settings, "setting"), (inputs, "input")]
        labels = [table.iloc[frame[key]].reset_index(drop=True) for table, key in tables]
        return pd.concat([*labels, frame[columns].reset_index(drop=True)], axis=1)

    def _labeled(self, long: pd.DataFrame) -> pd.DataFrame:
        """Labels in place of numbers, ordered by metric, setting and input."""
        rank = {name: i for i, name in enumerate([*self.answer_metrics, *self.text_metrics])}
        long = long.assign(rank=long["metric"].map(rank)).sort_values(["rank", "setting", "input"], kind="stable")
        frame = self._with_labels(long, ["metric", "value", "norm_ratio"]).assign(model=self.model.id)[list(COLUMNS)]
        frame.attrs |= {
            "info": self.model.info(), "data": data_hash(self.examples), "arguments": self.arguments,
            "plan": self.explain(),
        }  # fmt: skip
        if (answers := self.answers) is not None:
            frame.attrs["forward_equivalents"] = {
                "one_per_setting": answers.naive, "planned": answers.planned,
                "spent": answers.spent / answers.forward_cost,
            }  # fmt: skip
        return frame


@background
def sweep(
    model: Model,
    data: Data,
    steer: Methods,
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
    dry_run: bool = False,
    progress: bool = True,
    blocking: bool = True,  # handled by `background`
) -> Any:
    """Measure every setting (method, layer, alpha, positions) on the same inputs, as cheaply as is exact.

    Settings are rows of one batch. The blocks below the lowest steered one of a batch are computed once, and the
    forward restarts from their cached output; where the prompt is not steered, its keys and values are computed once
    for all settings.

    Example:
        >>> rows = steerlab.data.mwe(path, "openness")
        >>> train, test = rows[:200], rows[200:300]
        >>> frame = steerlab.sweep(model, test, steerlab.MeanDifference(), train=train)
        >>> frame.groupby(["layer", "alpha"]).value.mean()

    Args:
        model: from `steerlab.load`.
        data: Examples; metrics of answers need a contrast, whose two answers are compared.
        steer: a Steerer, vectors by layer, or several in a list or by name; `{name: {layer: fitted Steerer}}` for a
            steerer of each layer.
        layers: "all", a layer, or layers and Sites, each of them steered by itself; None: every steerer's own, or all
            where they are fitted.
        alphas: strengths; 0 is measured once.
        positions: where to add the vectors; one, or several in a list.
        metric: names of `steerlab.metrics.answers.ANSWER_METRICS` ("propensity", "accuracy", "logprob", ...), functions
            `(examples, texts) -> numbers` of generated text, several in a list, or `{name: metric}`. A changed function
            is measured anew on the texts of a folder; what it names in its own script or package belongs to it.
        train: Activations or Examples that the steerers are fitted to, at every layer; None: they are fitted already.
            An oracle (P2S) that is not fitted yet is fitted to the inputs measured.
        scale: "raw", "norm" for alpha in units of each input's norm, or "token_norm" for units of each state's.
        folder: where finished batches are stored; a second call resumes from there, with the same frame as result.
        batch_size: limit on the rows of a forward; None: as many as keep the device busy. Halved when memory runs out.
        memory: bytes that the prompts' keys and values and the cached states may take.
        generation: `max_new_tokens` (60) and whatever else Hugging Face's `generate` takes, for functions of text.
            Sampled texts depend on the rows of their batch; the same call gives the same ones.
        dry_run: return the `SweepPlan` instead of running it.
        progress: show a progress bar; with a remote model it also shows the status of the job.
        blocking: False returns a `Job` at once, whose `result()` is the frame; for a model on a server.

    Returns:
        A frame with one row per measurement: `method, model, layer, alpha, positions, example_id, behavior, split,
        metric, value, norm_ratio` (mean of ‖h' - h‖/‖h‖ over the steered states). `.attrs` has the plan in words, the
        forward-equivalents planned and spent, and provenance. With `dry_run` a `SweepPlan`.

    Raises:
        DataError: an input without contrast, repeated ids, a metric that is not one finite number per input.
        EncodingError: answers of which one is the beginning of the other. SteeringError: nothing to sweep over, or
            vectors that do not change what is measured.
        MismatchError: the folder belongs to another sweep; both are named. StorageError: the disk is full.
        OutOfMemory: not even one row fits. RemoteError: the server that holds the weights failed; with `folder` the
            same call resumes.

    Source: the propensity is that of arXiv 2407.12404.
    """
    check_ready(model)
    examples, metrics, alphas = as_examples(data), _metrics_by_name(metric), as_alphas(alphas)
    if batch_size is not None:
        as_whole("batch_size", batch_size)
    as_whole("memory", memory)
    generation = check_type("generation", generation or {}, Mapping, "options of `generate` by name")
    as_whole("max_new_tokens", generation.get("max_new_tokens", 1))
    if isinstance(train, Iterator):
        train = list(train)  # each method reads them
    where: list[Positions] = list(positions) if isinstance(positions, list | tuple) else [positions]  # type: ignore[list-item]
    settings = make_settings(
        model, steer, examples, layers=layers, alphas=alphas, positions=where, scale=scale, train=train,
        batch_size=batch_size or 16,
    )  # fmt: skip
    arguments = {
        "methods": list(dict.fromkeys(one.name for one in settings)),
        "layers": list(dict.fromkeys(one.layer for one in settings)),
        "alphas": alphas, "positions": [position_key(p) for p in where], "scale": scale,
        "generation": dict(generation),
    }  # fmt: skip
    answer_metrics = {name: one for name, one in metrics.items() if isinstance(one, str)}
    text_metrics = {name: one for name, one in metrics.items() if not isinstance(one, str)}
    answers = prompts = None
    if answer_metrics:
        names = list(answer_metrics.values())
        rows = encode_answers(model, examples, any(ANSWER_METRICS[name].both_answers for name in names))
        check_first(names, rows.same_first_token)
        check_positions_exist(settings, rows.variants[0])
        answers = plan_answers(model, settings, rows, batch_size, memory)
    if text_metrics:
        if option_in_use(model, generation, "num_return_sequences") not in (None, 1):
            raise SteeringError("a sweep has one text for each setting and input: give num_return_sequences=1")
        prompts = SweepRows("prompt", (tuple(encode_examples(model, examples)),))
        check_positions_exist(settings, prompts.variants[0])
    plan = SweepPlan(model, examples, settings, answer_metrics, text_metrics, arguments, batch_size, answers, prompts)
    return plan if dry_run else plan.run(folder, progress=progress)


def _metrics_by_name(metric: Metric | Sequence[Metric] | Mapping[str, Metric]) -> dict[str, Metric]:
    """Metrics by name.

    Raises:
        DataError: an unknown name, two metrics of the same one, or none at all.
    """
    if isinstance(metric, Mapping):
        names, listed = list(metric), list(metric.values())
    else:
        listed = list(metric) if isinstance(metric, list | tuple) else [metric]  # type: ignore[list-item]
        names = [m if isinstance(m, str) else getattr(m, "__name__", type(m).__name__) for m in listed]
    if not names or len(set(names)) < len(names) or {"setting", "input", "norm_ratio"} & set(names):
        raise DataError(f"the metrics are called {names}: give at least one, each with a name that no column has")
    if unknown := [m for m in listed if not callable(m) and not (isinstance(m, str) and m in ANSWER_METRICS)]:
        raise DataError(
            f"unknown metric {unknown[0]!r}; expected one of {list(ANSWER_METRICS)}, or a function of texts"
        )
    return dict(zip(names, listed, strict=True))


def _vectors_hash(settings: Sequence[Setting]) -> str:
    """A hash of all vectors, which tells one sweep from another."""
    total = hashlib.sha256()
    for setting in settings:
        total.update(setting.fitted_hash.encode())
        for one in setting.interventions:
            if one.rule != EditRule():
                total.update(content_fingerprint(one.rule).encode())
            total.update(f"{setting.name} {one.site}".encode())
            if one.positions is not None:
                total.update(position_key(one.positions).encode())
            for tensor in (one.vectors, one.gate):
                if tensor is not None:
                    total.update(tensor.float().contiguous().numpy().tobytes())
    return total.hexdigest()[:16]
