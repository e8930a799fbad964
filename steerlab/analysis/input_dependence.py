"""How much of the inputs' own vectors a single vector, class means, a linear map and a net explain, before steering."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import StratifiedGroupKFold
from torch import Tensor

from steerlab._support.checks import as_whole
from steerlab.capturing.activations import Activations
from steerlab.errors import DataError
from steerlab.methods import L2S, P2S, Context, NearestNeighbors, RoutedMean, Steerer
from steerlab.methods.base import ROUNDING, are_same
from steerlab.metrics.bootstrap import check_resampling

PREDICTORS = ("one vector", "class means", "routed mean", "nearest neighbors", "linear", "net")
Vectors = Float[Tensor, "example hidden"]


def input_dependence(
    acts: Activations, l2s: L2S, *, groups: Mapping[str, str] | None = None, folds: int = 5, n_boot: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """The share of held-out inputs' own contrast vectors that each kind of predictor explains, in all, and between
    and within behaviors.

    "one vector" is the mean of the training inputs, "class means" that of each input's true behavior (an oracle);
    "routed mean", "nearest neighbors", "linear" (ridge) and "net" predict from the context. A predicted vector is
    needed only where "linear" or "net" explains something within behaviors, and only if that part changes what the
    model says (`shuffle_effects`).

    Example:
        >>> frame = input_dependence(acts, L2S(13))
        >>> frame.set_index("predictor")[["explained", "between", "within"]]

    Args:
        acts: activations of plain prompts and contrasts, as `L2S.fit` takes them.
        l2s: an unfitted L2S: the "net", and what all predictors read and predict.
        groups: by example id, what inputs have in common that must not help (an image, a question): inputs of one
            group, and those with the same context, are in the same fold, and are resampled together.
        folds: each input is predicted by predictors that were fitted without its fold.
        n_boot: resamples of groups for the interval of `within`.
        seed: of the folds and the resamples.

    Returns:
        One row per predictor: `explained` (1 - squared error / squared length of the vectors), `between` (the same of
        the behaviors' mean vectors around their common mean; NaN for one behavior), `within` with its 95 % interval
        `within_low`, `within_high`, the mean `cosine` to the input's own vector (where that is not 0), and `n`.
        `within` is the share of what is left of vectors without their behavior's training mean, predicted from what is
        left of contexts without theirs, so that taking one behavior for another is no error here; 0 for predictors that
        know the behavior alone, below 0: worse than nothing. Inputs with a zero vector are left out of it. A share of
        nothing is NaN: `within` where every behavior has one vector, `between` where all have the same mean.

    Raises:
        DataError: a behavior of fewer examples than folds; all vectors are the same, so that a mean will do; an input
            without a group; or an L2S that learns other targets than the vectors (`rank`, `equalize_norms`).
    """
    check_resampling(0.95, n_boot, seed)
    as_whole("folds", folds, 2)
    if l2s.rank is not None or l2s.training_config.equalize_norms:
        raise DataError("this L2S learns targets of another rank or norm: give one without rank and equalize_norms")
    oracle = P2S(l2s.layer, position=l2s.position, zero_behaviors=l2s.zero_behaviors).fit(acts)
    ids, z = list(oracle.ids_), oracle.table_
    labels = acts.labels(ids, l2s.group_column)
    counts = {name: labels.count(name) for name in sorted(set(labels))}
    if min(counts.values()) < folds:
        raise DataError(
            f"the examples have {counts} by {l2s.group_column}: each needs at least {folds}, one for every fold"
        )
    if are_same(z):
        raise DataError(
            f"all {len(z)} inputs have the same vector, so there is nothing to predict: a mean will do (MeanDifference)"
        )
    contexts = l2s.contexts(Context(tuple(ids), acts)).contiguous()
    clusters = _clusters(ids, contexts, groups)
    makers = _makers(l2s, len(z), len(counts))
    predicted = {name: torch.zeros_like(z) for name in PREDICTORS if name in makers or name in PREDICTORS[:2]}
    left, left_predicted = torch.zeros_like(z), {name: torch.zeros_like(z) for name in predicted}
    paired = np.array([bool(row.any()) for row in z])
    varies = float((z - class_means(z, _numbers(labels))).square().sum()) > ROUNDING**2 * float(z.square().sum())
    split = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    for train, test in split.split(ids, labels, clusters):
        rows, held_out = acts.select(example_id=[ids[i] for i in train]), [ids[i] for i in test]
        predicted["one vector"][test] = z[train].double().mean(0).float()
        means = {name: z[[i for i in train if labels[i] == name]].double().mean(0).float() for name in counts}
        predicted["class means"][test] = torch.stack([means[labels[i]] for i in test])
        for name, make in makers.items():
            predicted[name][test] = make(l2s.zero_behaviors).fit(rows).vectors(Context(tuple(held_out), acts))
        own, other = ([i for i in part if paired[i]] for part in (train, test))
        left[other] = z[other] - torch.stack([means[labels[i]] for i in other])
        if varies:
            centered = _without_means(acts, l2s, ids, labels, train)
            for name in {"nearest neighbors", "linear", "net"} & makers.keys():
                fitted = makers[name](()).fit(centered.select(example_id=[ids[i] for i in own]))
                left_predicted[name][other] = fitted.vectors(Context(tuple(ids[i] for i in other), centered))
    table: list[dict[str, Any]] = []
    for name, found in predicted.items():
        within = _within(left, left_predicted[name], clusters, varies, n_boot, seed)
        table.append({"predictor": name, **_explained(z, found, _numbers(labels)), **within})
    return pd.DataFrame(table)


def _makers(l2s: L2S, n: int, n_behaviors: int) -> dict[str, Callable[[Any], Steerer]]:
    """The predictors that read the context, by name; each is made with the behaviors whose vector is zero."""
    options: dict[str, Any] = {
        name: getattr(l2s, name) for name in ("context_layer", "context_position", "position")
    }  # fmt: skip
    found: dict[str, Callable[[Any], Steerer]] = {
        "nearest neighbors": lambda zero: NearestNeighbors(
            l2s.layer, k=min(10, n // 2), zero_behaviors=zero, **options
        ),
        "linear": lambda zero: L2S(l2s.layer, net="linear", zero_behaviors=zero, **options),
    }  # fmt: skip
    if l2s.net == "mlp":

        def net(zero: Any) -> Steerer:
            made = l2s.with_layer(l2s.layer)
            assert isinstance(made, L2S)
            made.zero_behaviors = zero
            return made

        found["net"] = net
    if n_behaviors > 1:
        found["routed mean"] = lambda zero: RoutedMean(
            l2s.layer, label=l2s.group_column, zero_behaviors=zero, **options
        )
    return found


def _clusters(
    ids: Sequence[str], contexts: Float[Tensor, "example context"], groups: Mapping[str, str] | None
) -> NDArray[np.int64]:
    """A number for each input, the same for those with the same context or group, directly or through others."""
    same = [pd.factorize(np.array([row.numpy().tobytes() for row in contexts], dtype=object))[0]]
    if groups is not None:
        missing = [one for one in ids if one not in groups]
        if missing:
            raise DataError(f"{len(missing)} inputs have no group, first {missing[:3]}")
        same.append(pd.factorize(np.array([groups[one] for one in ids], dtype=object))[0])
    n, start, edges = len(ids), len(ids), []
    for numbers in same:
        edges.append((np.arange(n), start + numbers))
        start += int(numbers.max()) + 1
    rows, columns = (np.concatenate(side) for side in zip(*edges, strict=True))
    found: NDArray[np.int64] = connected_components(coo_array((np.ones(len(rows)), (rows, columns)), (start, start)))[1]
    return np.unique(found[:n], return_inverse=True)[1]


def _without_means(
    acts: Activations, l2s: L2S, ids: Sequence[str], labels: Sequence[str], train: Sequence[int]
) -> Activations:
    """The activations with contexts and contrasts less the means of the training inputs of their behavior."""
    values = acts.values.float().clone()
    names = pd.Series(dict(zip(ids, labels, strict=True)))
    behavior = acts.index["example_id"].map(names)
    trained = acts.index["example_id"].isin([ids[i] for i in train])
    side, position = acts.index["side"], acts.index["position"]
    for required in l2s.required_activations:
        context = (side == "prompt") & (position == str(required.position))
        column = acts.sites.index(required.site)
        for name in set(labels):
            rows = np.flatnonzero(context & (behavior == name))
            fitted = np.flatnonzero(context & (behavior == name) & trained)
            values[rows, column] -= values[fitted, column].double().mean(0).float()
    column = acts.sites.index(l2s.site)
    contrasts = acts.contrast(l2s.site, l2s.position)
    table = dict(zip(contrasts[0], contrasts[1].float(), strict=True))
    read = (side == "positive") & ((position == l2s.position) | (l2s.position is None))
    for name in set(labels):
        own = [table[ids[i]] for i in train if labels[i] == name and ids[i] in table]
        if own:
            values[np.flatnonzero(read & (behavior == name)), column] -= torch.stack(own).double().mean(0).float()
    return Activations(values, acts.index, acts.sites, acts.info)


def _explained(z: Vectors, predicted: Vectors, groups: Int[Tensor, " example"]) -> dict[str, float]:
    """The shares of the whole vectors and of their behaviors' means, in float64."""
    z, predicted = z.double(), predicted.double()
    means, predicted_means = (class_means(rows, groups) for rows in (z, predicted))
    total, spread = z.square().sum(), (means - z.mean(0)).square().sum()
    between = float(1 - (means - predicted_means).square().sum() / spread) if spread > ROUNDING**2 * total else np.nan
    cosines = torch.cosine_similarity(z, predicted, dim=1)[z.norm(dim=1) > 0]
    explained = float(1 - (z - predicted).square().sum() / total)
    return {"explained": explained, "between": between, "cosine": float(cosines.mean()), "n": len(z)}


def _within(
    left: Vectors, predicted: Vectors, clusters: NDArray[np.int64], varies: bool, n_boot: int, seed: int
) -> dict[str, float]:
    """The share of what is left of the vectors without their behavior's mean, and its interval over clusters."""
    if not varies:
        return dict.fromkeys(("within", "within_low", "within_high"), np.nan)
    size = np.bincount(clusters, left.double().square().sum(1).numpy())
    lost = np.bincount(clusters, (left - predicted).double().square().sum(1).numpy())
    draws = np.random.default_rng(seed).integers(0, len(size), (n_boot, len(size)))
    low, high = np.quantile(1 - lost[draws].sum(1) / size[draws].sum(1), [0.025, 0.975])
    return {"within": float(1 - lost.sum() / size.sum()), "within_low": float(low), "within_high": float(high)}


def _numbers(labels: Sequence[str]) -> Int[Tensor, " example"]:
    return torch.from_numpy(pd.factorize(np.array(labels, dtype=object), sort=True)[0])


def class_means(
    rows: Float[Tensor, "example hidden"], groups: Int[Tensor, " example"]
) -> Float[Tensor, "example hidden"]:
    """For each row the mean of the rows of its group."""
    return torch.stack([rows[groups == k].mean(0) for k in range(int(groups.max()) + 1)])[groups]
