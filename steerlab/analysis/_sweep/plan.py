"""How a sweep's forwards are laid out, and what they cost: decided, and told, before the first of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from steerlab.analysis._sweep.rows import Block, Rows, block_of
from steerlab.analysis._sweep.settings import Setting
from steerlab.models.encoding import by_length
from steerlab.models.kv_prefix import TOKENS, prefill_cost
from steerlab.models.model import Model
from steerlab.models.positions import position_key
from steerlab.steering.batched_settings import written_columns

READING_WEIGHTS = 24  # tokens' worth of work that a block costs a forward, however few its tokens
WORTH_A_PREFIX = 4  # columns


@dataclass(frozen=True)
class Chunk:
    """Cells and inputs of a block that share forwards; what is computed in one go and stored in one file."""

    settings: tuple[int, ...]
    rows: tuple[int, int]  # which inputs of the block, start and stop
    restart: int | None


@dataclass(frozen=True)
class Part:
    """What one block needs for all cells that share their positions.

    Attributes:
        cut: the first column that a cell may change, or that must be computed anew to be read.
        prompts: row-columns that the prompts' keys and values take.
        chunks: in the order in which they are run.
        idle: cells with alpha 0: read off the unsteered pass.
    """

    block: Block
    cut: int
    prompts: int
    chunks: tuple[Chunk, ...]
    idle: tuple[int, ...]

    @property
    def tail(self) -> int:
        """Columns that are run anew for every cell."""
        return self.block.batch.width - self.cut

    def work(self, chunk: Chunk, n_layers: int) -> float:
        """Row-columns times blocks of one chunk."""
        rows = (chunk.rows[1] - chunk.rows[0]) * self.block.n_variants * len(chunk.settings)
        blocks = n_layers if chunk.restart is None else n_layers - 1 - chunk.restart
        return float(rows * self.tail * blocks)

    def base_work(self, n_layers: int) -> float:
        """The prompts' keys and values, the states that cells restart from, and the unsteered answers."""
        supports_layer_restart = [c.restart for c in self.chunks if c.restart is not None]
        rows = len(self.block.numbers) * self.block.n_variants
        tails = (max(supports_layer_restart) + 1 if supports_layer_restart else 0) + (n_layers if self.idle else 0)
        return float(self.prompts * n_layers + rows * self.tail * tails)


@dataclass
class SweepPlan:
    """All forwards of a sweep.

    Attributes:
        parts: block by block.
        forward: row-columns times blocks of one whole forward of one row of mean width.
        rows_per_forward: most rows of a batch.
        reasons: why it is done this way.
        spent: row-columns times blocks that were really run.
        limit: rows that fitted when memory had run out; None before it did.
    """

    settings: list[Setting]
    rows: Rows
    parts: list[Part]
    n_layers: int
    rows_per_forward: int
    memory: int
    reasons: list[str]
    spent: float = 0.0
    halved: int = 0
    limit: int | None = None

    @property
    def forward(self) -> float:
        """The unit of cost."""
        return self.rows.width * self.n_layers

    @property
    def naive(self) -> float:
        """Forward-equivalents of the obvious way: one whole forward for every cell and row."""
        return float(len(self.settings) * sum(len(variant) for variant in self.rows.variants))

    @property
    def batches(self) -> int:
        """What is computed one after the other and kept by itself; on a server, requests."""
        return sum(len(part.chunks) + bool(part.idle) for part in self.parts)

    @property
    def predicted(self) -> float:
        """Forward-equivalents of this plan."""
        work = sum(p.base_work(self.n_layers) + sum(p.work(c, self.n_layers) for c in p.chunks) for p in self.parts)
        return work / self.forward

    def explain(self) -> str:
        """What will be done, in words; afterwards also what was."""
        n = len(self.rows.variants[0])
        chunks = sum(len(p.chunks) for p in self.parts)
        lines = [
            f"{len(self.settings)} cells x {n} inputs" + (" x 2 answers" if self.rows.kind == "whole" else ""),
            *self.reasons,
            f"{len({p.block.name for p in self.parts})} blocks of inputs, {chunks} batches of at most "
            f"{self.rows_per_forward} rows, prompts' keys and values within {self.memory / 2**20:.0f} MiB",
            f"forward-equivalents: {self.naive:.0f} for one forward a cell, {self.predicted:.1f} planned "
            f"({self.naive / max(self.predicted, 1e-9):.1f} times fewer)"
            + (f", {self.spent / self.forward:.1f} spent" if self.spent else ""),
        ]
        if self.halved:
            lines.append(f"memory ran out {self.halved} times: those batches were halved")
        return "\n".join(lines)


