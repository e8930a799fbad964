"""Vectors for inputs that their steerer never saw: fit on the other folds, predict on this one."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from steerlab._support.errors import DataError
from steerlab.capture.activations import Activations
from steerlab.methods import Context, Steerer


def crossfit(
    steerer: Steerer, acts: Activations, *, folds: int = 5, seed: int = 0
) -> tuple[list[str], Float[Tensor, "example hidden"]]:
    """Out-of-fold vectors of every sample with a plain prompt in `acts`.

    Example:
        >>> ids, vectors = crossfit(L2S(16, context_layer=22), acts)

    Args:
        steerer: not fitted; every fold fits a copy of it.
        acts: what `steerer.fit` takes, for all samples.
        folds: how many parts; samples, not rows, are dealt out, so no sample is on both sides.
        seed: decides which sample falls into which part.

    Returns:
        Sample ids, sorted, and `(sample, hidden)` float32 in units of the residual stream.

    Raises:
        DataError: fewer than two folds, or fewer samples than folds.

    Source: own (cross-fitting is standard).
    """
    ids = sorted(set(acts.index.loc[acts.index["side"] == "prompt", "example_id"]))
    if not 2 <= folds <= len(ids):
        raise DataError(f"{folds} folds of {len(ids)} samples; give at least two folds and a sample for each")
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed))
    found: dict[str, Tensor] = {}
    for fold in order.tensor_split(folds):
        out = [ids[i] for i in fold.tolist()]
        fitted = copy.deepcopy(steerer).fit(without(acts, out))
        found |= dict(zip(out, fitted.vectors(Context(tuple(out), acts)), strict=True))
    return ids, torch.stack([found[example_id] for example_id in ids])


def without(acts: Activations, example_ids: Sequence[str]) -> Activations:
    """The rows of all other samples."""
    return acts.rows(~acts.index["example_id"].isin(list(example_ids)))
