"""Coefficient schedules: the strength of steering as a function of one coordinate of the input."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from steerlab.errors import DataError
from steerlab.methods.probe import fit_logistic
from steerlab.methods.serialization import savable


@savable
@dataclass(frozen=True)
class Ramp:
    """A clipped linear schedule: `slope * p + intercept`, clipped to `[low, high]`.

    Example:
        >>> Ramp(-0.01, 1.0, low=0.0, high=1.0)(torch.tensor([0.0, 50.0, 200.0]))
        tensor([1.0000, 0.5000, 0.0000])

    Attributes:
        slope, intercept: of the line.
        low, high: the bounds; None: unbounded on that side.

    Raises:
        DataError: a number that is not finite, or `low` above `high`.

    Source: the code released with AdaSteer, arXiv 2504.09466.
    """

    slope: float
    intercept: float
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        _check_finite(self)

    def __call__(self, p: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """The coefficient of each input."""
        return _clip(self.slope * p + self.intercept, self.low, self.high)

    def __neg__(self) -> Ramp:
        low, high = (None if bound is None else -bound for bound in (self.high, self.low))
        return Ramp(-self.slope, -self.intercept, low, high)


@savable
@dataclass(frozen=True)
class Logistic:
    """A logistic schedule: `low + (high - low) * sigmoid(slope * p + intercept)`.

    Example:
        >>> Logistic(-0.1, 5.0, low=0.0, high=1.0)(torch.tensor([0.0, 50.0]))
        tensor([0.9933, 0.5000])

    Attributes:
        slope, intercept: of the log-odds, in units of p.
        low, high: the two limits.

    Raises:
        DataError: a number that is not finite, or `low` above `high`.

    Source: AdaSteer, arXiv 2504.09466 (coefficients by logistic regression).
    """

    slope: float
    intercept: float
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        _check_finite(self)

    def __call__(self, p: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """The coefficient of each input."""
        share = torch.sigmoid(self.slope * p + self.intercept)
        return _clip(self.low + (self.high - self.low) * share, self.low, self.high)  # rounding may exceed the limits

    def with_range(self, weak: float, strong: float) -> Logistic:
        """The same schedule with other limits, `weak` instead of low and `strong` instead of high, in either order."""
        if weak <= strong:
            return replace(self, low=weak, high=strong)
        return Logistic(-self.slope, -self.intercept, strong, weak)

    def ramp(self) -> Ramp:
        """The tangent at the midpoint, clipped to the same limits: the form of the released schedules."""
        height = self.high - self.low
        return Ramp(height * self.slope / 4, self.low + height * (0.5 + self.intercept / 4), self.low, self.high)


CoefficientSchedule = Ramp | Logistic


def fit_schedule(
    p: Float[Tensor, " n"], needs: Sequence[bool | int] | Tensor, low: float = 0.0, high: float = 1.0
) -> Logistic:
    """Logistic regression of "this input needs strong steering" on its coordinate.

    The coordinate is standardized and scikit-learn's default penalty applies, so the slope stays finite where the
    labels are separable; the result is in units of p.

    Example:
        >>> schedule = fit_schedule(p, needs=[True, True, False, False])
        >>> schedule.with_range(0.0, 1.5), schedule.ramp()

    Args:
        p: one coordinate per input.
        needs: whether that input needs strong steering (1) or not (0); at least two of each.
        low, high: the coefficient of inputs that do not need it, and of those that do.

    Raises:
        DataError: other lengths, labels besides 0 and 1, fewer than two inputs of a class, coordinates that are NaN,
            infinite or all the same, or `low` above `high`.

    Source: AdaSteer, arXiv 2504.09466; the release has only fitted schedules.
    """
    labels = torch.as_tensor(needs).double()
    if labels.shape != p.shape:
        raise DataError(f"{len(p)} coordinates but labels of shape {tuple(labels.shape)}: give one label each")
    if not bool(torch.isfinite(p).all()):
        raise DataError(f"{int((~torch.isfinite(p)).sum())} of {len(p)} coordinates are NaN or infinite")
    if not bool(((labels == 0) | (labels == 1)).all()):
        raise DataError(f"labels are 0 and 1, or False and True; given are {labels.unique()[:5].tolist()}")
    n_strong = int(labels.sum())
    if not 2 <= n_strong <= len(p) - 2:
        counts = f"{n_strong} inputs need strong steering and {len(p) - n_strong} do not"
        raise DataError(f"{counts}; at least two of each are needed")
    if float(p.min()) == float(p.max()):
        raise DataError(
            f"all {len(p)} inputs have the coordinate {float(p[0])}: it does not predict who needs steering"
        )
    weights, intercept = fit_logistic(p.double().numpy()[:, None], labels.long().numpy())
    return Logistic(float(weights[0]), intercept, low, high)


def _check_finite(schedule: CoefficientSchedule) -> None:
    given = vars(schedule)
    if wrong := [name for name, value in given.items() if value is not None and not math.isfinite(value)]:
        raise DataError(f"{wrong} of {given} are not finite; use None for a missing bound")
    low, high = schedule.low, schedule.high
    if low is not None and high is not None and low > high:
        raise DataError(f"low={low} is above high={high}: swap them, and negate the slope for a falling schedule")


def _clip(values: Float[Tensor, " batch"], low: float | None, high: float | None) -> Float[Tensor, " batch"]:
    return values if low is None and high is None else values.clamp(low, high)
