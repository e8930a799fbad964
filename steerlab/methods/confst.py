"""CONFST: the mean state of those items of a history that are classified with confidence as one preference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any
from warnings import warn

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from torch import Tensor

from steerlab._support.checks import as_whole
from steerlab._support.logistic import SerialLogisticRegression
from steerlab.capturing.activations import Activations
from steerlab.data.example import Example
from steerlab.errors import ActivationError, DataError, SteeringError
from steerlab.methods.base import Context, Intervention, Steerer, check_fitted, repeat_vector
from steerlab.methods.classes import check_acts, check_answers_differ
from steerlab.methods.regression import Standardizer
from steerlab.methods.serialization import savable
from steerlab.models.positions import Positions
from steerlab.models.sites import Site


@savable
class CONFST(Steerer):
    """Steer every input towards one of several preferences, or a mix of them, learned from a history of labeled texts.

    A classifier predicts the preference of each item; the vector of a preference is the mean state of the items whose
    probability of it is above `threshold`. threshold=0 gives mean steering. A span of several tokens has a separate
    vector for each of them.

    The norm of the vectors increases with the threshold, so at a fixed alpha a comparison of thresholds is one of
    strengths: compare with `normalize=True`, or with scale="norm" (which gives all tokens of a span the same norm).

    Example:
        >>> acts = steerlab.capture(model, history, layers=[15])      # Examples whose behavior is the preference
        >>> confst = CONFST(15, "sports").fit(acts)
        >>> confst.n_selected_, confst.accuracy_, confst.cosine_to_mean_
        >>> confst.target = {"sports": 1.0, "world": 0.5}             # a mix, from the same fit
        >>> span = CONFST(15, "sports", span=3)                       # the last three tokens
        >>> span.fit(steerlab.capture(model, history, layers=[15], positions=list(span.positions)))

    Args:
        layer: block whose output is read and steered, 0-based; or a `Site`.
        target: the preference to steer towards, or weights of several, `{name: weight}`, whose vectors are summed.
        threshold: items with a larger probability of their label are selected; 0 or less selects all.
        label: the index column that holds the preferences; items without one are left out.
        side: which rows are the history: "prompt", or "positive", ... for answers; None: the rows of all sides, each an
            item.
        position: where items are read, if the span is one token long and has no start.
        span: how many consecutive tokens make an item (`capture` refuses prompts that are shorter).
        start: the span's first token, counted from the beginning of the prompt, template included; None: the span ends
            with the last prompt token.
        center: subtract the mean of all items ("grand"), of the items of the other classes ("others"), or nothing
            (None). The states of a language model share a large common component: a plain mean is mostly that
            component, and adding it mostly rescales the residual stream (see `cosine_to_mean_`). Hence the default
            "grand", while the paper uses the plain mean.
        normalize: scale each class's vector, over all its tokens, to norm 1.
        folds: number of cross-validation folds; each probability is computed by a classifier without the item.
        min_items: if fewer items of a class are above the threshold, this many of the most probable ones are selected.
        C: the classifier's inverse penalty.
        seed: of the folds.

    Attributes:
        default_positions: "prompt": without given positions, a vector of one token is added to all prompt tokens. A
            span is added to its tokens, whatever positions are given, and clipped where a prompt is shorter.
        vectors_: by class, `(span, hidden)` float32, in units of the residual stream (summed in float64).
        cosine_to_mean_: by class, the cosine of its vector and the mean of all items.
        n_selected_: by class, the number of items averaged in its vector.
        accuracy_: share of items whose label is the most probable class, out of fold.
        item_ids_, item_labels_, item_probability_, selected_mask_: of each item, its id, label, out-of-fold probability
            of that label, and whether it was selected; see `table`.

    Raises:
        ActivationError: rows at a position of the span were not captured, or there is no such label.
        DataError: one class only, or one with fewer examples than folds; an unknown target; invalid settings.
        SteeringError: `vectors` of a span, which has several per input.

    Source: CONFST, arXiv 2503.02989. From the abstract: several preferences at once, and no search over layers. From
        its reviews: the states of a span are concatenated, classified by a logistic regression, selected by a threshold
        and averaged. The full text was not available, and there is no released code: the out-of-fold probabilities,
        `center`, `normalize`, `min_items` and all defaults may differ.
    """

    default_positions: Positions = "prompt"

    def __init__(
        self, layer: int | Site, target: str | Mapping[str, float], *, threshold: float = 0.5,
        label: str = "behavior", side: str | None = "prompt", position: str | int = "last",
        span: int = 1, start: int | None = None, center: str | None = "grand", normalize: bool = False,
        folds: int = 5, min_items: int = 5, C: float = 1.0, seed: int = 0,
    ) -> None:  # fmt: skip
        self.layer, self.target = layer, dict(target) if isinstance(target, Mapping) else target
        self.label, self.side, self.position, self.span, self.start = label, side, position, span, start
        self.threshold, self.center, self.normalize = threshold, center, normalize
        self.folds, self.min_items, self.C, self.seed = folds, min_items, C, seed
        self.site = Site.of(layer)

    @property
    def positions(self) -> tuple[str, ...]:
        """The positions to capture of each item, in order: `capture(..., positions=list(confst.positions))`."""
        if self.start is not None:
            return tuple(f"prompt[{self.start + k}]" for k in range(self.span))
        if self.span == 1:
            return (str(self.position),)
        return (*(f"last-{k}" for k in range(self.span - 1, 0, -1)), "last")

    @property
    def steering_vectors(self) -> Float[Tensor, "span hidden"]:
        """The vector added to each token of the span at alpha 1: the target's, or the weighted sum of several."""
        check_fitted(self, "vectors_")
        weights = _weights(self.target, list(self.vectors_))
        return torch.stack([weight * self.vectors_[name].double() for name, weight in weights.items()]).sum(0).float()

    @property
    def table(self) -> pd.DataFrame:
        """One row per item: `item`, `label`, `probability` (of its label, out of fold) and `selected`."""
        check_fitted(self, "vectors_")
        columns = (self.item_ids_, self.item_labels_, self.item_probability_.numpy(), self.selected_mask_.numpy())
        return pd.DataFrame(dict(zip(("item", "label", "probability", "selected"), columns, strict=True)))

    def fit_activations(self, acts: Activations) -> None:
        """Classify every item out of fold, and average the confident items of each class."""
        self._check_settings()
        items = _items_of(acts, self.site, self.label, self.side, self.positions)
        _weights(self.target, items.classes)
        probabilities = _out_of_fold_probabilities(items, self.folds, self.C, self.seed)
        classes = torch.tensor([items.classes.index(name) for name in items.labels])
        self.item_ids_ = tuple(example_id if self.side else f"{example_id}:{side}" for example_id, side in items.ids)
        self.item_labels_ = items.labels
        self.item_probability_ = probabilities.gather(1, classes[:, None])[:, 0]
        self.accuracy_ = float((probabilities.argmax(1) == classes).double().mean())
        self._average(items, classes)

    def capture_options(self, examples: Sequence[Example]) -> dict[str, Any]:
        """The arguments of `capture` that give the items of a history, at every token of the span."""
        options = super().capture_options(examples)
        extra = None if self.side is None else sorted({self.side} - {"prompt", "positive", "negative"})
        where = "context" if "context" in options and (self.side in (None, "prompt") or extra) else "positions"
        return options | {where: list(self.positions), "extra_prompts": extra}

    def _average(self, items: _Items, classes: Int[Tensor, " item"]) -> None:
        """Select the items of each class and average them."""
        self.selected_mask_ = torch.zeros(len(classes), dtype=torch.bool)
        self.vectors_, self.n_selected_, self.cosine_to_mean_ = {}, {}, {}
        short, grand_mean = [], items.states.double().mean(0)
        for i, name in enumerate(items.classes):
            members = classes == i
            probability = self.item_probability_[members]
            self.selected_mask_[members] = _select_confident(probability, self.threshold, self.min_items)
            selected, above = self.selected_mask_ & members, int((probability > self.threshold).sum())
            n_selected = int(selected.sum())
            if self.threshold > 0 and n_selected > above:
                short.append(f"{above} of {len(probability)} of {name!r} (the {n_selected} surest are taken)")
            vector = items.states[selected].double().mean(0)
            if self.center is not None:
                vector = vector - (grand_mean if self.center == "grand" else items.states[~members].double().mean(0))
            if self.normalize:
                vector = vector / vector.norm().clamp_min(1e-30)
            self.vectors_[name], self.n_selected_[name] = vector.float().unflatten(0, (self.span, -1)), n_selected
            self.cosine_to_mean_[name] = float(torch.cosine_similarity(vector, grand_mean, dim=0))
        if short:
            warn(
                f"few items have a probability above {self.threshold:g}: {'; '.join(short)}. Lower the threshold, or "
                "give more items",
                stacklevel=3,
            )

    def vectors(self, context: Context) -> Float[Tensor, "batch hidden"]:
        """The same vector for every input; only for a span of one token."""
        if self.span != 1:
            raise SteeringError(f"a span of {self.span} tokens has a vector for each: call interventions(context)")
        return repeat_vector(self.steering_vectors[0], context.example_ids)

    def interventions(self, context: Context) -> tuple[Intervention, ...]:
        """One vector at the requested positions, or one at each token of the span."""
        if self.span == 1 and self.start is None:
            return (Intervention(self.site, self.vectors(context)),)
        return tuple(
            Intervention(self.site, repeat_vector(vector, context.example_ids), positions=position)
            for vector, position in zip(self.steering_vectors, self.positions, strict=True)
        )

    def _check_settings(self) -> None:
        """Refuse invalid settings; each message says what is valid."""
        for name in ("span", "folds", "min_items"):
            as_whole(name, getattr(self, name), None)
        invalid = {
            f"threshold={self.threshold}: give a probability": not (
                isinstance(self.threshold, Real) and math.isfinite(self.threshold)
            ),
            f"span={self.span}: give a number of tokens, 1 or more": self.span < 1,
            f"start={self.start}: give a token index, 0 or more, or None": self.start is not None and self.start < 0,
            f"folds={self.folds}: give 2 or more": self.folds < 2,
            f"min_items={self.min_items}: give 1 or more": self.min_items < 1,
            f"C={self.C}: give a positive number": not (self.C > 0 and math.isfinite(self.C)),
            f"center={self.center!r}: give 'grand', 'others' or None": self.center not in ("grand", "others", None),
            f"position={self.position!r} has no meaning for a span ({self.positions}): leave it out": (
                self.position != "last" and (self.span != 1 or self.start is not None)
            ),
        }
        for message, is_invalid in invalid.items():
            if is_invalid:
                raise DataError(message)


