"""Sweeps that measure generated text: cells packed as rows, and the prompt computed once where no cell steers it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from steerlab._support.errors import DataError
from steerlab._support.files import fingerprint
from steerlab.analysis._sweep.chunking import ratios
from steerlab.analysis._sweep.plan import WORTH_A_PREFIX, first_column
from steerlab.analysis._sweep.rows import Block, Rows, block_of
from steerlab.analysis._sweep.run import Stage
from steerlab.analysis._sweep.settings import Setting
from steerlab.data.example import Example
from steerlab.models.encoding import by_length
from steerlab.models.model import Model
from steerlab.steering.batched_settings import pack
from steerlab.steering.generate import new_ids

TextMetric = Callable[[Sequence[Example], Sequence[str]], Sequence[float]]
ROWS = 64  # of a batch while decoding


def run_texts(
    model: Model,
    settings: Sequence[Setting],
    prompts: Rows,
    examples: list[Example],
    metrics: Mapping[str, TextMetric],
    stage: Stage,
    *,
    batch_size: int | None,
    max_new_tokens: int,
    options: dict[str, Any],
) -> Iterator[pd.DataFrame]:
    """Every cell's measurements; texts are stored batch by batch, and what a metric says of them cell by cell."""
    n = len(examples)
    rows = batch_size or ROWS
    parts: dict[int, list[pd.DataFrame]] = {i: [] for i in range(len(settings))}
    for members in _groups(settings):
        each = max(1, rows // n)
        for begin in range(0, len(members), each):
            chosen = members[begin : begin + each]
            blocks = [
                block_of(model, prompts, numbers)
                for numbers in by_length(prompts.variants[0], max(1, rows // len(chosen)))
            ]
            for number, block in enumerate(blocks):
                name = f"text-{chosen[0]:04d}-{len(chosen)}-{number:04d}-{fingerprint([block.numbers, chosen])[:8]}"
                found = stage(name, lambda: _answers(model, settings, block, chosen, max_new_tokens, options))  # noqa: B023
                found = found.assign(text=[json.loads(text) for text in found["text"]])
                for setting, frame in found.groupby("setting"):
                    parts[int(str(setting))].append(frame)
    idle = [i for i in parts if settings[i].alpha == 0 and parts[i]]
    for number in parts:
        same = idle[0] if settings[number].alpha == 0 else number  # unsteered answers are generated once
        own = pd.concat(parts[same], ignore_index=True).sort_values("input", ignore_index=True).assign(setting=number)
        yield stage(f"metric-{number:04d}", lambda: _measured(own, examples, metrics, settings[number]))  # noqa: B023


def _groups(settings: Sequence[Setting]) -> list[list[int]]:
    """Cells that are generated together: alike in positions and, in the first, unsteered."""
    groups: dict[str, list[int]] = {}
    idle = [i for i, setting in enumerate(settings) if setting.alpha == 0]
    for number, setting in enumerate(settings):
        if setting.alpha != 0:
            groups.setdefault(setting.written, []).append(number)
    return ([idle[:1]] if idle else []) + list(groups.values())


def _answers(
    model: Model,
    settings: Sequence[Setting],
    block: Block,
    chosen: Sequence[int],
    max_new_tokens: int,
    options: dict[str, Any],
) -> pd.DataFrame:
    """The answers of some inputs under some cells."""
    copies, steered = len(chosen), settings[chosen[0]].alpha != 0
    packed = [settings[i].packed for i in chosen]
    edits = pack(model, packed, block.batch, list(block.numbers)) if steered else {}
    whole = model.inputs(block.batch, positions=False)
    inputs = {k: t.repeat(copies, *[1] * (t.ndim - 1)) for k, t in whole.items()}
    cut = first_column(settings, chosen, block) if steered else block.last
    usable = cut == block.last >= WORTH_A_PREFIX and model.supports_prefix_cache
    past: dict[str, Any] = {}
    if usable:
        given = {k: t[:, :cut] for k, t in model.inputs(block.batch).items()}
        past = {"past_key_values": model.engine.prefill(given).as_generation_cache(copies)}
    with model.lock:
        new = new_ids(model, inputs, edits, max_new_tokens, options | past)
    texts = [str(model.tokenizer.decode(list(t), skip_special_tokens=True)).strip() for t in new]
    own = [settings[i] for i in chosen]
    ratio = ratios(edits, own, 1, len(block.numbers)) if steered else np.zeros((copies, len(block.numbers)))
    return pd.DataFrame(
        {
            "setting": np.repeat(list(chosen), len(block.numbers)),
            "input": np.tile(block.numbers, copies),
            "norm_ratio": ratio.ravel(),
            "text": [json.dumps(text) for text in texts],  # in a file, an answer of digits alone would become a number
        }
    )


def _measured(
    own: pd.DataFrame, examples: list[Example], metrics: Mapping[str, TextMetric], setting: Setting
) -> pd.DataFrame:
    texts = own["text"].tolist()
    frame = own[["setting", "input", "norm_ratio"]].copy()
    for name, metric in metrics.items():
        frame[name] = checked(name, metric(examples, texts), len(texts), setting)
    return frame


def checked(name: str, values: Sequence[float], n: int, setting: Setting) -> list[float]:
    """A metric's answer, refused where it is not one number per text.

    Raises:
        DataError: another length, or a value that is not finite; names the cell.
    """
    listed = [float(value) for value in np.asarray(values, dtype=float).ravel()]
    told = setting.label()
    where = f"of {told['method']!r} at layer {told['layer']}, alpha {setting.alpha:g}, positions {told['positions']!r}"
    if len(listed) != n:
        raise DataError(f"the metric {name!r} gave {len(listed)} values for {n} texts {where}: give one for each")
    bad = [i for i, value in enumerate(listed) if not math.isfinite(value)]
    if bad:
        raise DataError(
            f"the metric {name!r} gave {listed[bad[0]]} for {len(bad)} of {n} texts {where}, the first of them number "
            f"{bad[0]}: return a number for every text, for example 0 where there is nothing to measure"
        )
    return listed
