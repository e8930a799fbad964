"""Classes and contrasts of captured activations, with the checks that every fit needs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from steerlab._support.checks import as_whole, check_type
from steerlab.capturing.activations import Activations
from steerlab.errors import ActivationError, DataError
from steerlab.methods.base import RequiredActivation, rounding_share
from steerlab.models.sites import Site

ClassRows = tuple[list[str], Float[Tensor, "_ hidden"]]  # the two classes of a pair differ in size


def as_names(value: Sequence[str] | None) -> tuple[str, ...]:
    """One or several names as a tuple; a lone string is one name."""
    return () if value is None else (value,) if isinstance(value, str) else tuple(value)


def check_acts(acts: object, site: Site) -> None:
    """Refuse to fit to what are no activations, or at a layer that is no whole number."""
    check_type("the activations", acts, Activations, "Activations from steerlab.capture", ActivationError)
    as_whole("layer", site.layer, None, error=ActivationError)


def contrast_table(
    acts: Activations, site: Site, position: str | None = None, zero_behaviors: Sequence[str] | None = ()
) -> tuple[list[str], Float[Tensor, "example hidden"]]:
    """The contrast vectors of all examples, by sorted id, so that the order of rows can't change a fit.

    Examples of a behavior in `zero_behaviors` get the zero vector, with or without a contrast. Other examples without
    a contrast are left out.

    Returns:
        The ids and `(example, hidden)` float32, in units of the residual stream.

    Raises:
        DataError: a behavior in `zero_behaviors` that no example has, or one side of a contrast is missing.
        ActivationError: there is no contrast at all.
    """
    check_acts(acts, site)
    zeroed = as_names(zero_behaviors)
    ids = list(dict.fromkeys(acts.index["example_id"]))
    behaviors = dict(zip(ids, acts.labels(ids), strict=True))
    known = sorted(set(map(str, behaviors.values())))
    if unknown := [name for name in zeroed if name not in known]:
        raise DataError(
            f"zero_behaviors names {unknown}, but the behaviors are {known}. Correct it, or capture with a context: "
            "context=None leaves out rows without a contrast"
        )
    table = {example_id: torch.zeros(acts.hidden_size) for example_id, name in behaviors.items() if name in zeroed}
    if not table or acts.index["side"].isin(["positive", "negative"]).any():
        ids, contrasts = acts.contrast(site, position)
        table = dict(zip(ids, contrasts.to(torch.float32), strict=True)) | table
    order = sorted(table)
    return order, torch.stack([table[example_id] for example_id in order])


def check_contrasts_nonzero(contrasts: Float[Tensor, "example hidden"], site: Site, acts: Activations) -> None:
    """Refuse contrasts that are all zero, or no more than what rounding leaves of the states they are taken from.

    Raises:
        DataError: both sides are the same in every contrast.
    """
    least = rounding_share(acts) * acts.at(site).float().norm(dim=1).median()
    if len(contrasts) and bool(contrasts.norm(dim=1).max() <= least):
        raise DataError(
            f"up to rounding, both sides have the same state in all {len(contrasts)} contrasts at site {site}. Most "
            "likely they were captured before the two answers differ (in the prompt, or in words that both answers "
            "begin with): capture them at positions='answer', or at a later token"
        )


def check_answers_differ(acts: Activations, site: Site) -> None:
    """Refuse wanted and unwanted answers that have the same states; nothing is said of answers without a counterpart.

    Raises:
        DataError: both sides are the same in every contrast.
    """
    index, keys = acts.index.reset_index(drop=True).reset_index(names="row"), ["example_id", "position"]
    index["token"] = index.groupby([*keys, "side"]).cumcount()
    both = index[index["side"] == "positive"].merge(index[index["side"] == "negative"], on=[*keys, "token"])
    states = acts.at(site).float()
    check_contrasts_nonzero(states[both["row_x"].tolist()] - states[both["row_y"].tolist()], site, acts)


def numeric_rank(x: Tensor) -> int:
    """The rank of float32 states or differences, without the directions that rounding alone has made."""
    # above what rounding leaves of states a hundred times as long as x; torch's own limit grows with the rows, and
    # leaves real concepts out, NumPy's takes rounding for directions
    return int(torch.linalg.matrix_rank(x.double(), rtol=1e-5)) if len(x) else 0


def median(values: Tensor) -> Tensor:
    """The median over rows without NaN; torch's own is the lower one of two middle values."""
    return (values.nanmedian(0).values - (-values).nanmedian(0).values) / 2


