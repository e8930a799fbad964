"""Similarity of whole representations: linear CKA between layers and between models."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from steerlab.capturing.activations import Activations
from steerlab.errors import DataError, MismatchError
from steerlab.models.sites import Site


def linear_cka(x: Float[Tensor, "n p"], y: Float[Tensor, "_ q"]) -> float:
    """Linear centered kernel alignment of two representations of the same inputs.

    It is 1 where one representation is a rotated and scaled copy of the other. For independent states it is near 0 only
    if n is well above p and q.

    Example:
        >>> x = torch.randn(500, 8)
        >>> linear_cka(x, 3 * x @ torch.linalg.qr(torch.randn(8, 8)).Q)
        1.0

    Args:
        x, y: `(n, p)` and `(n, q)`, one row per input, in the same order; columns are centered here.

    Returns:
        A number between 0 and 1, computed in float64.

    Raises:
        MismatchError: different numbers of inputs.
        DataError: a value is not finite, or all inputs have the same state.

    Source: arXiv 1905.00414 (Kornblith et al. 2019), section 3, equation 4 with linear kernels.
    """
    if len(x) != len(y):
        raise MismatchError(f"x has {len(x)} rows, y has {len(y)}; give the same inputs in the same order")
    return float(_alignment([_centered(x, "x")], [_centered(y, "y")])[0, 0])


def cka_matrix(
    acts: Activations, side: str = "prompt", position: str | None = None, *, other: Activations | None = None
) -> pd.DataFrame:
    """Linear CKA between every two sites of one capture, or of two models that read the same examples.

    Example:
        >>> cka_matrix(acts).loc[3, 20]                     # layer 3 against layer 20
        >>> cka_matrix(acts, other=of_another_model)        # its layers are the columns

    Args:
        acts: captured states with one row per example on `side` and at `position`.
        side: "prompt", "positive" or "negative".
        position: which captured rows; None where there is only one kind.
        other: a second capture; rows are joined by `example_id`. None compares `acts` with itself.

    Returns:
        A frame of sites by sites; layers stand as numbers where every site is a block's output.

    Raises:
        MismatchError: the two captures hold different examples.
        DataError: as `linear_cka`; the site is named.
        ActivationError: nothing matches, or an example has several rows.

    Source: arXiv 1905.00414, section 3.
    """
    ids, first = _by_site(acts, side, position)
    if other is None:
        square = _alignment(first, first)
        return pd.DataFrame((square + square.T) / 2, index=_names(acts.sites), columns=_names(acts.sites))
    other_ids, second = _by_site(other, side, position)
    if set(ids) != set(other_ids):
        lone = sorted(set(ids) ^ set(other_ids))
        raise MismatchError(f"{len(lone)} examples are in one capture only, first {lone[:3]}; capture the same inputs")
    order = [other_ids.index(example_id) for example_id in ids]
    found = _alignment(first, [x[order] for x in second])
    return pd.DataFrame(found, index=_names(acts.sites), columns=_names(other.sites))


def _by_site(acts: Activations, side: str, position: str | None) -> tuple[list[str], list[Float[Tensor, "n _"]]]:
    chosen = acts.select(side=side) if position is None else acts.select(side=side, position=position)
    ids, _ = chosen.by_example(acts.sites[0], side=side)
    return ids, [_centered(chosen.at(site), str(site)) for site in acts.sites]


def _names(sites: Sequence[Site]) -> list[int] | list[str]:
    plain = all(site == Site(site.layer) for site in sites)
    return [site.layer for site in sites] if plain else [str(site) for site in sites]


def _centered(x: Float[Tensor, "n p"], name: str) -> Float[Tensor, "n p"]:
    wide = x.detach().cpu().double()
    if not bool(torch.isfinite(wide).all()):
        raise DataError(f"{name} holds NaN or infinity; capture it again in float32")
    # equal rows are compared themselves: their mean is off by rounding
    if len(wide) < 2 or bool((wide == wide[0]).all()):
        raise DataError(f"{name} is the same for all {len(wide)} inputs; CKA needs inputs whose states differ")
    return wide - wide.mean(0)


def _alignment(xs: list[Float[Tensor, "n _"]], ys: list[Float[Tensor, "n _"]]) -> np.ndarray:
    """CKA of every x with every y."""
    cross = _squared_norm
    if len(xs[0]) < max(x.shape[1] for x in [*xs, *ys]):
        # ‖XᵀY‖² is the inner product of XXᵀ and YYᵀ; each of these n x n matrices is made once
        xs, ys, cross = [x @ x.T for x in xs], [y @ y.T for y in ys], _inner
    norms = np.sqrt(np.outer([cross(x, x) for x in xs], [cross(y, y) for y in ys]))
    return np.minimum([[cross(x, y) for y in ys] for x in xs] / norms, 1.0)


def _inner(x: Float[Tensor, "n n"], y: Float[Tensor, "n n"]) -> float:
    return float((x * y).sum())


def _squared_norm(x: Float[Tensor, "n p"], y: Float[Tensor, "n q"]) -> float:
    return float((x.T @ y).square().sum())