@dataclass(frozen=True)
class _Items:
    """Labeled items of a history, by sorted id.

    Attributes:
        ids: `(example_id, side)` of each.
        labels: the class of each.
        states: `(item, span * hidden)` float32: the concatenated states at the span's tokens.
    """

    ids: tuple[tuple[str, str], ...]
    labels: tuple[str, ...]
    states: Float[Tensor, "item features"]

    @property
    def classes(self) -> list[str]:
        return sorted(set(self.labels))


def _items_of(acts: Activations, site: Site, label: str, side: str | None, positions: Sequence[str]) -> _Items:
    """The labeled items that were captured at all positions; a warning counts the others."""
    check_acts(acts, site)
    if label not in acts.index:
        raise ActivationError(f"no label {label!r}; the labels are {list(acts.index.columns)}")
    chosen = acts if side is None else acts.select(side=side)
    states, captured = chosen.at(site), set(chosen.index["position"])
    if missing := [name for name in positions if name not in captured]:
        raise ActivationError(
            f"{missing} were not captured; captured are {sorted(captured)}. Capture with positions={list(positions)} "
            "(for prompts with a contrast: context=...)"
        )
    if side in ("positive", "negative"):
        check_answers_differ(acts.select(position=list(positions)), site)
    rows = chosen.index.assign(row=range(len(chosen.index)), label_=chosen.index[label])
    rows = rows[rows["label_"].notna() & (rows["label_"] != "")]
    item = ["example_id", "side"]
    labeled = pd.MultiIndex.from_frame(rows[item].drop_duplicates())  # with those that are captured at no position
    rows = rows[rows["position"].isin(positions)]
    for name, group in rows[rows.duplicated([*item, "position"])].groupby(item):
        where = f"the item {name[0]!r} ({name[1]}) has two rows at {group['position'].iloc[0]!r}"
        raise DataError(f"{where}: give each id once, and capture one row per position (reduce='mean')")
    labels = rows["label_"].astype(str).groupby([rows[key] for key in item]).agg(["min", "max"])
    for name, pair in labels[labels["min"] != labels["max"]].iterrows():
        raise DataError(f"the item {name[0]!r} ({name[1]}) has two labels: {pair['min']!r} and {pair['max']!r}")
    table = rows.pivot(index=item, columns="position", values="row")
    table = table.reindex(labeled, columns=list(positions)).sort_index()
    complete = table.dropna().astype(int)
    if len(complete) < len(table):
        first = table.index[table.isna().any(axis=1)][0][0]
        warn(
            f"{len(table) - len(complete)} of {len(table)} items are left out, first {first!r}: they were not captured "
            f"at all of {list(positions)}",
            stacklevel=3,
        )
    if not len(complete):
        raise DataError(f"no item has both a label in {label!r} and a state at each of {list(positions)}")
    found = states[torch.tensor(complete.to_numpy().tolist())].flatten(1).float()
    if bool((found == found[0]).all()):
        raise DataError(
            f"all {len(found)} items have the same state at {list(positions)} of site {site}: most likely these are "
            "template tokens before the text. Read later tokens"
        )
    return _Items(tuple(complete.index), tuple(labels.loc[complete.index, "min"]), found)


