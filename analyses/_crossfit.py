"""Cross-fitting: each input gets the vector of a steerer that was fitted without the fold of this input."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from steerlab.capturing.activations import Activations
from steerlab.errors import DataError
from steerlab.methods import Context, Steerer


def crossfit(
    steerer: Steerer, acts: Activations, *, folds: int = 5, seed: int = 0
) -> tuple[list[str], Float[Tensor, "example hidden"]]:
    """Out-of-fold vectors of every example whose prompt is in `acts`.

    Example:
        >>> ids, vectors = crossfit(L2S(16, context_layer=22), acts)

    Args:
        steerer: before `fit`; each fold fits a copy of it.
        acts: the activations for `steerer.fit`, of all examples.
        folds: number of folds; all rows of an example are in the same fold.
        seed: decides which example is in which fold.

    Returns:
        Example ids, sorted, and `(example, hidden)` float32 in units of the residual stream.

    Raises:
        DataError: fewer than two folds, or fewer examples than folds.
    """
    ids = sorted(set(acts.index.loc[acts.index["side"] == "prompt", "example_id"]))
    if not 2 <= folds <= len(ids):
        raise DataError(f"{folds} folds of {len(ids)} examples; give at least two folds and one example per fold")
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed))
    found: dict[str, Tensor] = {}
    for fold in order.tensor_split(folds):
        held_out = [ids[i] for i in fold.tolist()]
        fitted = copy.deepcopy(steerer).fit(without(acts, held_out))
        found |= dict(zip(held_out, fitted.vectors(Context(tuple(held_out), acts)), strict=True))
    return ids, torch.stack([found[example_id] for example_id in ids])


def without(acts: Activations, example_ids: Sequence[str]) -> Activations:
    """The activations without the rows of these examples."""
    return acts.rows(~acts.index["example_id"].isin(list(example_ids)))
