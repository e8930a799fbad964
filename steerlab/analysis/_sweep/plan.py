"""The forwards of a sweep and their cost, decided before the first of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import torch

from steerlab.analysis._sweep.rows import InputBatch, SweepRows, make_input_batch
from steerlab.analysis._sweep.settings import Setting
from steerlab.models.kv_prefix import MIN_PREFIX, WEIGHT_TOKENS, tokens_per_forward
from steerlab.models.model import Model
from steerlab.steering.interventions import first_written_column


@dataclass(frozen=True)
class SettingBatch:
    """Settings and inputs that share a forward; its results are stored in one file.

    Attributes:
        settings: their numbers.
        rows: the inputs of the input batch, start and stop.
        restart_layer: the block whose cached output the forward restarts from, or None.
    """

    settings: tuple[int, ...]
    rows: tuple[int, int]
    restart_layer: int | None

    @property
    def n_rows(self) -> int:
        """Settings times inputs."""
        return len(self.settings) * (self.rows[1] - self.rows[0])

    def halves(self) -> list[SettingBatch]:
        """Half of the settings each, or half of the inputs; [] where neither can be halved."""
        if len(self.settings) > 1:
            half = len(self.settings) // 2
            return [replace(self, settings=part) for part in (self.settings[:half], self.settings[half:])]
        start, stop = self.rows
        middle = (start + stop) // 2
        return [replace(self, rows=rows) for rows in ((start, middle), (middle, stop))] if stop - start > 1 else []


@dataclass(frozen=True)
class PrefixGroup:
    """The work on one input batch for all settings with the same positions.

    Attributes:
        inputs: the input batch.
        cut: the first column that a setting may change, or that must be computed to be read; 0: no prefix is cached.
        prefix_cost: row-columns of the prompts' keys and values.
        batches: in the order in which they are run.
        unsteered: settings with alpha 0, which one unsteered forward measures.
    """

    inputs: InputBatch
    cut: int
    prefix_cost: int
    batches: tuple[SettingBatch, ...]
    unsteered: tuple[int, ...]

    @property
    def tail(self) -> int:
        """Columns that every setting computes anew."""
        return self.inputs.batch.width - self.cut

    def cost(self, batch: SettingBatch, n_layers: int) -> float:
        """Row-columns times blocks of one setting batch."""
        blocks = n_layers if batch.restart_layer is None else n_layers - 1 - batch.restart_layer
        return float(batch.n_rows * self.inputs.n_variants * self.tail * blocks)

    def total_cost(self, n_layers: int) -> float:
        """Row-columns times blocks of the prefix, the states to restart from, the unsteered forward and all batches."""
        restarts = [b.restart_layer for b in self.batches if b.restart_layer is not None]
        blocks = (max(restarts) + 1 if restarts else 0) + (n_layers if self.unsteered else 0)
        shared = self.prefix_cost * n_layers + len(self.inputs.batch.rows) * self.tail * blocks
        return float(shared) + sum(self.cost(batch, n_layers) for batch in self.batches)

    def halves(self, model: Model) -> list[PrefixGroup]:
        """The same settings for half of the inputs each; [] for a single input."""
        half = len(self.inputs.numbers) // 2
        found = []
        for numbers in (self.inputs.numbers[:half], self.inputs.numbers[half:]) if half else ():
            inputs = make_input_batch(model, self.inputs.rows, numbers)
            # prompts end at an earlier column where the longest prompt is in the other half
            cut = max(self.cut + inputs.last - self.inputs.last, 0) if self.cut else 0
            settings = dict.fromkeys((batch.settings, batch.restart_layer) for batch in self.batches)
            batches = tuple(SettingBatch(chosen, (0, len(numbers)), restart) for chosen, restart in settings)
            found.append(PrefixGroup(inputs, cut, prefix_cost(model, inputs, cut), batches, self.unsteered))
        return found


@dataclass
class AnswerForwards:
    """All forwards whose logits are read, and their cost.

    Attributes:
        settings, rows: of the sweep.
        groups: in the order in which they are run.
        rows_per_forward: limit on the rows of a forward.
        memory: limit on the bytes of cached keys, values and states.
        reasons: why the forwards are laid out like this, in words.
        spent: row-columns times blocks that were run.
        n_halved: how often memory ran out.
        row_limit: rows that fitted after memory had run out; None before.
    """

    settings: list[Setting]
    rows: SweepRows
    groups: list[PrefixGroup]
    n_layers: int
    rows_per_forward: int
    memory: int
    reasons: list[str]
    spent: float = 0.0
    n_halved: int = 0
    row_limit: int | None = None

    @property
    def forward_cost(self) -> float:
        """One forward-equivalent: row-columns times blocks of a whole forward of one row of mean length."""
        return self.rows.mean_length * self.n_layers

    @property
    def naive(self) -> float:
        """Forward-equivalents of one whole forward per setting and row."""
        return float(len(self.settings) * sum(len(variant) for variant in self.rows.variants))

    @property
    def planned(self) -> float:
        """Forward-equivalents of these forwards."""
        return sum(group.total_cost(self.n_layers) for group in self.groups) / self.forward_cost

    @property
    def n_batches(self) -> int:
        """Results computed and stored one after the other; requests, on a server."""
        return sum(len(group.batches) + bool(group.unsteered) for group in self.groups)

    def explain(self) -> str:
        """The forwards and their cost in words; after the run also what was spent."""
        answers = " x 2 answers" if self.rows.kind == "whole" else ""
        lines = [
            f"{len(self.settings)} settings x {len(self.rows.variants[0])} inputs{answers}",
            *self.reasons,
            f"{len({g.inputs.name for g in self.groups})} groups of inputs, {sum(len(g.batches) for g in self.groups)} "
            f"batches of at most {self.rows_per_forward} rows, prompts' keys and values within "
            f"{self.memory / 2**20:.0f} MiB",
            f"forward-equivalents: {self.naive:.0f} for one forward per setting, {self.planned:.1f} planned "
            f"({self.naive / max(self.planned, 1e-9):.1f} times fewer)"
            + (f", {self.spent / self.forward_cost:.1f} spent" if self.spent else ""),
        ]
        if self.n_halved:
            lines.append(f"memory ran out {self.n_halved} times: those batches were halved")
        return "\n".join(lines)


def plan_answers(
    model: Model, settings: list[Setting], rows: SweepRows, batch_size: int | None, memory: int
) -> AnswerForwards:
    """The forwards of all settings whose answers are read off logits.

    Args:
        batch_size: limit on the rows of a forward; None: as many as keep the device busy.
        memory: limit on the bytes of the prompts' keys and values and of the states to restart from.
    """
    by_positions: dict[str, list[int]] = {}
    for number, setting in enumerate(settings):
        by_positions.setdefault(setting.written_positions, []).append(number)
    longest = max(range(len(rows.variants[0])), key=lambda i: max(len(variant[i]) for variant in rows.variants))
    inputs = make_input_batch(model, rows, [longest])
    groups_of = [[settings[i] for i in chosen] for chosen in by_positions.values()]
    tail = inputs.batch.width - min(
        first_written_column(model, inputs.batch, group, inputs.row_numbers) for group in groups_of
    )
    fits = batch_size or max(1, tokens_per_forward(model.device, model.is_remote) // tail)
    steered = max(sum(settings[i].alpha != 0 for i in chosen) for chosen in by_positions.values())
    n_levels = len({(setting.restart_layer, setting.name) for setting in settings})
    per_level = max(1, math.ceil(steered / n_levels)) * len(rows.variants)
    size = min(math.ceil(fits / per_level), memory // _bytes_per_input(model, settings, rows, tail))
    numbered = model.batches(rows.variants[0], max(1, size), "aligned", *rows.variants[1:])
    batches = [make_input_batch(model, rows, numbers) for numbers in numbered]
    groups = [_group(model, settings, chosen, b, fits) for b in batches for chosen in by_positions.values()]
    first = groups[: len(by_positions)]  # of the first input batch, one per positions
    reasons = [_reason(model, name, group) for name, group in zip(by_positions, first, strict=True)]
    if model.supports_prefix_cache:
        reasons += [f"not used on this model: {name} ({why})" for name, why in model.shortcuts.refused.items()]
    return AnswerForwards(settings, rows, groups, model.n_layers, fits, memory, reasons)


def _group(model: Model, settings: list[Setting], chosen: list[int], inputs: InputBatch, fits: int) -> PrefixGroup:
    cut = first_written_column(model, inputs.batch, [settings[i] for i in chosen], inputs.row_numbers)
    cut = cut if cut >= MIN_PREFIX else 0
    unsteered = tuple(i for i in chosen if settings[i].alpha == 0)
    steered = [i for i in chosen if settings[i].alpha != 0]
    batches = _setting_batches(model, settings, steered, inputs, fits, inputs.batch.width - cut)
    return PrefixGroup(inputs, cut, prefix_cost(model, inputs, cut), tuple(batches), unsteered)


def prefix_cost(model: Model, inputs: InputBatch, cut: int) -> int:
    """Row-columns of the prompts' keys and values; a beginning that all prompts share counts once."""
    n, batch = len(inputs.numbers), inputs.batch
    return model.prefill_cost(batch.input_ids[:n, :cut], batch.attention_mask[:n, :cut]) if cut else 0


