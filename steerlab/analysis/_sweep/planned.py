"""A sweep that is laid out: what it will do, doing it, and its frame."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from steerlab._support.errors import DataError
from steerlab._support.progress import bar as progress_bar
from steerlab.analysis._sweep.chunking import check_reached
from steerlab.analysis._sweep.plan import SweepPlan, plan_sweep
from steerlab.analysis._sweep.rows import Rows, encode_answers, encode_prompts
from steerlab.analysis._sweep.run import run_plan
from steerlab.analysis._sweep.settings import Setting
from steerlab.analysis._sweep.texts import TextMetric, run_texts
from steerlab.analysis.study import Study
from steerlab.data.example import Example, data_hash
from steerlab.metrics.answers import ANSWER_METRICS, check_first
from steerlab.models.model import Model

Metric = str | TextMetric
COLUMNS = (
    "method", "model", "layer", "alpha", "positions", "example_id", "behavior", "split", "metric", "value",
    "norm_ratio",
)  # fmt: skip


class Sweep:
    """A sweep that is laid out and not yet run: `explain` tells what it will do and cost, `run` does it.

    Example:
        >>> plan = plan(model, MeanDifference(0), rows, layers="all", train=acts)
        >>> print(plan.explain())
        >>> frame = plan.run()

    Attributes:
        plan: the plan of what is read off logits, or None.
        prompts: the rows of what is generated, or None.
    """

    def __init__(
        self, model: Model, examples: list[Example], settings: list[Setting], metrics: Mapping[str, Metric],
        options: dict[str, Any], *, batch_size: int | None, memory: int,
    ) -> None:  # fmt: skip
        self.model, self.examples, self.settings, self.options = model, examples, settings, options
        self.answers = {name: m for name, m in metrics.items() if isinstance(m, str)}
        self.texts = {name: m for name, m in metrics.items() if not isinstance(m, str)}
        self.batch_size = batch_size
        self.plan: SweepPlan | None = None
        self.prompts: Rows | None = None
        if self.answers:
            named = list(self.answers.values())
            rows = encode_answers(model, examples, any(ANSWER_METRICS[name].both_answers for name in named))
            check_first(named, rows.shared)
            check_reached(settings, rows.variants[0])
            self.plan = plan_sweep(model, settings, rows, batch_size, memory)
        if self.texts:
            self.prompts = encode_prompts(model, examples)
            check_reached(settings, self.prompts.variants[0])

    def explain(self) -> str:
        """What will be done, how, and at what cost in forward-equivalents; after `run`, also what was spent."""
        told = [] if self.plan is None else [self.plan.explain()]
        if self.texts:
            told.append(
                f"{', '.join(self.texts)}: {len(self.settings)} cells x {len(self.examples)} inputs are "
                f"generated, cells "
                "packed as rows; the prompt is computed once where no cell steers it"
            )
        return "\n".join(told)

    def run(self, folder: str | Path | None = None, *, progress: bool = True) -> pd.DataFrame:
        """Measure every cell; see `sweep`."""
        stage = _uncached if folder is None else Study(folder, self._identity()).stage
        parts = []
        total = 0 if self.plan is None else self.plan.batches
        with progress_bar(total or None, "sweep", "batch", progress) as bar:
            if self.plan is not None:
                for frame in run_plan(self.model, self.plan, list(dict.fromkeys(self.answers.values())), stage):
                    parts.append(self._long(frame, self.answers))
                    bar.update(1)
            if self.prompts is not None:
                options = dict(self.options["generation"])
                limit = options.pop("max_new_tokens", 40)
                for frame in run_texts(
                    self.model, self.settings, self.prompts, self.examples, self.texts, stage,
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
            "metrics": sorted({*self.answers.values(), *self.texts}), **self.options,
            "vectors": _digest(self.settings), "blocks": blocks,
        }  # fmt: skip

    def _long(self, frame: pd.DataFrame, columns: Mapping[str, str]) -> pd.DataFrame:
        """One row a measurement, still numbered; a metric has the name it was given."""
        frame = frame[["setting", "input", "norm_ratio"]].assign(**{name: frame[c] for name, c in columns.items()})
        names = list(columns)
        bad = [name for name in names if not np.isfinite(frame[name]).all()]
        if bad:
            row = frame.loc[~np.isfinite(frame[bad[0]])].iloc[0]
            raise DataError(
                f"{bad[0]} of {self.examples[int(row['input'])].id!r} is {row[bad[0]]} under "
                f"{self.settings[int(row['setting'])].label()}: the model's logits are not finite there. A "
                f"smaller alpha, or "
                "dtype=torch.float32, may help."
            )
        return frame.melt(
            id_vars=["setting", "input", "norm_ratio"], value_vars=list(names), var_name="metric", value_name="value"
        )

    def _finished(self, long: pd.DataFrame) -> pd.DataFrame:
        """Names in the place of numbers, in the order of metrics, cells and inputs."""
        rank = {name: i for i, name in enumerate([*self.answers, *self.texts])}
        order = long.assign(rank=long["metric"].map(rank)).sort_values(["rank", "setting", "input"], kind="stable")
        settings = pd.DataFrame([setting.label() for setting in self.settings])
        inputs = pd.DataFrame(
            {
                "example_id": [e.id for e in self.examples],
                "behavior": [e.behavior for e in self.examples],
                "split": [e.split for e in self.examples],
            }
        )
        named = [
            table.iloc[order[key]].reset_index(drop=True) for table, key in ((settings, "setting"), (inputs, "input"))
        ]
        values = order[["metric", "value", "norm_ratio"]].reset_index(drop=True)
        frame = pd.concat([*named, values], axis=1).assign(model=self.model.id)[list(COLUMNS)]
        frame.attrs |= {"info": self.model.info(), "data": data_hash(self.examples), "settings": self.options}
        frame.attrs["plan"] = self.explain()
        if self.plan is not None:
            frame.attrs["forward_equivalents"] = {
                "one_a_cell": self.plan.naive, "planned": self.plan.predicted,
                "spent": self.plan.spent / self.plan.forward,
            }  # fmt: skip
        return frame


def _digest(settings: Sequence[Setting]) -> str:
    """What the vectors are, in short: other vectors, another sweep."""
    total = hashlib.sha256()
    for setting in settings:
        total.update(setting.learned.encode())
        for intervention in setting.interventions:
            for tensor in (intervention.vectors, intervention.gate):
                if tensor is not None:
                    total.update(tensor.float().contiguous().numpy().tobytes())
    return total.hexdigest()[:16]


def _uncached(name: str, compute: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """A stage of a sweep without a folder."""
    return compute()
