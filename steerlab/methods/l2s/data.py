"""From labeled activations to the pairs a steering net is trained on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steerlab._support.errors import DataError
from steerlab.capture.activations import Activations
from steerlab.methods.base import RequiredActivation
from steerlab.methods.l2s.config import TrainingConfig
from steerlab.methods.p2s import check_contrasts_nonzero, contrast_table, names
from steerlab.models.sites import Site

Rows = Float[Tensor, "example hidden"]


def training_pairs(
    acts: Activations,
    read: RequiredActivation,
    site: Site,
    position: str | None,
    zero_behaviors: Sequence[str] | None,
    recipe: TrainingConfig,
    label: str = "behavior",
) -> tuple[Rows, Rows, list[str]]:
    """Contexts, targets (rescaled if the recipe says so) and groups, by sorted sample id.

    `label` is the index column with the groups; samples without one ("" there, or nothing) are not rescaled.

    Raises:
        DataError: a sample has a context but no target, or the other way round; the first few are named. Or every
            contrast is exactly zero.
    """
    ids, states = acts.by_example(read.site, side="prompt", position=str(read.position))
    example_ids, targets = contrast_table(acts, site, position, zero_behaviors)
    bare, alone = sorted(set(ids) - set(example_ids)), sorted(set(example_ids) - set(ids))
    if bare:
        raise DataError(
            f"{len(bare)} samples have no contrast, first {bare[:3]}, behaviors "
            f"{sorted(set(acts.labels(bare)))}; capture their contrasts, leave them out, or name those "
            "behaviors in zero=(...) if nothing should be added to them"
        )
    if alone:
        raise DataError(
            f"{len(alone)} samples have no context, first {alone[:3]}; capture their plain prompts at site "
            f"{read.site}, position {read.position!r}"
        )
    behaviors = acts.labels(example_ids)
    check_contrasts_nonzero(targets[torch.tensor([name not in names(zero_behaviors) for name in behaviors])], site)
    groups = acts.labels(example_ids, label)
    if recipe.equalize_norms:
        named = recipe.equalize_norms
        seen = dict.fromkeys(acts.labels(acts.index["example_id"].tolist(), label))
        order = [name for name in seen if name] if isinstance(named, bool) else list(named)
        targets = equalize_norms(targets, groups, order) if order else targets
    row = {example_id: i for i, example_id in enumerate(ids)}
    return states[[row[example_id] for example_id in example_ids]].float(), targets, groups


def split_rows(
    n: int, share: float | None, recipe: TrainingConfig, seed: int
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


def equalize_norms(
    targets: Float[Tensor, "example hidden"], groups: Sequence[str], order: Sequence[str]
) -> Float[Tensor, "example hidden"]:
    """Scale each group in `order` so that its mean norm is that of the first; other groups, and zeros, stay.

    Example:
        >>> equalize_norms(z, behaviors, ["refuse", "defer"])

    Args:
        targets: `(sample, hidden_units)`, in units of the residual stream; directions are kept.
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