def select_class(
    acts: Activations, required: RequiredActivation, labels: Sequence[str] | None, *, label: str = "behavior"
) -> ClassRows:
    """The states of the inputs with one of some labels, by sorted id, so that the order of rows can't change a fit.

    Example:
        >>> ids, benign = select_class(acts, RequiredActivation(Site(16)), ("answer",))

    Args:
        acts: captured activations.
        required: which state of each input.
        labels: labels of the class; None: every input that has a label.
        label: the index column of the labels.

    Returns:
        The ids and `(row, hidden)` float32.

    Raises:
        DataError: fewer than two inputs, or a label that no input has. ActivationError: no such rows, site or column.
    """
    check_acts(acts, required.site)
    ids, states = acts.by_example(required.site, side=required.side, position=str(required.position))
    found, allowed = acts.labels(ids, label), as_names(labels)
    check_labels(label, allowed, found)
    members = sorted(
        (example_id, row)
        for row, (example_id, value) in enumerate(zip(ids, found, strict=True))
        if value in allowed or (labels is None and value != "")
    )
    if len(members) < 2:
        described = "any label" if labels is None else f"{label} in {list(allowed)}"
        counts = {value: found.count(value) for value in sorted(set(found), key=str)}
        raise DataError(f"{len(members)} inputs have {described}, at least 2 are needed; there are {counts}")
    return [example_id for example_id, _ in members], states[[row for _, row in members]].float()


def check_labels(label: str, wanted: Sequence[object], found: Sequence[object]) -> None:
    """Refuse labels that no input has: a misspelled one would leave its inputs out.

    Raises:
        DataError: names them, and the labels that there are.
    """
    if unknown := [one for one in wanted if one not in found]:
        known = sorted(set(found), key=str)
        raise DataError(f"no input has {label} {', '.join(map(repr, unknown))}; there are {known}")


def select_two_classes(
    acts: Activations, required: RequiredActivation, positive: Sequence[str], negative: Sequence[str] | None, label: str
) -> tuple[ClassRows, ClassRows]:
    """Ids and states of the inputs labeled `positive` and of those labeled `negative` (None: of all other inputs).

    Example:
        >>> (ids, harmful), (others, rest) = select_two_classes(
        ...     acts, RequiredActivation(Site(16)), ["refuse"], None, "behavior"
        ... )

    Raises:
        DataError: fewer than two inputs in a class, or an input in both.
    """
    yes, no = (select_class(acts, required, labels, label=label) for labels in (positive, negative))
    if negative is not None:
        _check_ids("positive", yes[0], "negative", no[0])
        return yes, no
    positive_ids = set(yes[0])
    keep = [i for i, example_id in enumerate(no[0]) if example_id not in positive_ids]
    if len(keep) < 2:
        raise DataError(f"{len(keep)} inputs have another {label} than {list(positive)}, at least 2 are needed")
    return yes, ([no[0][i] for i in keep], no[1][keep])


def check_disjoint(
    one: str, ids: Sequence[str], states: Float[Tensor, "n hidden"],
    other: str, other_ids: Sequence[str], other_states: Float[Tensor, "m hidden"],
) -> None:  # fmt: skip
    """Refuse two classes that share inputs: by id, or by states that are equal bit for bit.

    Example:
        >>> check_disjoint("benign", ids, states, "harmful", other_ids, other_states)

    Args:
        one, other: names of the classes, for messages.
        ids, other_ids: of the inputs.
        states, other_states: one row per input.

    Raises:
        DataError: an input is in both; says how many and which.
    """
    _check_ids(one, ids, other, other_ids)
    known = {row.numpy().tobytes(): example_id for example_id, row in zip(ids, states.contiguous(), strict=True)}
    same = [
        (known[key], example_id)
        for example_id, row in zip(other_ids, other_states.contiguous(), strict=True)
        if (key := row.numpy().tobytes()) in known
    ]
    if same:
        raise DataError(
            f"{len(same)} {other} inputs have the same state as a {one} one, first {same[0][1]!r} and {same[0][0]!r}. "
            "Remove duplicate prompts; or, if the token does not depend on the prompt, choose another token or layer."
        )


def _check_ids(one: str, ids: Sequence[str], other: str, other_ids: Sequence[str]) -> None:
    if shared := sorted(set(ids) & set(other_ids)):
        raise DataError(f"{len(shared)} inputs are both {one} and {other}, first {shared[:3]}: label each input once")


def check_not_constant(states: Float[Tensor, "n hidden"], name: str) -> None:
    """Refuse a class whose states are all the same.

    Raises:
        DataError: every row is equal to the first.
    """
    if len(states) > 1 and bool(torch.equal(states, states[:1].expand_as(states))):
        raise DataError(f"all {len(states)} {name} inputs have the same state: are they the same prompt?")