def _out_of_fold_probabilities(items: _Items, folds: int, C: float, seed: int) -> Float[Tensor, "item class"]:
    """The class probabilities of each item, by a standardized logistic regression fitted to the other folds.

    In sample, the regression would be sure of every item if there are more features than items. Items of one example
    are in one fold, since they may be nearly equal.
    """
    members = pd.Series([example_id for example_id, _ in items.ids]).groupby(list(items.labels)).nunique()
    if len(members) < 2:
        raise DataError(f"all {len(items.labels)} items are {items.classes[0]!r}: there are no classes to compare")
    if few := list(members.index[members < folds]):
        raise DataError(
            f"{few} have fewer members than there are folds ({folds}); the classes have {members.to_dict()}. Give more "
            f"of them, leave these labels out, or use folds={max(2, int(members.min()))} or fewer"
        )
    groups = [example_id for example_id, _ in items.ids]
    repeated = len(set(groups)) < len(groups)
    found = cross_val_predict(
        make_pipeline(Standardizer(), SerialLogisticRegression(C=C, max_iter=2000)),
        items.states.double().numpy(), list(items.labels), groups=groups if repeated else None, method="predict_proba",
        cv=(StratifiedGroupKFold if repeated else StratifiedKFold)(folds, shuffle=True, random_state=seed),
    )  # fmt: skip
    return torch.from_numpy(found)


def _select_confident(probability: Float[Tensor, " n"], threshold: float, min_items: int) -> Bool[Tensor, " n"]:
    """Which items of a class are above the threshold; if there are fewer, the `min_items` most probable ones."""
    selected = probability > threshold
    if threshold <= 0:  # a probability may underflow to 0, and mean steering is the mean of all
        return torch.ones_like(selected)
    if int(selected.sum()) < min(min_items, len(probability)):
        selected[probability.sort(descending=True, stable=True).indices[:min_items]] = True
    return selected


def _weights(target: str | Mapping[str, float], classes: list[str]) -> dict[str, float]:
    """The weight of each preference in the target."""
    weights = {name: float(w) for name, w in target.items()} if isinstance(target, Mapping) else {target: 1.0}
    unknown = [name for name in weights if name not in classes]
    if unknown or not weights:
        raise DataError(f"target={target!r} names {unknown or 'no preference'}; the preferences are {classes}")
    if not all(map(math.isfinite, weights.values())) or not any(weights.values()):
        raise DataError(f"target={target!r}: give finite weights, not all of them 0")
    return weights
