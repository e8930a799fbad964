"""How much of the inputs' own vectors a single vector, class means, a linear map and a net explain, before steering."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.neighbors import radius_neighbors_graph
from torch import Tensor

from steerlab._support.checks import as_whole
from steerlab.capturing.activations import Activations
from steerlab.errors import DataError
from steerlab.methods import L2S, P2S, Context, NearestNeighbors, RoutedMean, Steerer
from steerlab.methods.base import ROUNDING, are_same, rounding_share
from steerlab.metrics import bootstrap_ratio
from steerlab.metrics.bootstrap import check_resampling

PREDICTORS = ("one vector", "class means", "routed mean", "nearest neighbors", "linear", "net")
Vectors = Float[Tensor, "example hidden"]
Maker = Callable[[Any], Steerer]  # of the behaviors whose vector is zero
Parts = Sequence[tuple[Any, Any]]  # training and test inputs of each fold


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
        >>> frame = input_dependence(acts, L2S(13, net="mlp"))
        >>> frame.set_index("predictor")[["explained", "between", "within"]]

    Args:
        acts: activations of plain prompts and contrasts, as `L2S.fit` takes them.
        l2s: an unfitted L2S: what all predictors read and predict, and the "net" if it has one (`net="mlp"`).
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
    inputs = _Inputs.of(acts, l2s, folds)
    clusters = _clusters(inputs, groups)
    split = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    parts = [(train.tolist(), test.tolist()) for train, test in split.split(inputs.ids, inputs.labels, clusters)]
    for train, _ in parts:
        if absent := sorted(set(inputs.counts) - {inputs.labels[i] for i in train}):
            raise DataError(f"a fold holds all inputs of {absent}, which share their groups: give them more groups")
    makers = _makers(l2s, len(inputs.z), len(inputs.counts))
    predicted = _predict(inputs, makers, parts)
    centered, predicted_centered = _predict_centered(inputs, makers, parts)
    table: list[dict[str, Any]] = []
    for name, found in predicted.items():
        within = _within(centered, predicted_centered.get(name), clusters, n_boot, seed)
        table.append({"predictor": name, **_explained(inputs.z, found, inputs.numbers), **within})
    return pd.DataFrame(table)


@dataclass(frozen=True)
class _Inputs:
    """The inputs: activations, their own vectors `z`, and the behavior of each."""

    acts: Activations
    l2s: L2S
    ids: list[str]
    labels: list[str]
    z: Vectors

    @classmethod
    def of(cls, acts: Activations, l2s: L2S, folds: int) -> _Inputs:
        """The inputs of activations, checked."""
        oracle = P2S(l2s.layer, position=l2s.position, zero_behaviors=l2s.zero_behaviors).fit(acts)
        inputs = cls(acts, l2s, list(oracle.ids_), acts.labels(list(oracle.ids_), l2s.label), oracle.table_)
        if min(inputs.counts.values()) < folds:
            raise DataError(
                f"the examples have {inputs.counts} by {l2s.label}: each needs at least {folds}, one for every fold"
            )
        if are_same(inputs.z):
            raise DataError(
                f"all {len(inputs.z)} inputs have the same vector, so there is nothing to predict: a mean will do "
                "(MeanDifference)"
            )
        return inputs

    @property
    def counts(self) -> dict[str, int]:
        """The number of inputs of each behavior."""
        return {name: self.labels.count(name) for name in sorted(set(self.labels))}

    @property
    def numbers(self) -> Int[Tensor, " example"]:
        """The behavior of each input, as a number."""
        return torch.from_numpy(pd.factorize(np.array(self.labels, dtype=object), sort=True)[0])

    def context(self, places: Sequence[int]) -> Context:
        """The context of some inputs."""
        return Context(tuple(self.ids[i] for i in places), self.acts)

    def select(self, places: Sequence[int]) -> Activations:
        """The activations of some inputs."""
        return self.acts.select(example_id=[self.ids[i] for i in places])

    def means(self, train: Sequence[int]) -> dict[str, Float[Tensor, " hidden"]]:
        """The mean vector of each behavior, over some inputs."""
        return {
            name: self.z[[i for i in train if self.labels[i] == name]].double().mean(0).float() for name in self.counts
        }

    def means_of(self, places: Sequence[int], means: Mapping[str, Tensor]) -> Vectors:
        """For each of some inputs the mean of its behavior."""
        return torch.stack([means[self.labels[i]] for i in places])


def _predict(inputs: _Inputs, makers: Mapping[str, Maker], parts: Parts) -> dict[str, Vectors]:
    """Every input's vector, by predictors that were fitted without its fold."""
    names = [name for name in PREDICTORS if name in makers or name in PREDICTORS[:2]]
    predicted = {name: torch.zeros_like(inputs.z) for name in names}
    for train, test in parts:
        predicted["one vector"][test] = inputs.z[train].double().mean(0).float()
        predicted["class means"][test] = inputs.means_of(test, inputs.means(train))
        for name, make in makers.items():
            fitted = make(inputs.l2s.zero_behaviors).fit(inputs.select(train))
            predicted[name][test] = fitted.vectors(inputs.context(test))
    return predicted


