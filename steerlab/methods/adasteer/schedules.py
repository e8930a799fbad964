"""How strongly an input is steered, as a law of one number that says where it lies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from steerlab._support.errors import DataError
from steerlab.methods.probe import fit_logistic as fit_probe
from steerlab.methods.serialization import savable


@savable
@dataclass(frozen=True)
class Ramp:
    """A straight line with bounds: `slope * p + intercept`, cut to `[low, high]`; monotone in p.

    Example:
        >>> Ramp(-0.01, 1.0, low=0.0, high=1.0)(torch.tensor([0.0, 50.0, 200.0]))
        tensor([1.0000, 0.5000, 0.0000])

    Attributes:
        slope, intercept: the line.
        low, high: the bounds; None: none on that side.

    Raises:
        DataError: a number that is not finite, or `low` above `high`.

    Source: the code released with AdaSteer, arXiv 2504.09466.
    """

    slope: float
    intercept: float
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        _check_bounds(self.slope, self.intercept, self.low, self.high)

    def __call__(self, p: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """The coefficient of each input."""
        return _cut(self.slope * p + self.intercept, self.low, self.high)

    def negated(self) -> Ramp:
        """The same law with the opposite sign: `-ramp(p)`."""
        low, high = (None if bound is None else -bound for bound in (self.high, self.low))
        return Ramp(-self.slope, -self.intercept, low, high)


@savable
@dataclass(frozen=True)
class Logistic:
    """A smooth step: `low + (high - low) * sigmoid(slope * p + intercept)`; monotone in p, between low and high.

    Example:
        >>> Logistic(-0.1, 5.0, low=0.0, high=1.0)(torch.tensor([0.0, 50.0]))
        tensor([0.9933, 0.5000])

    Attributes:
        slope, intercept: of the log-odds, in raw units of p.
        low, high: where it starts and ends.

    Raises:
        DataError: a number that is not finite, or `low` above `high`.

    Source: AdaSteer, arXiv 2504.09466 (coefficients by logistic regression).
    """

    slope: float
    intercept: float
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        _check_bounds(self.slope, self.intercept, self.low, self.high)

    def __call__(self, p: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """The coefficient of each input."""
        share = torch.sigmoid(self.slope * p + self.intercept)
        return _cut(self.low + (self.high - self.low) * share, self.low, self.high)  # sums round past their bounds

    def negated(self) -> Logistic:
        """The same law with the opposite sign."""
        return Logistic(-self.slope, -self.intercept, -self.high, -self.low)

    def with_range(self, weak: float, strong: float) -> Logistic:
        """The same step with other ends: `weak` where it was low, `strong` where it was high, in either order."""
        if weak <= strong:
            return Logistic(self.slope, self.intercept, weak, strong)
        return Logistic(-self.slope, -self.intercept, strong, weak)

    def ramp(self) -> Ramp:
        """The tangent at the middle of the step, cut at its ends: the family that was released.

        Source: own; a tangent at sigmoid = 1/2 gives the released form.
        """
        height = self.high - self.low
        return Ramp(height * self.slope / 4, self.low + height * (0.5 + self.intercept / 4), self.low, self.high)


CoefficientSchedule = Ramp | Logistic


def fit_schedule(
    p: Float[Tensor, " n"], needs: Sequence[bool | int] | Tensor, low: float = 0.0, high: float = 1.0
) -> Logistic:
    """Logistic regression of "this input needs strong steering" on its coordinate.

    The coordinate is standardized and scikit-learn's default penalty applies, so the step stays finite where the labels
    are separable; what is returned counts in raw units.

    Example:
        >>> law = fit_schedule(p, needs=[True, True, False, False])
        >>> law.with_range(0.0, 1.5), law.ramp()

    Args:
        p: one coordinate per input.
        needs: whether that input needs strong steering (1) or not (0); at least two of each.
        low, high: the coefficient where no input needs it, and where every one does.

    Raises:
        DataError: other lengths, labels besides 0 and 1, fewer than two inputs of a class, coordinates that are NaN,
            infinite or all the same, or `low` above `high`.

    Source: AdaSteer, arXiv 2504.09466; its release holds the outcome alone, so the fit is own.
    """
    labels = torch.as_tensor(needs).double()
    if labels.shape != p.shape:
        raise DataError(f"{len(p)} coordinates but labels of shape {tuple(labels.shape)}: give one label each")
    if not bool(torch.isfinite(p).all()):
        raise DataError(f"{int((~torch.isfinite(p)).sum())} of {len(p)} coordinates are NaN or infinite")
    if not bool(((labels == 0) | (labels == 1)).all()):
        raise DataError(f"labels are 0 and 1, or False and True; given are {labels.unique()[:5].tolist()}")
    strong = labels == 1
    counts = int(strong.sum()), int((~strong).sum())
    if min(counts) < 2:
        raise DataError(
            f"{counts[0]} inputs need strong steering and {counts[1]} do not; at least two of each are needed to learn "
            "what tells them apart"
        )
    if float(p.min()) == float(p.max()):
        raise DataError(f"all {len(p)} inputs have the coordinate {float(p[0])}, so it can't tell who needs steering")
    w, b = fit_probe(p.double().numpy()[:, None], strong.long().numpy())
    return Logistic(float(w[0]), b, low, high)


def _check_bounds(slope: float, intercept: float, low: float | None, high: float | None) -> None:
    given = {"slope": slope, "intercept": intercept, "low": low, "high": high}
    wrong = [name for name, value in given.items() if value is not None and not math.isfinite(value)]
    if wrong:
        raise DataError(f"{wrong} of {given} are not finite; leave out a bound (None) where there is none")
    if low is not None and high is not None and low > high:
        raise DataError(f"low={low} is above high={high}: swap them, and turn the slope's sign if the law shall fall")


def _cut(values: Float[Tensor, " batch"], low: float | None, high: float | None) -> Float[Tensor, " batch"]:
    return values if low is None and high is None else values.clamp(low, high)
