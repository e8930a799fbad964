"""What AdaSteer learns: where prompts lie between two classes, class means at any site, and laws they suggest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from steerlab._support.errors import DataError
from steerlab.capture.activations import Activations
from steerlab.methods.adasteer.schedules import Logistic, fit_schedule
from steerlab.methods.base import RequiredActivation, check_width
from steerlab.methods.classes import check_disjoint, select_class
from steerlab.methods.serialization import savable
from steerlab.models.sites import Site


@savable
@dataclass(frozen=True, eq=False)
class Coordinate:
    """How far a state lies from one class mean (0) towards another (100), along a direction.

    The length of the direction cancels, and whatever is orthogonal to it is not seen.

    Example:
        >>> p = Coordinate.between(complied.mean(0), rejected.mean(0))
        >>> p(states)                                                 # (batch,), 0 and 100 at the two means

    Attributes:
        start: `(hidden,)` float64, the mean that has the coordinate 0.
        direction: `(hidden,)` float64.
        span: the scalar product of the direction with the way from one mean to the other.

    Source: AdaSteer, arXiv 2504.09466 (positions of inputs), in the units of the released code.
    """

    start: Float[Tensor, " hidden"]
    direction: Float[Tensor, " hidden"]
    span: float

    @classmethod
    def between(
        cls,
        start: Float[Tensor, " hidden"],
        end: Float[Tensor, " hidden"],
        direction: Float[Tensor, " hidden"] | None = None,
    ) -> Coordinate:
        """The coordinate that is 0 at `start` and 100 at `end`, along the way between them or a given direction.

        Raises:
            DataError: the two are equal, or the direction does not lead from one to the other.
        """
        way = end.double() - start.double()
        along = way if direction is None else direction.double()
        span = float(way @ along)
        if not abs(span) > 1e-12 * float(start.double().norm() * along.norm()):
            raise DataError(
                "both class means have the same place along this direction, so nothing lies between them: read the "
                "classes at another layer or token, or check their labels"
            )
        return cls(start.double(), along, span)

    def __call__(self, states: Float[Tensor, "batch hidden"]) -> Float[Tensor, " batch"]:
        """The coordinate of each state, float32.

        Raises:
            MismatchError: states of another width.
        """
        check_width(states, len(self.start), "this coordinate")
        return (100 * (states.double() - self.start) @ self.direction / self.span).float()


class ClassStates:
    """Prompts by class, looked up by id and never by order.

    Args:
        acts: what was captured.
        read: where the classes are compared; its token is the one that is read at every site.
        labels: the labels of each class.
        column: the index column that holds them.

    Raises:
        DataError: a class of fewer than two inputs, or inputs in two classes.
        ActivationError: such rows were not captured.
    """

    def __init__(
        self, acts: Activations, read: RequiredActivation, labels: Mapping[str, Sequence[str]], column: str
    ) -> None:
        found = {name: select_class(acts, read, wanted, label=column) for name, wanted in labels.items()}
        names = list(found)
        for i, one in enumerate(names):
            for other in names[i + 1 :]:
                check_disjoint(one, *found[one], other, *found[other])
        self.prompts = acts.select(side=read.side, position=str(read.position))
        place = {example_id: row for row, example_id in enumerate(self.prompts.index["example_id"])}
        self.rows = {name: [place[example_id] for example_id in ids] for name, (ids, _) in found.items()}

    def states(self, name: str, site: Site) -> Float[Tensor, "row hidden"]:
        """The states of one class, float64, by sorted id."""
        return self.prompts.at(site)[self.rows[name]].double()

    def mean(self, name: str, site: Site) -> Float[Tensor, " hidden"]:
        """The mean of one class, float64."""
        return self.states(name, site).mean(0)

    def means(self, name: str, sites: Sequence[Site]) -> Float[Tensor, "layer hidden"]:
        """The means of one class at several sites."""
        return torch.stack([self.mean(name, site) for site in sites])

    def needs(self, axis: Coordinate, site: Site, *, yes: str, no: str) -> Logistic:
        """The law of a coordinate if all inputs of one class need strong steering and none of the other does.

        Source: own; the release of AdaSteer has no fit, and classes are what is known before any strength was tried.
        """
        p = [axis(self.states(name, site)) for name in (yes, no)]
        return fit_schedule(torch.cat(p), [True] * len(p[0]) + [False] * len(p[1]))


def shares(
    rejection: Float[Tensor, "layer hidden"], harmfulness: Float[Tensor, "layer hidden"], sites: Sequence[Site]
) -> Float[Tensor, " layer"]:
    """How much of rejection there is in harmfulness: `<harmfulness, rejection> / |rejection|^2` at each site.

    Raises:
        DataError: a rejection direction is zero.

    Source: the code released with AdaSteer, arXiv 2504.09466 (c).
    """
    squares = rejection.square().sum(-1)
    if not bool((squares > 0).all()):
        zero = [str(site) for site, square in zip(sites, squares.tolist(), strict=True) if not square > 0]
        raise DataError(
            f"rejected and complied prompts have the same mean at {zero}, so there is no direction from one to the "
            "other: leave these sites out, read another token, or check the labels"
        )
    return (harmfulness * rejection).sum(-1) / squares


def restoration(push: float, c: Float[Tensor, " layer"]) -> float:
    """The beta that takes a push of `push` rejections back, over all layers in the least-squares sense.

    One layer is brought back exactly; several with unequal c as well as one number can, each layer's own rejection
    being the unit.

    Raises:
        DataError: c is 0 everywhere.

    Source: own.
    """
    if not bool(c.any()):
        raise DataError(
            "harmfulness is orthogonal to rejection at every steered layer (c is 0), so no beta gives compliance back: "
            "give restore=0 or a law of compliance, or steer other layers"
        )
    return -push * float(c.double().sum() / c.double().square().sum())
