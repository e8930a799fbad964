"""Running the forwards of a sweep that reads answers off logits."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product

import numpy as np
import pandas as pd
import torch
from einops import repeat
from torch import Tensor

from steerlab._support.files import fingerprint
from steerlab._support.memory import halve_on_oom
from steerlab.analysis._sweep.plan import AnswerForwards, PrefixGroup, SettingBatch
from steerlab.analysis._sweep.settings import Setting
from steerlab.errors import SteeringError
from steerlab.metrics.answers import ANSWER_METRICS, AnswerReader
from steerlab.models.encoding import EncodedPrompt
from steerlab.models.engine import identity
from steerlab.models.interventions import ImageEdit, SiteEdits
from steerlab.models.kv_prefix import ForwardState, Prefix, split_at
from steerlab.models.model import Model
from steerlab.models.patches import entries_per_row
from steerlab.models.positions import includes_generated, resolve, row_to_steer
from steerlab.models.sites import Site
from steerlab.steering.interventions import build_edits, writes_anything

log = logging.getLogger(__name__)
Stage = Callable[[str, Callable[[], pd.DataFrame]], pd.DataFrame]


@dataclass
class GroupRun:
    """The run of one prefix group; its prefix and states are computed when a batch that is not stored needs them."""

    model: Model
    forwards: AnswerForwards
    group: PrefixGroup
    metrics: Sequence[str]
    _inputs: dict[str, Tensor] = field(default_factory=dict)
    _prefix: Prefix | None = None
    _states: dict[int, Tensor] = field(default_factory=dict)

    def jobs(self) -> list[tuple[str, Callable[[], pd.DataFrame]]]:
        """What is computed and stored, under names that differ where settings or inputs do: batch sizes may change."""
        numbers, unsteered = self.group.inputs.numbers, self.group.unsteered
        found = [(f"unsteered-{fingerprint([numbers, unsteered])[:8]}", self._unsteered)] if unsteered else []
        for n, batch in enumerate(self.group.batches):
            key = fingerprint([numbers, batch.settings, batch.rows])[:8]
            found.append((f"{n:03d}-{key}", partial(self._steered, batch)))
        return found

    def out_of_memory(self, *_: object) -> str:
        """The message if not even one row fits."""
        return (
            f"one row of {self.group.tail} tokens does not fit in the memory of {self.model.device} beside the "
            f"prompts' keys and values: give a smaller memory= (now {self.forwards.memory} bytes)"
        )

    def _unsteered(self) -> pd.DataFrame:
        """The settings with alpha 0, from one forward."""
        self._prepare()
        numbers = self.group.inputs.numbers
        values = self._logits(SettingBatch(self.group.unsteered[:1], (0, len(numbers)), None), {})
        return results_frame(self.group.unsteered, numbers, values, np.zeros((1, 1)))

    def _steered(self, batch: SettingBatch) -> pd.DataFrame:
        """The settings of one batch, in as few forwards as memory allows."""
        self._prepare()
        frames = halve_on_oom(self._run, batch, self._halves, self.out_of_memory, self._on_split)
        return pd.concat(frames, ignore_index=True)

    def _run(self, batch: SettingBatch) -> pd.DataFrame:
        limit, halves = self.forwards.row_limit, self._halves(batch)
        if limit is not None and batch.n_rows > limit and halves:
            return pd.concat([self._steered(half) for half in halves], ignore_index=True)
        return self._forward(batch)

    def _halves(self, batch: SettingBatch) -> list[SettingBatch]:
        # the images of all inputs are in one tensor, which cannot be divided
        return [] if self.model.vision is not None and len(batch.settings) == 1 else batch.halves()

    def _on_split(self, batch: SettingBatch) -> None:
        self.forwards.n_halved += 1
        self.forwards.row_limit = batch.n_rows // 2  # later batches begin with the size that fits
        log.warning("out of memory at %d settings: continuing with half as many rows", len(batch.settings))

    def _forward(self, batch: SettingBatch) -> pd.DataFrame:
        settings = [self.forwards.settings[i] for i in batch.settings]
        inputs = self.group.inputs.part(*batch.rows)
        edits = build_edits(self.model, settings, inputs.batch, inputs.row_numbers, range(len(settings)))
        values = self._logits(batch, edits)
        ratios = norm_ratios(edits, settings, inputs.n_variants, inputs.numbers)
        return results_frame(batch.settings, inputs.numbers, values, ratios)

    def _logits(self, batch: SettingBatch, edits: SiteEdits) -> dict[str, np.ndarray]:
        """Every metric, `(setting, input)`, from one forward."""
        copies, answers = len(batch.settings), self.group.inputs.part(*batch.rows).answers
        metrics = {name: ANSWER_METRICS[name] for name in self.metrics}
        requires = tuple(sorted({quantity for metric in metrics.values() for quantity in metric.requires}))
        found = self.model.engine.logits(
            self._forward_inputs(copies, batch.rows), edits, answers.columns.to(self.model.device) - self.group.cut,
            self._forward_state(copies, batch.rows, batch.restart_layer), AnswerReader(answers, copies, requires),
        )  # fmt: skip
        self.forwards.spent += self.group.cost(batch, self.forwards.n_layers)
        variants = {name: t.reshape(copies, self.group.inputs.n_variants, -1) for name, t in found.items()}
        read = {name: t[:, 0] for name, t in variants.items()}
        for name in {"logit", "logprob"} & set(variants if self.group.inputs.n_variants == 2 else ()):
            read |= {f"{name}_positive": variants[name][:, 0], f"{name}_negative": variants[name][:, 1]}
        host = torch.stack([metric.compute(read).float() for metric in metrics.values()]).cpu().numpy()
        return dict(zip(metrics, host.astype(np.float64), strict=True))

    def _prepare(self) -> None:
        """Compute the prompts' keys and values, and the states to restart from."""
        if self._inputs:
            return
        inputs, cut, n_layers = self.group.inputs, self.group.cut, self.forwards.n_layers
        whole, n = self.model.inputs(inputs.batch), len(inputs.numbers)
        if cut:
            prompts, self._inputs = split_at(whole, cut)
            self._prefix = self.model.prefill({k: t[:n] for k, t in prompts.items()})
            self.forwards.spent += self.group.prefix_cost * n_layers
        else:
            self._inputs = whole
        if levels := sorted({b.restart_layer for b in self.group.batches if b.restart_layer is not None}):
            before = self._forward_state(1, (0, n), None)
            sites = [Site(level) for level in levels]
            states = self.model.engine.capture_states(self._inputs, {}, sites, identity, before)
            self._states = dict(zip(levels, states.unbind(1), strict=True))
            self.forwards.spent += len(inputs.batch.rows) * self.group.tail * (levels[-1] + 1)

    def _forward_state(self, copies: int, rows: tuple[int, int], level: int | None) -> ForwardState:
        """The cached prefix and block output that a forward of some inputs starts from, for so many settings."""
        state = None
        if level is not None:
            state = repeat(self._select(self._states[level], rows), "r t d -> (c r) t d", c=copies)
        prefix = None if self._prefix is None else self._prefix.rows(*rows)
        return ForwardState(prefix, copies * self.group.inputs.n_variants, level, state)

    def _forward_inputs(self, copies: int, rows: tuple[int, int]) -> dict[str, Tensor]:
        """The columns that a forward of some inputs computes, for so many settings."""
        return {k: self._select(t, rows).repeat(copies, *[1] * (t.ndim - 1)) for k, t in self._inputs.items()}

    def _select(self, tensor: Tensor, rows: tuple[int, int]) -> Tensor:
        """The rows of some inputs, variant by variant."""
        n = len(self.group.inputs.numbers)
        if rows == (0, n):  # the images of all rows are in one tensor, which has other rows
            return tensor
        return torch.cat([tensor[v * n + rows[0] : v * n + rows[1]] for v in range(self.group.inputs.n_variants)])