def _predict_centered(inputs: _Inputs, makers: Mapping[str, Maker], parts: Parts) -> tuple[Vectors, dict[str, Vectors]]:
    """Every input's vector without its behavior's mean over the other folds (0 for a zero vector), and what predictors
    say of it that are fitted to such vectors and contexts. Those that know the behavior alone say nothing.
    """
    centered, paired = torch.zeros_like(inputs.z), inputs.z.any(1).tolist()
    predicted = {name: torch.zeros_like(inputs.z) for name in makers if name != "routed mean"}
    spread = (inputs.z - class_means(inputs.z, inputs.numbers)).square().sum()
    if spread <= ROUNDING**2 * inputs.z.square().sum():
        return centered, predicted
    for train, test in parts:
        means = inputs.means(train)
        own, other = ([i for i in part if paired[i]] for part in (train, test))
        centered[other] = inputs.z[other] - inputs.means_of(other, means)
        of_fold = replace(inputs, acts=_without_means(inputs, train, means))
        for name, rows in predicted.items():
            rows[other] = makers[name](()).fit(of_fold.select(own)).vectors(of_fold.context(other))
    return centered, predicted


def _makers(l2s: L2S, n: int, n_behaviors: int) -> dict[str, Maker]:
    """The predictors that read the context, by name; each is made with the behaviors whose vector is zero."""
    options: dict[str, Any] = {name: getattr(l2s, name) for name in ("context_layer", "context_position", "position")}
    found: dict[str, Maker] = {
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
        found["routed mean"] = lambda zero: RoutedMean(l2s.layer, label=l2s.label, zero_behaviors=zero, **options)
    return found


def _clusters(inputs: _Inputs, groups: Mapping[str, str] | None) -> NDArray[np.int64]:
    """A number for each input, the same for those with the same context or group, directly or through others."""
    contexts = inputs.l2s.contexts(inputs.context(range(len(inputs.ids)))).contiguous()
    shared = [pd.factorize(np.array([row.numpy().tobytes() for row in contexts], dtype=object))[0]]
    # equal prompts have equal states up to rounding only: in batches of other widths, sums have another order
    scaled = contexts.double() / contexts.abs().median(0).values.double().clamp_min(1e-12)  # a coordinate may be huge
    radius = 2 * rounding_share(inputs.acts) * contexts.shape[1] ** 0.5
    shared.append(connected_components(radius_neighbors_graph(scaled.numpy(), radius))[1])
    if groups is not None:
        if missing := [one for one in inputs.ids if one not in groups]:
            raise DataError(f"{len(missing)} inputs have no group, first {missing[:3]}")
        shared.append(pd.factorize(np.array([groups[one] for one in inputs.ids], dtype=object))[0])
    n = len(inputs.ids)
    # a graph of inputs, contexts and groups, in which an edge says that an input has one
    nodes = np.concatenate([(k + 1) * n + numbers for k, numbers in enumerate(shared)])
    edges = coo_array((np.ones(len(nodes)), (np.tile(np.arange(n), len(shared)), nodes)), ((len(shared) + 1) * n,) * 2)
    return np.unique(connected_components(edges)[1][:n], return_inverse=True)[1]


def _without_means(inputs: _Inputs, train: Sequence[int], means: Mapping[str, Tensor]) -> Activations:
    """The activations with contexts and contrasts less the means of the training inputs of their behavior."""
    acts, l2s, values = inputs.acts, inputs.l2s, inputs.acts.values.float().clone()
    index = acts.index
    behavior = index["example_id"].map(dict(zip(inputs.ids, inputs.labels, strict=True)))
    trained = index["example_id"].isin([inputs.ids[i] for i in train])
    contrast = (index["side"] == "positive") & ((index["position"] == l2s.position) | (l2s.position is None))
    for name, mean in means.items():
        values[np.flatnonzero(contrast & (behavior == name)), acts.sites.index(l2s.site)] -= mean
        for required in l2s.required_activations:
            context = (index["side"] == "prompt") & (index["position"] == str(required.position)) & (behavior == name)
            column = acts.sites.index(required.site)
            own = values[np.flatnonzero(context & trained), column].double().mean(0).float()
            values[np.flatnonzero(context), column] -= own
    return Activations(values, index, acts.sites, acts.info)


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
    centered: Vectors, predicted: Vectors | None, clusters: NDArray[np.int64], n_boot: int, seed: int
) -> dict[str, float]:
    """The share of the centered vectors that is predicted (None: nothing), and its interval over clusters."""
    if not bool(centered.any()):
        return dict.fromkeys(("within", "within_low", "within_high"), np.nan)
    missed = centered if predicted is None else centered - predicted
    size, lost = (np.bincount(clusters, rows.double().square().sum(1).numpy()) for rows in (centered, missed))
    kept = bootstrap_ratio(size - lost, size, n_boot=n_boot, seed=seed)
    return {"within": kept.value, "within_low": kept.low, "within_high": kept.high}


def class_means(rows: Vectors, groups: Int[Tensor, " example"]) -> Vectors:
    """For each row the mean of the rows of its group."""
    return torch.stack([rows[groups == k].mean(0) for k in range(int(groups.max()) + 1)])[groups]
