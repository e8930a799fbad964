"""Sweeps that measure generated text: settings as rows of a batch, prompts computed once where they are not steered."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from steerlab._support.checks import show
from steerlab._support.contents import content_fingerprint
from steerlab._support.files import fingerprint
from steerlab.analysis._sweep.rows import InputBatch, SweepRows, make_input_batch
from steerlab.analysis._sweep.run import Stage, norm_ratios, results_frame
from steerlab.analysis._sweep.settings import Setting
from steerlab.data.example import Example
from steerlab.errors import DataError
from steerlab.models.kv_prefix import MIN_PREFIX, Prefix
from steerlab.models.model import Model
from steerlab.models.versions import cache_name
from steerlab.steering.generate import NEW_TOKENS, by_input, check_lengths, decode, new_ids, seeded
from steerlab.steering.interventions import build_edits, first_written_column
from steerlab.steering.padding import option_in_use, reads_padding

TextMetric = Callable[[Sequence[Example], Sequence[str]], Sequence[float]]
MAX_ROWS = 64  # of a batch while decoding


def run_texts(
    model: Model, settings: Sequence[Setting], prompts: SweepRows, examples: list[Example],
    metrics: Mapping[str, TextMetric], stage: Stage, emit: Callable[[pd.DataFrame], None], *,
    batch_size: int | None, options: dict[str, Any],
) -> pd.DataFrame:  # fmt: skip
    """Emit every setting's measurements; texts are stored by batch, and the metrics' values by setting.

    Returns:
        One row per setting and input, in this order: `setting, input, norm_ratio, text, ids`.
    """
    whole: list[pd.DataFrame] = []
    prefixes: dict[tuple[int, ...], Prefix] = {}  # of the last batch of inputs
    n_rows = batch_size or MAX_ROWS
    check_lengths(model, prompts.variants[0], options.get("max_new_tokens", NEW_TOKENS))
    made = partial(model.batches, prompts.variants[0], side="aligned", unpadded=reads_padding(model, options))
    parts: dict[int, list[pd.DataFrame]] = {i: [] for i in range(len(settings))}
    for group in _groups(settings):
        size = max(1, n_rows // len(examples))
        for begin in range(0, len(group), size):
            chosen = group[begin : begin + size]
            rows_per_setting = max(1, n_rows // len(chosen))
            for number, inputs in enumerate(made(batch_size=rows_per_setting)):
                batch = make_input_batch(model, prompts, inputs)
                key = fingerprint([batch.numbers, chosen, "text, ids"])[:8]
                name = f"text-{chosen[0]:04d}-{len(chosen)}-{number:04d}-{key}"
                found = stage(name, lambda: _generate(model, settings, batch, chosen, options, prefixes))  # noqa: B023
                found = found.assign(**{name: found[name].map(json.loads) for name in ("text", "ids")})
                for setting, frame in found.groupby("setting"):
                    parts[int(str(setting))].append(frame)
    measured = content_fingerprint([*metrics.items(), [dict(e.meta) for e in examples]])[:8]  # metrics may read `meta`
    unsteered = next((i for i in parts if settings[i].alpha == 0), None)  # generated once for all of alpha 0
    for number, setting in enumerate(settings):
        source = parts[unsteered] if setting.alpha == 0 and unsteered is not None else parts[number]
        texts = pd.concat(source).sort_values("input", ignore_index=True).assign(setting=number)
        whole.append(texts)
        emit(stage(f"metric-{number:04d}-{measured}", lambda: _measure(texts, examples, metrics, setting)))  # noqa: B023
    return pd.concat(whole, ignore_index=True)


def _groups(settings: Sequence[Setting]) -> list[list[int]]:
    """Settings that are generated together: of the same positions; the first of alpha 0 by itself."""
    groups: dict[str, list[int]] = {}
    for number, setting in enumerate(settings):
        if setting.alpha != 0:
            groups.setdefault(setting.written_positions, []).append(number)
    unsteered = [i for i, setting in enumerate(settings) if setting.alpha == 0]
    return ([unsteered[:1]] if unsteered else []) + list(groups.values())


def _generate(
    model: Model, settings: Sequence[Setting], inputs: InputBatch, chosen: Sequence[int], options: dict[str, Any],
    prefixes: dict[tuple[int, ...], Prefix],
) -> pd.DataFrame:  # fmt: skip
    """The texts of some inputs under some settings."""
    used, copies, n = [settings[i] for i in chosen], len(chosen), len(inputs.numbers)
    steered = used[0].alpha != 0
    edits = build_edits(model, used, inputs.batch, inputs.numbers, range(copies)) if steered else {}
    whole = model.inputs(inputs.batch, positions=False)
    repeated = {k: t.repeat(copies, *[1] * (t.ndim - 1)) for k, t in whole.items()}
    options = {"max_new_tokens": NEW_TOKENS} | options
    cut = first_written_column(model, inputs.batch, used, inputs.row_numbers) if steered else inputs.last
    in_use = partial(option_in_use, model, options)
    plain = in_use("use_cache") is not False and in_use("num_beams") in (None, 1) and not in_use("cache_implementation")
    if plain and cut == inputs.last >= MIN_PREFIX and model.shortcuts.generation_prefix:
        if inputs.numbers not in prefixes:
            prefixes.clear()
            prefixes[inputs.numbers] = model.prefill({k: t[:, :cut] for k, t in model.inputs(inputs.batch).items()})
        options[cache_name(model.hf)] = prefixes[inputs.numbers].as_generation_cache(copies)
    if allowed := options.get("prefix_allowed_tokens_fn"):
        options["prefix_allowed_tokens_fn"] = by_input(model, allowed, [*inputs.numbers] * copies, options)
    with model.lock, seeded(model, inputs.numbers[0]):  # copies of a prompt in two batches are drawn differently
        ids = new_ids(model, repeated, edits, options)
    ratios = norm_ratios(edits, used, 1, inputs.numbers) if steered else np.zeros((copies, n))
    # as JSON: read back from a file, an answer of digits alone would become a number
    texts = np.array([json.dumps(text) for text in decode(model, ids)], dtype=object).reshape(copies, n)
    tokens = np.array([json.dumps(row) for row in ids], dtype=object).reshape(copies, n)
    return results_frame(chosen, inputs.numbers, {"text": texts, "ids": tokens}, ratios)


def _measure(
    texts: pd.DataFrame, examples: list[Example], metrics: Mapping[str, TextMetric], setting: Setting
) -> pd.DataFrame:
    given = texts["text"].tolist()
    values = {name: _numbers(name, metric(examples, given), len(given), setting) for name, metric in metrics.items()}
    return texts[["setting", "input", "norm_ratio"]].assign(**values)


def _numbers(name: str, values: Any, n: int, setting: Setting) -> np.ndarray:
    """A metric's values, refused unless they are one finite number per text."""
    try:
        found = np.asarray(values, dtype=float).ravel()
    except (TypeError, ValueError) as error:
        raise DataError(f"the metric {name!r} gave {show(values)}: expected one number per text") from error
    label = setting.label()
    at = f"of {label['method']!r} at layer {label['layer']}, alpha {setting.alpha:g}, positions {label['positions']!r}"
    if len(found) != n:
        raise DataError(f"the metric {name!r} gave {len(found)} values for {n} texts {at}: give one for each")
    bad = np.flatnonzero(~np.isfinite(found))
    if len(bad):
        raise DataError(
            f"the metric {name!r} gave {found[bad[0]]} for {len(bad)} of {n} texts {at}, the first of them number "
            f"{bad[0]}: return a number for every text, for example 0 where there is nothing to measure"
        )
    return found
