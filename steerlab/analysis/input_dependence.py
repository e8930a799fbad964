"""How much of the inputs' own vectors a single vector, class means, a linear map and a net explain, before steering."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from sklearn.model_selection import StratifiedGroupKFold
from torch import Tensor

from steerlab._support.checks import as_number, as_seed, as_whole
from steerlab.analysis.sweep import sweep
from steerlab.capturing.activations import Activations
from steerlab.data.inputs import Data
from steerlab.errors import DataError
from steerlab.methods import L2S, P2S, Context, NearestNeighbors, RoutedMean, Steerer
from steerlab.methods.base import ROUNDING, are_same
from steerlab.metrics.bootstrap import check_resampling
from steerlab.models.model import Model
from steerlab.models.positions import Positions
from steerlab.models.sites import Site

PREDICTORS = ("one vector", "class means", "routed mean", "nearest neighbors", "linear", "net")
ROW_COLUMNS = ("side", "position", "column", "token", "n_tokens")
Vectors = Float[Tensor, "example hidden"]


def input_dependence(acts: Activations, l2s: L2S, *, folds: int = 5, n_boot: int = 1000, seed: int = 0) -> pd.DataFrame:
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
        folds: each input is predicted by predictors that were fitted without its fold.
        n_boot: resamples of inputs for the interval of `within`.
        seed: of the folds and the resamples.

    Returns:
        One row per predictor: `explained` (1 - squared error / squared length of the vectors), `between` (the same of
        the behaviors' mean vectors around their common mean; NaN for one behavior), `within` (of what is left of each
        vector without its behavior's mean; 0 or less: nothing) with its 95 % interval `within_low`, `within_high`, the
        mean `cosine` to the input's own vector (where that is not 0), and `n`. A share of nothing is NaN: `within`
        where every behavior has one vector, `between` where all have the same mean.

    Raises:
        DataError: a behavior of fewer examples than folds; all vectors are the same, so that a mean will do; or an L2S
            that learns other targets than the vectors (`rank`, `equalize_norms`).
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
    names = ("context_layer", "context_position", "position", "zero_behaviors")
    options: dict[str, Any] = {name: getattr(l2s, name) for name in names}
    makers: dict[str, Callable[[], Steerer]] = {
        "nearest neighbors": lambda: NearestNeighbors(l2s.layer, k=min(10, len(z) // 2), **options),
        "linear": lambda: L2S(l2s.layer, net="linear", **options),
    }
    if l2s.net == "mlp":
        makers["net"] = lambda: l2s.with_layer(l2s.layer)
    if len(counts) > 1:
        makers["routed mean"] = lambda: RoutedMean(l2s.layer, label=l2s.group_column, **options)
    contexts = l2s.contexts(Context(tuple(ids), acts)).contiguous()
    # the same prompt under two ids stays on one side of a fold
    prompts = pd.factorize(np.array([row.numpy().tobytes() for row in contexts], dtype=object))[0]
    predicted = {name: torch.zeros_like(z) for name in PREDICTORS if name in makers or name in PREDICTORS[:2]}
    split = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    for train, test in split.split(ids, labels, prompts):
        rows, held_out = acts.select(example_id=[ids[i] for i in train]), [ids[i] for i in test]
        predicted["one vector"][test] = z[train].double().mean(0).float()
        for name in counts:
            mean = z[[i for i in train if labels[i] == name]].double().mean(0).float()
            predicted["class means"][[i for i in test if labels[i] == name]] = mean
        for name, make in makers.items():
            context = Context(tuple(held_out), acts)
            predicted[name][test] = make().fit(rows).vectors(context)
    groups = torch.tensor([sorted(counts).index(label) for label in labels])
    return pd.DataFrame([{"predictor": k} | _explained(z, v, groups, n_boot, seed) for k, v in predicted.items()])


def _explained(
    z: Vectors, predicted: Vectors, groups: Int[Tensor, " example"], n_boot: int, seed: int
) -> dict[str, float]:
    """The shares of one predictor, in float64."""
    z, predicted = z.double(), predicted.double()
    means, predicted_means = (_class_means(rows, groups) for rows in (z, predicted))
    own = (z - means).square().sum(1)
    # the error within behaviors: without the part that is the same for all inputs of one
    inner = ((z - means) - (predicted - predicted_means)).square().sum(1)
    total, spread = z.square().sum(), (means - z.mean(0)).square().sum()
    within, low, high = np.nan, np.nan, np.nan
    if own.sum() > ROUNDING**2 * total:
        draws = np.random.default_rng(seed).integers(0, len(z), (n_boot, len(z)))
        resampled = 1 - inner.numpy()[draws].sum(1) / own.numpy()[draws].sum(1)
        within, (low, high) = float(1 - inner.sum() / own.sum()), np.quantile(resampled, [0.025, 0.975])
    between = float(1 - (means - predicted_means).square().sum() / spread) if spread > ROUNDING**2 * total else np.nan
    cosines = torch.cosine_similarity(z, predicted, dim=1)[z.norm(dim=1) > 0]
    return {
        "explained": float(1 - (z - predicted).square().sum() / total), "between": between, "within": within,
        "within_low": float(low), "within_high": float(high), "cosine": float(cosines.mean()), "n": len(z),
    }  # fmt: skip


def _class_means(
    rows: Float[Tensor, "example hidden"], groups: Int[Tensor, " example"]
) -> Float[Tensor, "example hidden"]:
    """For each row the mean of the rows of its group."""
    return torch.stack([rows[groups == k].mean(0) for k in range(int(groups.max()) + 1)])[groups]


def shuffle_contrasts(acts: Activations, *, label: str = "behavior", seed: int = 0) -> Activations:
    """The same activations, with each input given the contrast of another input of its behavior and split.

    What a method reaches that is fitted to them, it reaches without knowing more of an input than its behavior.

    Example:
        >>> control = L2S(13).fit(shuffle_contrasts(acts))
        >>> other = P2S(13).fit(shuffle_contrasts(acts))              # another input's own vector

    Args:
        acts: activations with contrasts; their `info` will say that they are shuffled.
        label: the index column within whose values contrasts change places.
        seed: of the order; no input keeps its own contrast.

    Raises:
        DataError: a behavior with one contrast only, in a split.
    """
    paired = acts.index["side"].isin(["positive", "negative"])
    ids = sorted(set(acts.index.loc[paired, "example_id"]))
    names = [*zip(acts.labels(ids, label), acts.labels(ids, "split"), strict=True)]
    generator, receiver = np.random.default_rng(as_seed(seed)), dict[str, str]()
    for name in sorted(set(names)):
        members = generator.permutation([i for i, own in zip(ids, names, strict=True) if own == name])
        if len(members) < 2:
            raise DataError(
                f"{label} {name[0]!r} has one contrast only in split {name[1]!r}, which can't change places: give more"
            )
        receiver |= dict(zip(members.tolist(), np.roll(members, 1).tolist(), strict=True))
    # a moved row keeps what says where it was read; all else is that of the example that it now belongs to
    examples = (
        acts.index.drop_duplicates("example_id").set_index("example_id", drop=False).drop(columns=list(ROW_COLUMNS))
    )
    moved = acts.index.copy()
    owners = examples.loc[moved.loc[paired, "example_id"].map(receiver)]
    moved.loc[paired, list(examples)] = owners.to_numpy()
    info = {**acts.info, "contrasts": f"shuffled within {label}, seed {seed}"}
    return Activations(acts.values, moved, acts.sites, info)


def shuffle_effects(
    model: Model, data: Data, acts: Activations, layer: int | Site, *, alpha: float = 1.0,
    positions: Positions = "all", position: str | None = None, seed: int = 0, batch_size: int = 16,
) -> pd.DataFrame:  # fmt: skip
    """What the model's answers owe to an input having its own vector, and not another's of its behavior.

    Example:
        >>> frame = shuffle_effects(model, examples, acts, 13)
        >>> (frame["own"] - frame["other"]).mean()                    # nats

    Args:
        model, data: the inputs, with their contrasts.
        acts: their contrasts at `layer`.
        layer, alpha, positions: where and how strongly each input is steered; alpha is not 0.
        position: which captured contrast rows are used.
        seed: which other input's vector each gets.
        batch_size: as in `sweep`.

    Returns:
        One row per input: `example_id`, `behavior`, and the log-probability of the wanted minus the unwanted answer, in
        nats, without steering (`none`), with the input's own vector (`own`), with that of another input of its behavior
        (`other`), and with the mean of the behavior's other inputs (`mean`).
    """
    if not as_number("alpha", alpha):
        raise DataError("alpha=0 steers nothing: give a strength")
    own = P2S(layer, position=position).fit(acts)
    ids, groups = list(own.ids_), pd.factorize(np.array(acts.labels(list(own.ids_))))[0]
    members = torch.bincount(torch.from_numpy(groups))[groups][:, None]
    means = _class_means(own.table_.double(), torch.from_numpy(groups))
    others = ((members * means - own.table_) / (members - 1)).float()  # without the input's own vector
    steerers: dict[str, Steerer] = {
        "own": own, "other": P2S(layer, position=position).fit(shuffle_contrasts(acts, seed=seed)),
        "mean": P2S.from_table(layer, dict(zip(ids, others, strict=True))),
    }  # fmt: skip
    frame = sweep(
        model, data, steerers, None, [0.0, alpha], [positions], "logprob_difference", batch_size=batch_size,
        progress=False,
    )  # fmt: skip
    steered = frame[frame["alpha"] != 0].pivot(index=["example_id", "behavior"], columns="method", values="value")
    none = frame[frame["alpha"] == 0].drop_duplicates("example_id").set_index(["example_id", "behavior"])["value"]
    return steered.assign(none=none)[["none", *steerers]].reset_index().rename_axis(columns=None)
