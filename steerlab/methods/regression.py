"""Ridge regression with the penalty chosen by leaving each row out."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from steerlab.errors import DataError

PENALTIES = tuple(10.0**k for k in range(-2, 6))
LEAST_DEVIATION = 1e-2  # of the mean deviation: a feature that hardly varies would turn noise into a large input


def deviations(x: Float[Tensor, "row feature"]) -> Float[Tensor, " feature"]:
    """The standard deviation of each feature, in float64, with a floor; 1 where all rows are the same."""
    found = x.double().std(0, correction=0)
    floor = LEAST_DEVIATION * float(found.mean())
    return found.clamp(min=floor) if floor else found + 1


class Standardizer(StandardScaler):
    """Standardizes by `deviations`, whose floor keeps a feature that hardly varies from growing large in use."""

    def fit(self, x: NDArray[np.float64], y: Any = None) -> Standardizer:
        """The mean and the deviation of each feature."""
        super().fit(x)
        self.scale_ = deviations(torch.from_numpy(x)).numpy()
        return self


def fit_ridge(
    x: Float[Tensor, "row feature"], y: Float[Tensor, "row output"]
) -> tuple[Float[Tensor, "feature output"], Float[Tensor, " output"]]:
    """Weights and intercept of a ridge regression of `y` on the standardized `x`, in the units of `x`.

    Example:
        >>> weights, intercept = fit_ridge(states, slopes)
        >>> states @ weights + intercept                              # (row, output)

    Args:
        x: `(row, feature)`; computed in float64.
        y: `(row, output)`; all outputs share one penalty, the one of `PENALTIES` with the least error on rows left out.

    Raises:
        DataError: fewer than two rows.
    """
    if len(x) < 2:  # one row would give its own target for every input
        raise DataError(f"a ridge regression needs at least 2 examples, not {len(x)}")
    regression = make_pipeline(Standardizer(), RidgeCV(PENALTIES)).fit(x.double().numpy(), y.double().numpy())
    scaler, ridge = regression[0], regression[-1]
    weights = np.atleast_2d(ridge.coef_) / scaler.scale_
    intercept = np.atleast_1d(ridge.intercept_) - weights @ scaler.mean_
    return torch.from_numpy(weights.T).float(), torch.from_numpy(intercept).float()
