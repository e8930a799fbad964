"""Rows of two or more classes, for methods that are fitted to what different inputs leave behind."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from steerlab._support.errors import ActivationError, DataError
from steerlab.capture.activations import Activations
from steerlab.methods.base import RequiredActivation
from steerlab.methods.p2s import names


def select_class(
    acts: Activations,
    read: RequiredActivation,
    wanted: Sequence[str] | None,
    *,
    label: str = "behavior",
    least: int = 2,
) -> tuple[list[str], Float[Tensor, "row hidden"]]:
    """The states of the inputs with one of some labels, by sorted id, so that the order of rows can't change a fit.

    Example:
        >>> ids, benign = select_class(acts, RequiredActivation(Site(16)), ("answer",))

    Args:
        acts: what was captured; rows of `read.capture` at `read.position` are taken.
        read: where the inputs are compared.
        wanted: labels of the class; None: every input that has one.
        label: the column of the index that holds the labels.
        least: how many inputs the class must have.

    Returns:
        The ids and `(row, hidden)` float32.

    Raises:
        DataError: fewer than `least` inputs. ActivationError: no such rows, site or column.

    Source: own.
    """
    if label not in acts.index:
        raise ActivationError(f"no label {label!r}; the labels are {list(acts.index.columns)}")
    ids, values = acts.by_example(read.site, side=read.capture, position=str(read.position))
    labels = acts.labels(ids, label)
    chosen = sorted(
        (name, i)
        for i, (name, value) in enumerate(zip(ids, labels, strict=True))
        if value in names(wanted) or (wanted is None and value)
    )
    if len(chosen) < least:
        told = "any label" if wanted is None else f"{label} in {list(names(wanted))}"
        have = {value: labels.count(value) for value in sorted(set(labels))}
        raise DataError(f"{len(chosen)} inputs have {told}, at least {least} are needed; there are {have}")
    return [name for name, _ in chosen], values[[i for _, i in chosen]].float()


Rows = tuple[list[str], Float[Tensor, "_ hidden"]]  # two classes need not be of one size


def select_two_classes(
    acts: Activations, read: RequiredActivation, positive: Sequence[str], negative: Sequence[str] | None, label: str
) -> tuple[Rows, Rows]:
    """Ids and states of two classes; without `negative`, of the inputs with a label of `positive` and of all others.

    Example:
        >>> need = RequiredActivation(Site(16))
        >>> (ids, harmful), (others, rest) = select_two_classes(acts, need, ["refuse"], None, "behavior")

    Raises:
        DataError: fewer than two inputs in a class, or an input in both.

    Source: own.
    """
    yes, no = select_class(acts, read, positive, label=label), select_class(acts, read, negative, label=label)
    if negative is not None:
        _check_ids("positive", yes[0], "negative", no[0])
        return yes, no
    mine = set(yes[0])
    keep = [i for i, name in enumerate(no[0]) if name not in mine]
    if len(keep) < 2:
        raise DataError(
            f"{len(keep)} inputs have another {label} than {list(positive)}, at least 2 are needed to tell them from"
        )
    return yes, ([no[0][i] for i in keep], no[1][keep])


def check_disjoint(
    one: str, ids: Sequence[str], states: Float[Tensor, "n hidden"],
    other: str, other_ids: Sequence[str], other_states: Float[Tensor, "m hidden"],
) -> None:  # fmt: skip
    """Refuse two classes that share inputs: by id, or by states that are equal to the last bit.

    Example:
        >>> check_disjoint("benign", ids, states, "harmful", other_ids, other_states)

    Args:
        one, other: what the classes are called in messages.
        ids, other_ids: of the inputs.
        states, other_states: theirs, row by row.

    Raises:
        DataError: an input is in both; says how many and which.

    Source: own.
    """
    _check_ids(one, ids, other, other_ids)
    known = {row.numpy().tobytes(): name for name, row in zip(ids, states.contiguous(), strict=True)}
    same = [
        (known[key], name)
        for name, row in zip(other_ids, other_states.contiguous(), strict=True)
        if (key := row.numpy().tobytes()) in known
    ]
    if same:
        raise DataError(
            f"{len(same)} {other} inputs have the very state of a {one} one, first {same[0][1]!r} that of "
            f"{same[0][0]!r}: the two sets overlap (the same prompt under two ids?), or the states are read at a token "
            "that does not depend on the prompt. Remove the doubles, or read elsewhere."
        )


def _check_ids(one: str, ids: Sequence[str], other: str, other_ids: Sequence[str]) -> None:
    shared = sorted(set(ids) & set(other_ids))
    if shared:
        raise DataError(
            f"{len(shared)} inputs are both {one} and {other}, first {shared[:3]}: nothing can be learned from them. "
            "Label each input once."
        )


def check_not_constant(states: Float[Tensor, "n hidden"], name: str) -> None:
    """Refuse a class whose states are all the same: it has no more to tell than one input.

    Raises:
        DataError: every row is equal to the first.
    """
    if len(states) > 1 and bool(torch.equal(states, states[:1].expand_as(states))):
        raise DataError(f"all {len(states)} {name} inputs have the same state: are they the same prompt?")