def plan_sweep(model: Model, settings: list[Setting], rows: Rows, batch_size: int | None, memory: int) -> SweepPlan:
    """Lay out the forwards of all cells that are read off logits.

    Args:
        batch_size: most rows of a forward; None: as many as keep the device busy.
        memory: bytes that the prompts' keys and values, and the states to restart from, may take.
    """
    groups: dict[str, list[int]] = {}
    for number, setting in enumerate(settings):
        groups.setdefault(setting.written, []).append(number)
    longest = max((row for variant in rows.variants for row in variant), key=len)
    prefixed = model.supports_prefix_cache
    supports_layer_restart = model.supports_layer_restart
    tail = _tail(model, rows, settings, groups, prefixed)
    slow = model.device.type == "cpu" and not model.is_remote  # a server is asked rarely, for much
    fits = batch_size or max(1, TOKENS["cpu" if slow else "other"] // tail)
    alive = max(sum(settings[i].alpha != 0 for i in members) for members in groups.values())
    layers = len({(setting.restart, setting.method) for setting in settings})
    per_layer = max(1, math.ceil(alive / layers)) * len(rows.variants)
    size = max(
        1, min(math.ceil(fits / per_layer), memory // _bytes_per_input(model, settings, rows, len(longest), tail))
    )
    blocks = [block_of(model, rows, numbers) for numbers in by_length(rows.variants[0], size)]
    parts = [
        _part(model, settings, members, b, fits, prefixed, supports_layer_restart)
        for b in blocks
        for members in groups.values()
    ]
    return SweepPlan(
        settings, rows, parts, model.n_layers, fits, memory, _reasons(model, parts, prefixed, settings, groups)
    )


def _part(
    model: Model,
    settings: list[Setting],
    members: list[int],
    block: Block,
    fits: int,
    prefixed: bool,
    supports_layer_restart: bool,
) -> Part:
    live = [i for i in members if settings[i].alpha != 0]
    idle = tuple(i for i in members if settings[i].alpha == 0)
    cut = first_column(settings, members, block) if prefixed else 0
    cut = cut if cut >= WORTH_A_PREFIX else 0
    chunks = _chunks(model, settings, live, block, fits, supports_layer_restart, block.batch.width - cut)
    return Part(block, cut, prompt_work(model, block, cut), tuple(chunks), idle)


def prompt_work(model: Model, block: Block, cut: int) -> int:
    """Row-columns that the keys and values of a block's prompts take; what all prompts begin with counts once."""
    n, batch = len(block.numbers), block.batch
    if not cut:
        return 0
    return prefill_cost(batch.input_ids[:n, :cut], batch.attention_mask[:n, :cut], model.hf.config.get_text_config())


def first_column(settings: Sequence[Setting], members: Sequence[int], block: Block) -> int:
    """The first column that any of the cells writes to, and at the latest that of the last prompt token."""
    if any(settings[i].vector_fn for i in members) or any(
        s.site.part != "text" for i in members for s in settings[i].interventions
    ):
        return 0  # vectors from the state itself need the whole prompt in one forward
    one = settings[members[0]]  # all of them are written to the same tokens
    places = {
        position_key(intervention.positions_or(one.positions)): intervention for intervention in one.interventions
    }  # many layers, most often one place
    masks = [
        written_columns(block.batch, intervention, one.positions, block.row_numbers) for intervention in places.values()
    ]
    mask = torch.stack(masks).any(0).any(0) if masks else torch.zeros(block.batch.width, dtype=torch.bool)
    first = int(mask.to(torch.uint8).argmax()) if bool(mask.any()) else block.last
    return min(first, block.last)


def _chunks(
    model: Model,
    settings: list[Setting],
    live: list[int],
    block: Block,
    fits: int,
    supports_layer_restart: bool,
    tail: int,
) -> list[Chunk]:
    """Cells from the deepest restart up, grouped so that each forward is well filled and restarts high up."""
    if not live:
        return []
    level = {i: (settings[i].restart if supports_layer_restart else None) for i in live}
    order = sorted(live, key=lambda i: (-1 if level[i] is None else level[i], i))
    n, variants = len(block.numbers), block.n_variants
    most = max(1, fits // (n * variants))  # cells in a forward with all inputs of the block
    per_cell = n * variants * tail

    def cost(size: int) -> float:
        starts = [level[order[k]] for k in range(0, len(order), size)]
        counts = [min(size, len(order) - k) for k in range(0, len(order), size)]
        depth = [model.n_layers - 1 - (-1 if start is None else start) for start in starts]
        return float(sum(d * (READING_WEIGHTS + c * per_cell) for d, c in zip(depth, counts, strict=True)))

    size = min(range(1, min(most, len(order)) + 1), key=cost)
    per_forward = max(1, fits // variants)
    pieces = math.ceil(n / per_forward) if n > per_forward else 1
    bounds = [round(k * n / pieces) for k in range(pieces + 1)]
    return [
        Chunk(tuple(order[k : k + size]), (a, b), level[order[k]])
        for k in range(0, len(order), size)
        for a, b in pairwise(bounds)
    ]


def _tail(model: Model, rows: Rows, settings: list[Setting], groups: dict[str, list[int]], prefixed: bool) -> int:
    """Columns that are run anew for every cell, at most, judged by the longest row."""
    longest = max(range(len(rows.variants[0])), key=lambda i: max(len(v[i]) for v in rows.variants))
    block = block_of(model, rows, [longest])
    cuts = [first_column(settings, members, block) if prefixed else 0 for members in groups.values()]
    return block.batch.width - min(cuts)


def _bytes_per_input(model: Model, settings: list[Setting], rows: Rows, width: int, tail: int) -> int:
    config = model.hf.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or model.hidden_size // config.num_attention_heads
    item = torch.finfo(model.dtype).bits // 8
    kept = 2 * heads * size * max(width - tail, 0) * model.n_layers
    states = len({setting.restart for setting in settings}) * tail * len(rows.variants) * model.hidden_size
    return max(1, (kept + states) * item)


def _reasons(
    model: Model, parts: list[Part], prefixed: bool, settings: list[Setting], groups: dict[str, list[int]]
) -> list[str]:
    told = []
    for name, members in groups.items():
        mine = next(p for p in parts if set(members) >= {*p.idle, *(c for k in p.chunks for c in k.settings)})
        how = [f"positions {name!r}: cells are packed as rows"]
        if mine.cut:
            how.append(f"the prompt's keys and values are computed once and {mine.tail} columns a cell")
        elif not prefixed:
            why = "is elsewhere" if model.is_remote else "has layers whose past is not keys and values"
            how.append(f"whole rows, as the model {'has images' if model.vision is not None else why}")
        else:
            how.append("whole rows, as the prompt is steered from its beginning on")
        if any(chunk.restart is not None for chunk in mine.chunks):
            how.append("each batch restarts at the cached output of its lowest steered block")
        if mine.idle:
            how.append(f"{len(mine.idle)} cells with alpha 0 are one unsteered pass")
        told.append("; ".join(how))
    return told
