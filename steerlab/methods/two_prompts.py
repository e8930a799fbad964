"""What detectors that compare two prompts about one input share: their layers, their classes, and the linear probe."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from steerlab._support.errors import DataError
from steerlab.capture.activations import Activations
from steerlab.methods.base import Read
from steerlab.methods.classes import class_rows
from steerlab.models.sites import Site

log = logging.getLogger(__name__)
Layers = int | Site | Sequence[int | Site]


def as_sites(layers: Layers) -> tuple[Site, ...]:
    """Layers as Sites, in the order given.

    Raises:
        DataError: none, or one twice.
    """
    sites = tuple(
        x if isinstance(x, Site) else Site(x) for x in ([layers] if isinstance(layers, int | Site) else layers)
    )
    if not sites or len(set(sites)) < len(sites):
        raise DataError(f"layers={layers}: give at least one layer, each once")
    return sites


def two_classes(
    acts: Activations, read: Read, positive: Sequence[str], negative: Sequence[str] | None, label: str
) -> tuple[list[str], list[str]]:
    """The ids of the inputs to detect and of the others, both sorted.

    Raises:
        DataError: fewer than two inputs in a class, or an input in both.
    """
    yes, _ = class_rows(acts, read, positive, label=label)
    no, _ = class_rows(acts, read, negative, label=label)
    if negative is None:
        no = sorted(set(no) - set(yes))
    elif shared := sorted(set(yes) & set(no)):
        raise DataError(
            f"{len(shared)} inputs are both in positive={positive} and in negative={negative}: {shared[:3]}"
        )
    if len(no) < 2:
        raise DataError(
            f"{len(no)} inputs have another {label} than {list(positive)}: at least 2 clean ones are needed"
        )
    return yes, no


def fit_logistic(
    x: NDArray[np.float64], truth: NDArray[np.int64], C: float, standardise: bool, max_iter: int
) -> tuple[NDArray[np.float64], float]:
    """Weights and intercept in the units of `x`, whichever units they were penalised in."""
    mean, scale = (x.mean(0), x.std(0)) if standardise else (np.zeros(x.shape[1]), np.ones(x.shape[1]))
    scale[scale == 0] = 1.0
    probe = LogisticRegression(C=C, max_iter=max_iter)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe.fit((x - mean) / scale, truth)
    if int(probe.n_iter_[0]) >= max_iter:
        log.warning("a probe did not converge in %d iterations: raise max_iter, or standardise", max_iter)
    weights = probe.coef_[0] / scale
    return weights, float(probe.intercept_[0] - weights @ mean)
