"""Parts of a sweep's plan made smaller, and what a forward's numbers become."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from steerlab._support.errors import SteeringError
from steerlab.analysis._sweep.plan import Chunk, Part, prompt_work
from steerlab.analysis._sweep.rows import Block
from steerlab.analysis._sweep.settings import Setting
from steerlab.models.encoding import EncodedPrompt
from steerlab.models.interventions import SiteEdits
from steerlab.models.model import Model
from steerlab.models.positions import includes_generated, resolve


def smaller(model: Model, part: Part, block: Block) -> Part:
    """The same cells for fewer inputs."""
    settings = list(dict.fromkeys((chunk.settings, chunk.restart) for chunk in part.chunks))
    intervention = (
        block.last - part.block.last
    )  # prompts end at another column where the block's longest row is shorter
    cut = max(part.cut + intervention, 0) if part.cut else 0
    chunks = tuple(Chunk(chosen, (0, len(block.numbers)), restart) for chosen, restart in settings)
    return Part(block, cut, prompt_work(model, block, cut), chunks, part.idle)


def slice_of(block: Block, start: int, stop: int) -> Block:
    """Some inputs of a block, in the block's own columns."""
    n, batch = len(block.numbers), block.batch
    keep = [v * n + i for v in range(block.n_variants) for i in range(start, stop)]
    part = type(batch)(
        batch.input_ids[keep], batch.attention_mask[keep], batch.position_ids[keep],
        tuple(batch.rows[i] for i in keep), tuple(batch.offsets[i] for i in keep),
    )  # fmt: skip
    return Block(block.numbers[start:stop], part, block.last, block.n_variants, block.rows)


def halved(chunk: Chunk) -> list[Chunk]:
    """The chunk as two: of its cells, or, where it has one, of its inputs; nothing where it has one of both."""
    if len(chunk.settings) > 1:
        half = len(chunk.settings) // 2
        return [Chunk(part, chunk.rows, chunk.restart) for part in (chunk.settings[:half], chunk.settings[half:])]
    start, stop = chunk.rows
    if stop - start > 1:
        middle = (start + stop) // 2
        return [Chunk(chunk.settings, rows, chunk.restart) for rows in ((start, middle), (middle, stop))]
    return []


def tallied(edits: SiteEdits, copies: int, variants: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Of every cell and input, the states written to and the sum of ‖alpha·v‖/‖h‖ over them."""
    writes, total = np.zeros((copies, n)), np.zeros((copies, n))
    for edit in (e for at in edits.values() for e in at):
        count, sums = (t.float().cpu().numpy().astype(np.float64) for t in edit.stats.rows())
        if len(count) == copies * variants * n:
            writes += count.reshape(copies, variants, n).sum(1)
            total += sums.reshape(copies, variants, n).sum(1)
        elif len(count):  # pictures: states do not belong to rows
            writes, total = writes + count.sum(), total + sums.sum()
    return writes, total


def ratios(edits: SiteEdits, settings: Sequence[Setting], variants: int, n: int) -> np.ndarray:
    """‖alpha·v‖/‖h‖ of every cell and input, averaged over the states written to.

    Raises:
        SteeringError: a cell that should write here wrote nothing.
    """
    writes, ratio = tallied(edits, len(settings), variants, n)
    empty = [
        setting.method for setting, row in zip(settings, writes, strict=True) if not row.any() and not setting.clipped
    ]
    if empty:
        raise SteeringError(
            f"alpha is not 0 but no token was steered by {sorted(set(empty))}: what is measured comes before the "
            "positions written to. 'generated' starts after the last prompt token; use 'last+generated', or more "
            "new tokens."
        )
    return np.divide(ratio, writes, out=np.zeros_like(ratio), where=writes > 0)


def check_reached(settings: Sequence[Setting], rows: Sequence[EncodedPrompt]) -> None:
    """Refuse a cell whose own places no prompt has: its vectors would be added to nothing.

    Raises:
        SteeringError: names the method and the places.
    """
    for setting in settings:
        if (
            setting.alpha
            and setting.clipped
            and not any(
                intervention.positions is not None
                and (includes_generated(intervention.positions) or resolve(intervention.positions, row))
                for intervention in setting.interventions
                for row in rows
            )
        ):
            raise SteeringError(
                f"{setting.method} writes to {setting.written}, and none of the {len(rows)} prompts is that "
                f"long: no token "
                "would be steered"
            )


def frame_of(
    settings: Sequence[int], inputs: Sequence[int], values: dict[str, np.ndarray], ratio: np.ndarray
) -> pd.DataFrame:
    """One row per cell and input, with its values by metric."""
    shape = (len(settings), len(inputs))
    table = {
        "setting": np.repeat(settings, len(inputs)),
        "input": np.tile(inputs, len(settings)),
        "norm_ratio": np.broadcast_to(ratio, shape).ravel(),
    }
    return pd.DataFrame(table | {name: np.broadcast_to(v, shape).ravel() for name, v in values.items()})
