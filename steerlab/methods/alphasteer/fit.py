"""What AlphaSteer learns at one site: a gate and its vector, or a matrix."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from steerlab._support.errors import DataError, MismatchError
from steerlab.capture.activations import Activations
from steerlab.methods.alphasteer.detector import NullSpaceGate, harmful_and_benign
from steerlab.methods.alphasteer.null_space import find_null_space, ridge_map, warn_of_leakage
from steerlab.methods.classes import as_names, check_contrasts_nonzero, contrast_table
from steerlab.models.sites import Site


class SiteMap(NamedTuple):
    """What is learned at one site.

    Attributes:
        learned: by name, without the trailing `_`: `w` and `r`, or `matrix` and `target_norm`.
        ratio, leakage, held_out_leakage: as of `NullSpaceGate`, in shares of the target's norm.
    """

    learned: dict[str, Tensor]
    ratio: float | None
    leakage: float | None
    held_out_leakage: float | None


def learn_gate(gate: NullSpaceGate, acts: Activations, target: Float[Tensor, " hidden"]) -> SiteMap:
    """A gate fitted with the settings of `gate`, and the target it scales.

    Raises:
        MismatchError: the target has another width than the states.
    """
    if len(target) != acts.hidden_size:
        raise MismatchError(
            f"the target of site {gate.site} has width {len(target)}, the activations {acts.hidden_size}; take both "
            "from the same model"
        )
    gate.fit(acts)
    return SiteMap({"w": gate.w_, "r": target}, gate.ratio_, gate.leakage_, gate.held_out_leakage_)


def learn_matrix(gate: NullSpaceGate, acts: Activations, contrast_position: str | None) -> SiteMap:
    """The map of harmful states to their own contrasts, with the settings of `gate`.

    Raises:
        DataError: a harmful input has no contrast, or all contrasts are zero.
    """
    ids, harmful, benign = harmful_and_benign(acts, gate.required_activations[0], gate.harmful, gate.benign, gate.label)
    known, z = harmful_contrasts(gate, acts, contrast_position)
    bare = sorted(set(ids) - set(known))
    if bare:
        raise DataError(
            f"{len(bare)} harmful inputs have no contrast, first {bare[:3]}, and target='each' needs everyone's own: "
            "capture them, leave those inputs out, or take target='mean'"
        )
    row = {name: i for i, name in enumerate(known)}
    targets = z[[row[name] for name in ids]].double()
    check_contrasts_nonzero(targets, gate.site)
    space = find_null_space(
        benign, harmful, ratio=gate.ratio, ridge=gate.ridge, leakage=gate.leakage, site=gate.site
    )  # fmt: skip
    matrix, norm = ridge_map(space.q, harmful, targets, gate.ridge), targets.norm(dim=-1).mean()
    leakage = float((benign.double() @ matrix).norm(dim=-1).max() / norm)
    if gate.ratio is not None:
        warn_of_leakage(leakage, gate.leakage, gate.ratio, gate.site)
    return SiteMap({"matrix": matrix, "target_norm": norm}, space.ratio, leakage, space.held_out)


def mean_target(gate: NullSpaceGate, acts: Activations, contrast_position: str | None) -> Float[Tensor, " hidden"]:
    """The mean contrast of the harmful inputs that have one, summed in float64.

    Raises:
        DataError: none has, or all contrasts are zero.
    """
    _, z = harmful_contrasts(gate, acts, contrast_position)
    check_contrasts_nonzero(z, gate.site)
    return z.double().mean(0).float()


def harmful_contrasts(
    gate: NullSpaceGate, acts: Activations, position: str | None
) -> tuple[list[str], Float[Tensor, "example hidden"]]:
    """Ids and contrasts of the harmful inputs, by sorted id.

    Raises:
        DataError: no harmful input has a contrast.
    """
    ids, z = contrast_table(acts, gate.site, position)
    labels = acts.labels(ids, gate.label)
    keep = [label in as_names(gate.harmful) for label in labels]
    if not any(keep):
        raise DataError(
            f"no contrast is of an input with {gate.label} in {list(as_names(gate.harmful))}; there are contrasts of "
            f"{sorted(set(labels))}. Capture the harmful inputs with theirs, or give a target"
        )
    return [name for name, kept in zip(ids, keep, strict=True) if kept], z[torch.tensor(keep)]


def given_targets(target: Tensor, sites: tuple[Site, ...]) -> Float[Tensor, "site hidden"]:
    """Targets made elsewhere, checked: one finite row per site, none of them zero.

    Raises:
        DataError: they are not.
    """
    if target.ndim != 2 or len(target) != len(sites):
        raise DataError(
            f"the target has shape {tuple(target.shape)}, expected ({len(sites)}, hidden): a row for each site"
        )
    if not bool(torch.isfinite(target).all()) or not bool(target.any(dim=1).all()):
        raise DataError("a row of the target holds NaN or infinity, or is all zero: there is nothing to steer with")
    return target.detach().to("cpu", torch.float32, copy=True)


def describe_sites(sites: Sequence[Site]) -> str:
    """Sites, for messages."""
    return "the sites " + ", ".join(map(str, sites)) if sites else "no site"


def check_settings(
    sites: Sequence[Site], ratios: Sequence[float | None], target: str | Tensor, position: str | int, gates: str,
    dead_zone: float,
) -> None:  # fmt: skip
    """Refuse settings of `AlphaSteer` that don't go together; ratio, ridge and leakage are checked where they are used.

    Raises:
        DataError: says which, and what is expected.
    """
    if not sites or len(set(sites)) < len(sites):
        raise DataError(f"AlphaSteer was given {describe_sites(sites)}: give at least one, and each once")
    if gates not in ("cumulative", "frozen"):
        raise DataError(f"gates={gates!r}; expected 'cumulative' or 'frozen'")
    if gates == "cumulative" and position != "last":
        raise DataError(
            f"position={position!r}: states are met at the last prompt token, so the gates have to be learned there "
            "too. Take position='last', or gates='frozen'"
        )
    if isinstance(target, str) and target not in ("mean", "each"):
        raise DataError(f"target={target!r}; expected 'mean', 'each' or a tensor with a row for each site")
    if len(ratios) != len(sites):
        raise DataError(f"{len(ratios)} ratios for {describe_sites(sites)}: give one for each, one for all, or None")
    if not (isfinite(dead_zone) and dead_zone >= 0):
        raise DataError(f"dead_zone={dead_zone}: give the |gate| below which nothing is added, 0 for none")
