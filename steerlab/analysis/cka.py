"""How alike whole representations are: linear CKA, between layers and between models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from steerlab._support.errors import DataError, MismatchError
from steerlab.capture.activations import Activations
from steerlab.models.sites import Site

Form = Literal["auto", "feature", "gram"]


def linear_cka(x: Float[Tensor, "n p"], y: Float[Tensor, "_ q"], *, form: Form = "auto") -> float:
    """Centerd kernel alignment of two representations of the same inputs: 1 where one is the other, turned and scaled.

    Few inputs make it large by themselves: it is near 0 for independent states only where n is well above p and q.

    Example:
        >>> x = torch.randn(500, 8)
        >>> linear_cka(x, 3 * x @ torch.linalg.qr(torch.randn(8, 8)).Q)
        1.0

    Args:
        x, y: `(n, p)` and `(n, q)`, a row an input, in the same order; columns are centered here.
        form: "feature" multiplies p by q, "gram" n by n matrices; "auto" takes the smaller. They agree.

    Returns:
        A number between 0 and 1, computed in float64.

    Raises:
        MismatchError: different numbers of inputs.
        DataError: a value is not finite, or all inputs have the same state; an unknown form.

    Source: arXiv 1905.00414 (Kornblith et al. 2019), section 3, equation 4 with linear kernels.
    """
    if len(x) != len(y):
        raise MismatchError(f"x has {len(x)} rows, y has {len(y)}; give the same inputs in the same order")
    return float(_alignment([_centered(x, "x")], [_centered(y, "y")], form)[0, 0])


def cka_matrix(
    acts: Activations,
    side: str = "prompt",
    position: str | None = None,
    *,
    other: Activations | None = None,
) -> pd.DataFrame:
    """Linear CKA between every two sites, of one capture or of two models that read the same samples.

    Example:
        >>> cka_matrix(acts).loc[3, 20]                     # layer 3 against layer 20
        >>> cka_matrix(acts, other=of_another_model)        # its layers are the columns

    Args:
        acts: what was captured; one row a sample on `side` and at `position`.
        side: "prompt", "positive" or "negative".
        position: which captured rows; None where there is only one kind.
        other: a second capture; rows are joined by sample id. None compares `acts` with itself.

    Returns:
        A frame of sites by sites; layers stand as numbers where every site is a block's output.

    Raises:
        MismatchError: the two captures hold different samples.
        DataError: as `linear_cka`; the site is named.
        ActivationError: nothing matches, or a sample has several rows.

    Source: arXiv 1905.00414, section 3.
    """
    ids, first = _by_site(acts, side, position)
    if other is None:
        return pd.DataFrame(_alignment(first, None, "auto"), index=_names(acts.sites), columns=_names(acts.sites))
    theirs, second = _by_site(other, side, position)
    if set(ids) != set(theirs):
        lone = sorted(set(ids) ^ set(theirs))
        raise MismatchError(f"{len(lone)} samples are in one capture only, first {lone[:3]}; capture the same inputs")
    row = {example_id: i for i, example_id in enumerate(theirs)}
    order = [row[example_id] for example_id in ids]
    found = _alignment(first, [x[order] for x in second], "auto")
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
    centered = wide - wide.mean(0)
    # a mean of equal numbers is off by rounding, so equal rows are told by the rows themselves
    if len(wide) < 2 or bool((wide == wide[0]).all()):
        raise DataError(f"{name} is the same for all {len(wide)} inputs; CKA needs inputs whose states differ")
    return centered


def _alignment(xs: list[Float[Tensor, "n _"]], ys: list[Float[Tensor, "n _"]] | None, form: Form) -> np.ndarray:
    """CKA of every x with every y; of every two x where `ys` is None."""
    if form not in ("auto", "feature", "gram"):
        raise DataError(f"unknown form {form!r}; expected 'auto', 'feature' or 'gram'")
    widest = max(x.shape[1] for x in [*xs, *(ys or [])])
    if form == "gram" or (form == "auto" and len(xs[0]) < widest):
        # <K, L> = ‖XᵀY‖², so n x n matrices are multiplied entry by entry, and each is made once
        xs = [x @ x.T for x in xs]
        ys = None if ys is None else [y @ y.T for y in ys]
        cross, own = _entrywise, _entrywise
    else:
        cross, own = _features, _features
    own_x = [own(x, x) for x in xs]
    own_y = own_x if ys is None else [own(y, y) for y in ys]
    found = np.ones((len(own_x), len(own_y)))
    for i, x in enumerate(xs):
        for j, y in enumerate(xs if ys is None else ys):
            if ys is None and j <= i:
                found[i, j] = found[j, i]
            else:
                found[i, j] = min(1.0, cross(x, y) / (own_x[i] * own_y[j]) ** 0.5)
    return found


def _entrywise(x: Float[Tensor, "n n"], y: Float[Tensor, "n n"]) -> float:
    return float((x * y).sum())


def _features(x: Float[Tensor, "n p"], y: Float[Tensor, "n q"]) -> float:
    return float((x.T @ y).square().sum())
