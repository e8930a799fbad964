"""Which items of a history can be told to belong to their class: out-of-fold probabilities, and who is above."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from warnings import warn

import pandas as pd
import torch
from jaxtyping import Bool, Float
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from steerlab._support.errors import ActivationError, DataError
from steerlab.capture.activations import Activations
from steerlab.models.sites import Site


@dataclass(frozen=True)
class History:
    """Labeled items, sorted by sample and side, so that the order of rows can't change a fit.

    Attributes:
        names: `(sample, side)` of each.
        labels: the class of each.
        states: `(item, span * hidden)` float32: the states at the span's tokens, one after the other.
    """

    names: tuple[tuple[str, str], ...]
    labels: tuple[str, ...]
    states: Float[Tensor, "item features"]

    @property
    def classes(self) -> list[str]:
        """The labels there are, sorted."""
        return sorted(set(self.labels))


def gather(acts: Activations, site: Site, label: str, side: str | None, positions: Sequence[str]) -> History:
    """The items of a history: every labeled row, or, where there are several positions, their rows side by side.

    Rows without a label are left out. Items that were not captured at all positions are too, with a warning.

    Example:
        >>> gather(acts, Site(16), "behavior", "prompt", ("last-1", "last"))

    Raises:
        ActivationError: no such label, side, site or position. DataError: an item has two rows at a position, or two
            labels; no item is whole; all of them have the same state.

    Source: own.
    """
    if label not in acts.index:
        raise ActivationError(f"no label {label!r}; the labels are {list(acts.index.columns)}")
    chosen = acts if side is None else acts.select(side=side)
    values, have = chosen.at(site), set(chosen.index["position"])
    if missing := [name for name in positions if name not in have]:
        raise ActivationError(
            f"the items are read at {list(positions)}, and {missing} were not captured; captured are {sorted(have)}. "
            f"Capture with positions={list(positions)} (of prompts whose examples have a contrast: context=...)"
        )
    rows, labels = _by_item(chosen.index, label, positions)
    whole = sorted(name for name, found in rows.items() if len(found) == len(positions))
    if len(whole) < len(rows):
        short = sorted(set(rows) - set(whole))
        warn(
            f"{len(short)} of {len(rows)} items are left out, first {short[0][0]!r}: not all of {list(positions)} were "
            "captured of them",
            stacklevel=3,
        )
    if not whole:
        raise DataError(f"no item has both a label in {label!r} and a state at each of {list(positions)}")
    states = values[torch.tensor([[rows[name][place] for place in positions] for name in whole])].flatten(1).float()
    if bool((states == states[0]).all()):
        raise DataError(
            f"all {len(whole)} items have the same state at {list(positions)} of site {site}: most likely these tokens "
            "are the template's, which precede whatever was written. Read later tokens"
        )
    return History(tuple(whole), tuple(labels[name] for name in whole), states)


Name = tuple[str, str]


def _by_item(
    index: pd.DataFrame, label: str, positions: Sequence[str]
) -> tuple[dict[Name, dict[str, int]], dict[Name, str]]:
    """The rows of each item by position, and its label."""
    rows: dict[Name, dict[str, int]] = {}
    labels: dict[Name, str] = {}
    columns = (index[name] for name in ("example_id", "side", "position", label))
    for i, (example_id, side, position, value) in enumerate(zip(*columns, strict=True)):
        if position not in positions or pd.isna(value) or value == "":
            continue
        found = rows.setdefault((example_id, side), {})
        if position in found:
            raise DataError(
                f"the item {example_id!r} ({side}) has two rows at {position!r}: give each id once, and capture "
                f"one row "
                "per position (reduce='mean')"
            )
        found[position] = i
        if labels.setdefault((example_id, side), str(value)) != str(value):
            raise DataError(
                f"the item {example_id!r} ({side}) has two labels: {labels[example_id, side]!r} and {value!r}"
            )
    return rows, labels


def check_classes(items: History, folds: int) -> None:
    """Refuse histories of one class, and classes that can't be in every fold.

    Raises:
        DataError: says how many samples each class has.

    Source: own.
    """
    members = {
        name: len({item[0] for item, own in zip(items.names, items.labels, strict=True) if own == name})
        for name in items.classes
    }
    if len(members) < 2:
        raise DataError(f"all {len(items.labels)} items are {items.classes[0]!r}: nothing can be told apart by them")
    few = [name for name, count in members.items() if count < folds]
    if few:
        raise DataError(
            f"{few} have fewer members than there are folds ({folds}); the classes have {members}. Give more of them, "
            f"leave these labels out, or take folds={max(2, min(members.values()))} or fewer"
        )


def cross_fitted(items: History, folds: int, strength: float, seed: int) -> Float[Tensor, "item class"]:
    """The probability of each class, for each item by a classifier that was fitted to the other folds alone.

    A standardized logistic regression (multinomial, L2). In sample it would be sure of every item as soon as states
    are wider than items are many. Items of one sample are kept in one fold, or one would give the other away.

    Raises:
        DataError: one class only, or one with fewer samples than folds.

    Source: arXiv 2503.02989 for the logistic regression; out of fold is own.
    """
    check_classes(items, folds)
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000))
    example_ids = [example_id for example_id, _ in items.names]
    repeated = len(set(example_ids)) < len(example_ids)
    splitter = StratifiedGroupKFold if repeated else StratifiedKFold
    found = cross_val_predict(
        classifier, items.states.double().numpy(), list(items.labels), groups=example_ids if repeated else None,
        method="predict_proba", cv=splitter(folds, shuffle=True, random_state=seed),
    )  # fmt: skip
    return torch.from_numpy(found)


def confident(own: Float[Tensor, " n"], threshold: float, least: int) -> Bool[Tensor, " n"]:
    """Which items of a class are above the threshold; the `least` surest ones where fewer are.

    Example:
        >>> confident(torch.tensor([0.9, 0.2, 0.6]), 0.5, 1)
        tensor([ True, False,  True])

    Source: arXiv 2503.02989 for the threshold; the fallback is own.
    """
    chosen = own > threshold
    if threshold <= 0:  # no filter: a probability may underflow to 0, and mean steering is the mean of all
        return torch.ones_like(chosen)
    if int(chosen.sum()) < min(least, len(own)):
        chosen[own.sort(descending=True, stable=True).indices[:least]] = True
    return chosen
