"""From labelled activations to the pairs a steering net is trained on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steerlab._support.errors import DataError
from steerlab.capture.activations import Activations
from steerlab.methods.base import Read
from steerlab.methods.l2s_recipe import Recipe
from steerlab.methods.p2s import check_differ, contrast_table, names
from steerlab.models.sites import Site

Rows = Float[Tensor, "sample hidden"]


def training_pairs(
    acts: Activations,
    read: Read,
    site: Site,
    position: str | None,
    zero: Sequence[str] | None,
    recipe: Recipe,
    label: str = "behaviour",
) -> tuple[Rows, Rows, list[str]]:
    """Contexts, targets (rescaled if the recipe says so) and groups, by sorted sample id.

    `label` is the index column with the groups; samples without one ("" there, or nothing) are not rescaled.

    Raises:
        DataError: a sample has a context but no target, or the other way round; the first few are named. Or every
            contrast is exactly zero.
    """
    ids, states = acts.by_sample(read.site, side="prompt", position=str(read.position))
    samples, targets = contrast_table(acts, site, position, zero)
    bare, alone = sorted(set(ids) - set(samples)), sorted(set(samples) - set(ids))
    if bare:
        raise DataError(
            f"{len(bare)} samples have no contrast, first {bare[:3]}, behaviours "
            f"{sorted(set(acts.labels(bare)))}; capture their contrasts, leave them out, or name those "
            "behaviours in zero=(...) if nothing should be added to them"
        )
    if alone:
        raise DataError(
            f"{len(alone)} samples have no context, first {alone[:3]}; capture their plain prompts at site "
            f"{read.site}, position {read.position!r}"
        )
    behaviours = acts.labels(samples)
    check_differ(targets[torch.tensor([name not in names(zero) for name in behaviours])], site)
    groups = acts.labels(samples, label)
    if recipe.equalise_norms:
        named = recipe.equalise_norms
        seen = dict.fromkeys(acts.labels(acts.index["sample"].tolist(), label))
        order = [name for name in seen if name] if isinstance(named, bool) else list(named)
        targets = equalise_norms(targets, groups, order) if order else targets
    row = {sample: i for i, sample in enumerate(ids)}
    return states[[row[sample] for sample in samples]].float(), targets, groups


def split_rows(
    n: int, share: float | None, recipe: Recipe, seed: int
) -> tuple[Int[Tensor, " train"], Int[Tensor, " held"]]:
    """Rows to train on and rows held out; None is 0.1 where the recipe keeps the best epoch, else 0.

    Raises:
        DataError: nothing would be left to train on.
    """
    if share is None:
        share = 0.1 if recipe.keep == "best" else 0.0
    held = max(1, round(share * n)) if share > 0 else 0
    if not 0 <= share < 1 or held >= n:
        raise DataError(
            f"validation={share} of {n} samples leaves {max(0, n - held)} to train on; give more samples, a "
            "share below 1, or a recipe with keep='last' and validation=0"
        )
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return order[held:].sort().values, order[:held]


def equalise_norms(
    targets: Float[Tensor, "sample hidden"], groups: Sequence[str], order: Sequence[str]
) -> Float[Tensor, "sample hidden"]:
    """Scale each group in `order` so that its mean norm is that of the first; other groups, and zeros, stay.

    Example:
        >>> equalise_norms(z, behaviours, ["refuse", "defer"])

    Args:
        targets: `(sample, hidden)`, in units of the residual stream; directions are kept.
        groups: the group of each sample.
        order: the groups to rescale, the reference first.

    Raises:
        DataError: a named group has no sample, or the reference is all zeros.

    Source: the released code of arXiv 2508.12815 (target rescaling of the "multi" safety split).
    """
    missing = [name for name in order if name not in groups]
    if missing:
        raise DataError(f"no sample is of the groups {missing}; the groups are {sorted(set(groups))}")
    rows = {name: torch.tensor([group == name for group in groups]) for name in order}
    norms = {name: float(targets[mask].double().norm(dim=-1).mean()) for name, mask in rows.items()}
    if norms[order[0]] == 0:
        raise DataError(f"the reference group {order[0]!r} has zero targets only; name another group first")
    scaled = targets.clone()
    for name, mask in rows.items():
        if norms[name] > 0:
            scaled[mask] *= norms[order[0]] / norms[name]
    return scaled
