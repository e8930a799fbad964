"""Coordinates between class means, and the states of AdaSteer's three classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from jaxtyping import Float
from torch import Tensor

from steerlab.capturing.activations import Activations
from steerlab.errors import DataError
from steerlab.methods.adasteer.schedules import Logistic, fit_schedule
from steerlab.methods.base import RequiredActivation, check_width
from steerlab.methods.classes import check_disjoint, select_class
from steerlab.methods.serialization import savable
from steerlab.models.sites import Site


@savable
@dataclass(frozen=True, eq=False)
class Coordinate:
    """The position of a state along the line from one class mean (0) to another (100).

    The length of the direction cancels, and components orthogonal to it have no effect.

    Example:
        >>> p = Coordinate(complied.mean(0), rejected.mean(0) - complied.mean(0))
        >>> p(states)                                                 # (batch,), 0 and 100 at the two means

    Attributes:
        start: `(hidden,)` float64, the mean with the coordinate 0.
        direction: `(hidden,)` float64, from there to the mean with the coordinate 100.

    Raises:
        DataError: the two means are equal.

    Source: AdaSteer, arXiv 2504.09466 (positions of inputs), in the units of the released code.
    """

    start: Float[Tensor, " hidden"]
    direction: Float[Tensor, " hidden"]

    def __post_init__(self) -> None:
        norm = float(self.direction.norm())
        if not norm**2 > 1e-12 * float(self.start.norm()) * norm:
            raise DataError("two class means are equal: read them at another layer or token, or check the labels")

    def __call__(self, states: Float[Tensor, "batch hidden"]) -> Float[Tensor, " batch"]:
        """The coordinate of each state, float32.

        Raises:
            MismatchError: states of another width.
        """
        check_width(states, len(self.start), "this coordinate")
        along = (states.double() - self.start) @ self.direction
        return (100 * along / self.direction.square().sum()).float()


class ClassStates:
    """The prompt states of several classes, looked up by id.

    Args:
        acts: captured activations.
        required: where the classes are compared; its position is read at every site.
        labels: the labels of each class.
        column: the index column that holds them.

    Raises:
        DataError: a class of fewer than two inputs, or inputs in two classes.
        ActivationError: such rows were not captured.
    """

    def __init__(
        self, acts: Activations, required: RequiredActivation, labels: Mapping[str, Sequence[str]], column: str
    ) -> None:
        found = {name: select_class(acts, required, label, label=column) for name, label in labels.items()}
        for one, other in combinations(found, 2):
            check_disjoint(one, *found[one], other, *found[other])
        self.prompts = acts.select(side=required.side, position=str(required.position))
        row = {example_id: i for i, example_id in enumerate(self.prompts.index["example_id"])}
        self.rows = {name: [row[example_id] for example_id in ids] for name, (ids, _) in found.items()}

    def states(self, name: str, site: Site) -> Float[Tensor, "row hidden"]:
        """The states of one class, float64, by sorted id."""
        return self.prompts.at(site)[self.rows[name]].double()

    def mean(self, name: str, site: Site) -> Float[Tensor, " hidden"]:
        """The mean of one class, float64."""
        return self.states(name, site).mean(0)

    def fit_schedule(self, coordinate: Coordinate, site: Site, strong: str, weak: str) -> Logistic:
        """The schedule of a coordinate if all inputs of one class need strong steering and none of the other does."""
        p = [coordinate(self.states(name, site)) for name in (strong, weak)]
        return fit_schedule(torch.cat(p), [True] * len(p[0]) + [False] * len(p[1]))
