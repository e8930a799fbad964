"""Preparation of the training data of a steering net: held-out rows, and targets of another norm or rank."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steerlab._support.checks import as_whole
from steerlab.errors import DataError
from steerlab.methods.l2s.config import TrainingConfig


def split_rows(
    n: int, share: float | None, config: TrainingConfig, seed: int
) -> tuple[Int[Tensor, " train"], Int[Tensor, " validation"]]:
    """Rows to train on and rows to validate on; None means 0.1 if the config keeps the best epoch, else 0.

    Raises:
        DataError: no row would be left to train on.
    """
    if share is None:
        share = 0.1 if config.keep == "best" else 0.0
    held_out = max(1, round(share * n)) if share > 0 else 0
    if not 0 <= share < 1 or held_out >= n:
        raise DataError(
            f"validation={share} of {n} examples leaves {max(0, n - held_out)} to train on: give more examples, a "
            "smaller share, or a config with keep='last'"
        )
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return order[held_out:].sort().values, order[:held_out]


def equalize_norms(
    targets: Float[Tensor, "example hidden"], groups: Sequence[str], order: Sequence[str]
) -> Float[Tensor, "example hidden"]:
    """Scale each group in `order` to the mean norm of the first; other groups, and zero targets, are not changed.

    Example:
        >>> equalize_norms(targets, behaviors, ["refuse", "defer"])

    Args:
        targets: `(example, hidden)`, in units of the residual stream; directions are kept.
        groups: the group of each example.
        order: the groups to rescale, the reference first.

    Raises:
        DataError: a named group has no example, or all targets of the reference are zero.

    Source: the released code of arXiv 2508.12815 (target rescaling of the "multi" safety split).
    """
    if missing := [name for name in order if name not in groups]:
        raise DataError(f"no example is of the groups {missing}; the groups are {sorted(set(groups))}")
    masks = {name: torch.tensor([group == name for group in groups]) for name in order}
    norms = {name: float(targets[mask].double().norm(dim=-1).mean()) for name, mask in masks.items()}
    reference = norms[order[0]]
    if reference == 0:
        raise DataError(f"the reference group {order[0]!r} has zero targets only; name another group first")
    scaled = targets.clone()
    for name, mask in masks.items():
        if norms[name] > 0:
            scaled[mask] *= reference / norms[name]
    return scaled


def reduce_rank(targets: Float[Tensor, "example hidden"], rank: int) -> Float[Tensor, "example hidden"]:
    """The closest targets of a lower rank, in squared error; zero targets stay zero.

    Raises:
        DataError: a rank below 1, or above that of so many targets of this width.
    """
    as_whole("rank", rank, 1, min(targets.shape))
    directions = torch.linalg.svd(targets.double(), full_matrices=False).Vh[:rank]
    return (targets.double() @ directions.T @ directions).float()
