"""The refusal directions, layers and ratios published with AlphaSteer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor

from steerlab._support.files import reading
from steerlab.errors import DataError, MismatchError
from steerlab.models.sites import Site

#: Null-space ratio by layer, as released for Llama-3.1-8B-Instruct, Qwen2.5-7B-Instruct and Gemma-2-9b-it. Qwen's
#: released list of steered layers also names layer 20, for which no matrix was fitted: nothing was added there.
PUBLISHED_RATIOS: dict[str, dict[int, float]] = {
    "llama3.1": {8: 0.6, 9: 0.6, 10: 0.6, 11: 0.6, 12: 0.4, 13: 0.5, 14: 0.6, 16: 0.6, 18: 0.6, 19: 0.6},
    "qwen2.5": {
        **{5: 0.6, 6: 0.6, 7: 0.6, 8: 0.6, 9: 0.5, 10: 0.6, 11: 0.5},
        **{12: 0.5, 13: 0.5, 14: 0.3, 15: 0.3, 16: 0.5, 18: 0.5, 19: 0.6},
    },
    "gemma2": {6: 0.5, 8: 0.4, 10: 0.6, 11: 0.6, 12: 0.6, 13: 0.6, 14: 0.6, 15: 0.6, 16: 0.6, 18: 0.6, 22: 0.5},
}
_POINTS = {"released": "block_in", "aligned": "block_out"}


@dataclass(frozen=True)
class PublishedDirections:
    """Published directions and their sites.

    Attributes:
        key: the tensor's name in the file.
        layers: the blocks, 0-based.
        sites: one per layer: where states are read and vectors written.
        vectors: `(layer, hidden)` float32, at their published scale.
    """

    key: str
    layers: tuple[int, ...]
    sites: tuple[Site, ...]
    vectors: Float[Tensor, "layer hidden"]


def published_directions(
    path: str | Path, name: str, *, layers: Sequence[int] | None = None, convention: str = "released"
) -> PublishedDirections:
    """Read published directions, with the sign changed so that positive is towards refusal.

    The file holds mean(complied) - mean(refused), so the authors steer with negative strengths; ours are
    refused - complied, and their strength -0.4 is our alpha 0.4. Row k was measured at the *output* of block k, but
    the released code reads the gate's state, and adds the vector, at the *input* of block k, one block earlier.

    Example:
        >>> found = published_directions("refusal_vectors_all_layers.safetensors", "llama3.1", layers=[8, 12])
        >>> found.sites
        (Site(layer=8, point='block_in', part='text'), Site(layer=12, point='block_in', part='text'))

    Args:
        path: the safetensors file; it is not part of this package.
        name: "llama3.1", "qwen2.5" or "gemma2" for the refusal directions ("rv.*"); or a tensor's name. "hd.*" are
            mean(harmful and complied) - mean(benign): they point towards harm, not refusal, and keep their sign.
        layers: which rows; None: all.
        convention: "released": row k at the input of block k; "aligned": at the output of block k, where it was
            measured.

    Raises:
        LoadError: there is no such file, or it cannot be read.
        MismatchError: it has no such tensor.
        DataError: no such layer or convention.

    Source: the released files of arXiv 2506.07022, which are those of AdaSteer (Apache-2.0); layout only.
    """
    if convention not in _POINTS:
        raise DataError(f"convention={convention!r}; expected one of {', '.join(map(repr, _POINTS))}")
    with reading(Path(path), "Give the path of the published directions"), safe_open(path, "pt") as file:
        keys = sorted(file.keys())
        key = f"rv.{name}" if f"rv.{name}" in keys else name
        if key not in keys:
            raise MismatchError(f"{str(path)!r} has no directions {name!r}; it has {keys}")
        table: Tensor = file.get_tensor(key).to(torch.float32)
    chosen = tuple(range(len(table))) if layers is None else tuple(layers)
    if outside := [k for k in chosen if not 0 <= k < len(table)]:
        raise DataError(f"{key} has the layers 0 to {len(table) - 1}, not {outside}")
    sign = -1.0 if key.startswith("rv.") else 1.0
    sites = tuple(Site(k, _POINTS[convention]) for k in chosen)
    return PublishedDirections(key, chosen, sites, sign * table[list(chosen)])
