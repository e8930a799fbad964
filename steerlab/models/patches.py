"""Patches: which of the states in the vision tower and in the projector belong to which row.

These states hold the pictures of the whole batch, one after the other in the order of the rows: `(tiles, patches,
hidden)` in most families, `(patches, hidden)` in Qwen's. A row's *units* are the tiles, or the patches, that its
pictures become; a projector may merge several patches into one, and copies of rows may repeat them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from steerlab._support.errors import LayoutError
from steerlab.models.edit_stats import EditStats


def entries_per_row(units: Sequence[int], n: int) -> list[int]:
    """How many of the `n` entries of a state's first axis belong to each row.

    Example:
        >>> entries_per_row([4, 8], 3), entries_per_row([1, 2], 3), entries_per_row([1, 2], 6)
        ([1, 2], [1, 2], [2, 4])

    Raises:
        LayoutError: they can't be shared out in whole numbers.
    """
    total = sum(units)
    if total and all(unit * n % total == 0 for unit in units) and (n % total == 0 or total % n == 0):
        return [unit * n // total for unit in units]
    raise LayoutError(
        f"a state of {n} entries can't be matched to pictures of {total} tiles or patches ({list(units)} by row): "
        "steerlab can't tell whose is whose in this model; read and steer its text instead"
    )


def count_units(tensors: Mapping[str, Tensor], config: Any) -> int:
    """How many tiles (Qwen: patches) of one row the vision tower is given, those that only pad left out.

    Args:
        tensors: what the processor made of the row's pictures.
        config: the model's configuration.

    Source: the forward of each family in transformers.
    """
    pixels = tensors.get("pixel_values")
    if pixels is None:
        return 0
    if pixels.ndim != 5:
        return len(pixels)
    sizes, pinpoints = tensors.get("image_sizes"), getattr(config, "image_grid_pinpoints", None)
    if sizes is None or pinpoints is None:  # Idefics3 and SmolVLM take a tile of zeros for padding, and so do we
        return int(pixels.flatten(2).any(-1).sum())
    from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

    side = config.vision_config.image_size
    return sum(image_size_to_num_patches(size, pinpoints, side) for size in sizes)


@dataclass
class ImageEdit:
    """One addition to every patch of each row's own pictures.

    Attributes:
        vectors: `(batch, hidden)` float32, everything multiplied in (alpha, gate).
        units: each row's tiles or patches.
    """

    vectors: Float[Tensor, "batch hidden"]
    units: tuple[int, ...]
    stats: EditStats = field(default_factory=EditStats)

    def delta(self, h: Float[Tensor, "units patches hidden"]) -> Float[Tensor, "units 1 hidden"]:
        """What to add to `h`, in float32."""
        counts = torch.tensor(entries_per_row(self.units, len(h)), device=h.device)
        vectors = self.vectors.to(h.device).repeat_interleave(counts, 0)
        self.stats.add(vectors, h, torch.ones(h.shape[:2], dtype=torch.bool, device=h.device))
        return vectors[:, None]


def apply_image_edits(edits: Sequence[ImageEdit], h: Tensor) -> Tensor:
    """The state with every edit added; the sum is formed in float32 and cast once."""
    split = h if h.ndim == 3 else h[:, None]
    total = sum((edit.delta(split) for edit in edits[1:]), edits[0].delta(split))
    return (split + total.to(h.dtype)).reshape(h.shape)


@dataclass(frozen=True)
class PatchSelector:
    """Each row's patches out of a state, or their mean.

    Attributes:
        units: each row's tiles or patches.
        mean: whether to average them (in float32).
        dtype: of what is returned.
        seen: gets the number of patches of each row.
    """

    units: tuple[int, ...]
    mean: bool
    dtype: torch.dtype
    seen: list[int]

    def __call__(self, h: Tensor) -> Tensor:
        """`(tiles, patches, hidden)` or `(patches, hidden)` to `(row or patch, hidden)`."""
        inside = h.shape[1] if h.ndim == 3 else 1
        lengths = [share * inside for share in entries_per_row(self.units, len(h))]
        self.seen[:] = lengths
        flat = h.reshape(-1, h.shape[-1])
        if not self.mean:
            return flat.to(self.dtype)
        counts = torch.tensor(lengths, device=h.device)
        return torch.segment_reduce(flat.float(), "mean", lengths=counts).to(self.dtype)
