"""Which of the states in the vision tower and in the projector belong to which row.

These states hold the images of the whole batch one after the other, in the order of the rows. Most families have
`(tiles, patches, hidden)`, Qwen `(patches, hidden)`. The *units* of a row are its tiles, or its patches in Qwen. A
projector may merge several patches into one, and copies of rows may repeat them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steerlab.errors import LayoutError

_MASKS = ("pixel_attention_mask", "pixel_mask", "image_attention_mask")


def entries_per_row(units: Sequence[int], n: int) -> list[int]:
    """How many of the `n` entries of a state's first axis belong to each row.

    Example:
        >>> entries_per_row([4, 8], 3), entries_per_row([1, 2], 3), entries_per_row([1, 2], 6)
        ([1, 2], [1, 2], [2, 4])

    Raises:
        LayoutError: `n` is neither a multiple nor a divisor of all units, or rows would get fractions of entries.
    """
    total = sum(units)
    if total and all(unit * n % total == 0 for unit in units) and (n % total == 0 or total % n == 0):
        return [unit * n // total for unit in units]
    counts = f"{total} tiles or patches ({list(units)} by row)"
    raise LayoutError(f"a state of {n} entries can't be matched to images of {counts}: read and steer the text instead")


def refuse_padded_images(inputs: Mapping[str, Tensor]) -> None:
    """Refuse a batch whose images are padded to one size: states in the tower then have patches of no image.

    Args:
        inputs: what the processor returns for the images of the batch; Gemma 4 marks padding by its positions, others
            by a mask of pixels or patches, in which padding tiles are empty. What a tile itself is filled up with
            (LLaVA-NeXT) is not marked: it is part of the image that the tower sees.

    Raises:
        LayoutError: an image is padded.
    """
    masks = [inputs[name].bool() for name in _MASKS if name in inputs]
    if "image_position_ids" in inputs:
        masks.append((inputs["image_position_ids"] != -1).all(-1))
    for mask in masks:
        real = mask.flatten(-2) if mask.ndim > 2 else mask  # rows and columns of a tile, which are the last two axes
        if bool((real.any(-1) & ~real.all(-1)).any()):
            raise LayoutError(
                "these images are padded to one size, so the vision tower and the projector have states of patches "
                "that belong to no image: read and steer the text, or give images of one size (batch_size=1)"
            )


@dataclass(frozen=True)
class PatchSelector:
    """Selects the patches of each row from a state, or their mean.

    Attributes:
        units: tiles or patches of each row.
        mean: whether to average them (in float32).
        dtype: of the result.
        n_patches: filled with the number of patches of each row.
    """

    units: tuple[int, ...]
    mean: bool
    dtype: torch.dtype
    n_patches: list[int]

    def __call__(self, h: Tensor) -> Tensor:
        """`(tiles, patches, hidden)` or `(patches, hidden)` to `(row or patch, hidden)`."""
        inside = h.shape[1] if h.ndim == 3 else 1
        counts = [n * inside for n in entries_per_row(self.units, len(h))]
        if not self.mean and self.n_patches and self.n_patches != counts:
            raise LayoutError(
                f"the sites have {self.n_patches[0]} and {counts[0]} states for the same image: capture each by "
                "itself, or their means (reduce='mean')"
            )
        self.n_patches[:] = counts
        flat = h.reshape(-1, h.shape[-1])
        if not self.mean:
            return flat.to(self.dtype)
        return torch.segment_reduce(flat.float(), "mean", lengths=torch.tensor(counts, device=h.device)).to(self.dtype)