def _setting_batches(
    model: Model, settings: list[Setting], steered: list[int], inputs: InputBatch, fits: int, tail: int
) -> list[SettingBatch]:
    """Settings by restart layer, grouped so that each forward is well filled and restarts at a deep block."""
    if not steered:
        return []
    level = {i: settings[i].restart_layer if model.supports_layer_restart else None for i in steered}
    order = sorted(steered, key=lambda i: (-1 if level[i] is None else level[i], i))
    n, n_variants = len(inputs.numbers), inputs.n_variants

    def cost(size: int) -> float:
        """Of all forwards with so many settings each."""
        total = 0
        for start in range(0, len(order), size):
            first = level[order[start]]
            blocks = model.n_layers - 1 - (-1 if first is None else first)
            total += blocks * (WEIGHT_TOKENS + min(size, len(order) - start) * n * n_variants * tail)
        return float(total)

    most = max(1, fits // (n * n_variants))
    size = min(range(1, min(most, len(order)) + 1), key=cost)
    n_parts = math.ceil(n / max(1, fits // n_variants))
    bounds = [round(k * n / n_parts) for k in range(n_parts + 1)]
    return [
        SettingBatch(tuple(order[k : k + size]), rows, level[order[k]])
        for k in range(0, len(order), size)
        for rows in pairwise(bounds)
    ]


def _bytes_per_input(model: Model, settings: list[Setting], rows: SweepRows, tail: int) -> int:
    """Bytes of an input's keys and values, and of its states to restart from."""
    longest = max(len(row) for variant in rows.variants for row in variant)
    cached = model.shortcuts.numbers_per_token * max(longest - tail, 0)
    states = len({setting.restart_layer for setting in settings}) * tail * len(rows.variants) * model.hidden_size
    return max(1, (cached + states) * torch.finfo(model.dtype).bits // 8)


def _reason(model: Model, positions: str, group: PrefixGroup) -> str:
    """How the settings of some positions are run, and why."""
    parts = [f"positions {positions!r}: settings are batched as rows"]
    if group.cut:
        parts.append(f"the prompt's keys and values are computed once and {group.tail} columns per setting")
    elif model.supports_prefix_cache:
        parts.append("whole rows, as the prompt is steered from its beginning on")
    else:
        why = "; ".join(f"{name}: {reason}" for name, reason in model.shortcuts.refused.items())
        parts.append(f"whole rows, as no shortcut gives their numbers ({why})")
    if any(batch.restart_layer is not None for batch in group.batches):
        parts.append("each batch restarts at the cached output of its lowest steered block")
    if group.unsteered:
        parts.append(f"{len(group.unsteered)} settings with alpha 0 are one unsteered forward")
    return "; ".join(parts)