def run_answers(
    model: Model, forwards: AnswerForwards, metrics: Sequence[str], stage: Stage, emit: Callable[[pd.DataFrame], None]
) -> None:
    """Emit the measurements of every batch; each is stored before the next begins."""
    started = set()

    def run(item: tuple[str, PrefixGroup]) -> None:
        name, group = item
        for key, compute in GroupRun(model, forwards, group, metrics).jobs():
            with model.lock:
                found = stage(f"{name}-{group.inputs.name}-{key}", compute)
            started.add(name)
            emit(found)

    def halves(item: tuple[str, PrefixGroup]) -> list[tuple[str, PrefixGroup]]:
        name, group = item
        return [] if name in started else [(f"{name}.{k}", half) for k, half in enumerate(group.halves(model))]

    def on_split(item: tuple[str, PrefixGroup]) -> None:
        forwards.n_halved += 1
        log.warning("out of memory at %d inputs: continuing with two halves", len(item[1].inputs.numbers))

    def out_of_memory(item: tuple[str, PrefixGroup]) -> str:
        return GroupRun(model, forwards, item[1], metrics).out_of_memory()

    for number, group in enumerate(forwards.groups):
        halve_on_oom(run, (f"{number:04d}", group), halves, out_of_memory, on_split)


def norm_ratios(edits: SiteEdits, settings: Sequence[Setting], n_variants: int, numbers: Sequence[int]) -> np.ndarray:
    """Mean ‖h' - h‖/‖h‖ over the steered states, `(setting, input)`, of the inputs with these numbers.

    Raises:
        SteeringError: a setting that should steer these inputs steered no state.
    """
    n = len(numbers)
    steered, ratios = np.zeros((2, len(settings), n))
    for edit in (e for at_site in edits.values() for e in at_site):
        count, total = (t.cpu().double().numpy() for t in edit.stats.rows())
        if isinstance(edit, ImageEdit) and len(count):  # entries of images, in the order of their rows
            rows = np.repeat(np.arange(len(edit.units)), entries_per_row(edit.units, len(count)))
            count, total = (np.bincount(rows, values, len(edit.units)) for values in (count, total))
        if len(count):
            steered += count.reshape(len(settings), n_variants, n, -1).sum((1, 3))  # beams of an input are neighbors
            ratios += total.reshape(len(settings), n_variants, n, -1).sum((1, 3))
    missing = {
        setting.name
        for setting, row in zip(settings, steered, strict=True)
        if not row.any() and not setting.has_fixed_positions and writes_anything([setting], numbers)
    }
    if missing:
        raise SteeringError(
            f"alpha is not 0 but no token was steered by {sorted(missing)}: what is measured comes before the steered "
            "positions. 'generated' starts after the last prompt token; use 'last+generated', or more new tokens."
        )
    return np.divide(ratios, steered, out=np.zeros_like(ratios), where=steered > 0)


def check_positions_exist(settings: Sequence[Setting], rows: Sequence[EncodedPrompt]) -> None:
    """Refuse a setting whose interventions have positions themselves that no prompt has.

    Raises:
        SteeringError: names the method and the positions.
    """
    for setting in settings:
        if not setting.alpha or not setting.has_fixed_positions:
            continue
        places = [one.positions for one in setting.interventions if one.positions is not None]
        pairs = product(places, rows)
        if not any(includes_generated(place) or resolve(place, row_to_steer(place, row)) for place, row in pairs):
            raise SteeringError(
                f"{setting.name} writes to {setting.written_positions}, and none of the {len(rows)} prompts is that "
                "long: no token would be steered"
            )


def results_frame(
    settings: Sequence[int], inputs: Sequence[int], values: Mapping[str, np.ndarray], ratios: np.ndarray
) -> pd.DataFrame:
    """One row per setting and input; values and ratios are broadcast to `(setting, input)`."""
    shape = (len(settings), len(inputs))
    columns = {"norm_ratio": ratios, **values}
    table = {"setting": np.repeat(settings, len(inputs)), "input": np.tile(inputs, len(settings))}
    return pd.DataFrame(table | {name: np.broadcast_to(v, shape).ravel() for name, v in columns.items()})
