"""W2S: which layer is steered, predicted from the input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from steerlab.capturing.activations import Activations
from steerlab.data.inputs import Data
from steerlab.errors import DataError, SteeringError, require_columns
from steerlab.methods.base import (
    Context,
    Intervention,
    RequiredActivation,
    Steerer,
    check_fitted,
    check_origin,
    check_width,
    steering_sites,
)
from steerlab.methods.regression import fit_ridge
from steerlab.methods.serialization import savable
from steerlab.models.fingerprint import check_same_model
from steerlab.models.model import Model
from steerlab.models.positions import Positions
from steerlab.models.sites import Site


@savable
class W2S(Steerer):
    """Steer each input at the layer where a vector is predicted to move its answer the most.

    For training inputs, a sweep measures how the answer changes with the strength at each layer: the slope. A ridge
    regression predicts these slopes from the state of the plain prompt, and the layer with the largest one is steered.
    The paper predicts the best layer itself; slopes also say what a wrong layer costs.

    Example:
        >>> means = {k: MeanDifference(k).fit(acts) for k in (8, 12, 16)}
        >>> frame = steerlab.sweep(model, train, {"mean": means}, [8, 12, 16], MULTIPLIERS)
        >>> w2s = W2S(list(means.values()), 12).fit(model, train, slopes=slopes(frame))
        >>> texts = steerlab.generate(model, prompts, steer=w2s)

    Args:
        steerers: fitted steerers with one site each, or one with several sites.
        read: the layer or `Site` whose state the regression reads.
        position: token of the plain prompt that is read.

    Attributes:
        weights_, intercept_: `(hidden, site)` and `(site,)`: the slope at each site is `h @ weights_ + intercept_`.

    Raises:
        SteeringError: fewer than two sites, two steerers with the same one, or with other default positions.

    Source: where to steer, arXiv 2604.03867.
    """

    def __init__(
        self, steerers: Steerer | Sequence[Steerer], read: int | Site, *, position: str | int = "last"
    ) -> None:
        self.steerers = steerers if isinstance(steerers, Steerer) else tuple(steerers)
        self.read, self.position = read, position
        self._parts = (self.steerers,) if isinstance(self.steerers, Steerer) else self.steerers
        sites = [site for part in self._parts for site in steering_sites(part)]
        several = [part.name for part in self._parts if len(steering_sites(part)) != 1]
        if len(set(sites)) < max(len(sites), 2) or (several and len(self._parts) > 1):
            raise SteeringError(
                f"W2S chooses between sites, and was given {[str(site) for site in sites]}: give steerers with one "
                "site each, every site once, or one steerer with several sites"
            )
        if len({part.default_positions for part in self._parts}) > 1 or min(site.layer for site in sites) < 0:
            raise SteeringError(
                "W2S chooses between sites alone: give steerers with the same default positions, their layers counted "
                "from 0"
            )
        self.sites = tuple(sites)
        self.oracle = any(part.oracle for part in self._parts)
        self.gates_by_length = any(part.gates_by_length for part in self._parts)

    @property
    def default_positions(self) -> Positions:  # type: ignore[override]
        """The default positions of the steerers."""
        return self._parts[0].default_positions

    @property
    def required_activations(self) -> tuple[RequiredActivation, ...]:
        """The state that the regression reads, and what the steerers require."""
        own = RequiredActivation(Site.of(self.read), self.position)
        return tuple(dict.fromkeys([own, *(one for part in self._parts for one in part.required_activations)]))

    def fit(
        self, model: Model | Activations, data: Data | None = None, slopes: pd.DataFrame | None = None, **options: Any
    ) -> W2S:
        """Fit the regression; the steerers stay as they are.

        Args:
            model, data, options: as in `Steerer.fit`.
            slopes: from `steerlab.analysis.steerability.slopes`: `example_id, layer, slope` of the same inputs, at
                every site.

        Raises:
            DataError: no slopes, or not one for each input and site.
            MismatchError: a steerer of another model.
        """
        if slopes is None:
            raise DataError("W2S is fitted to slopes=, those of a sweep of its steerers: see its example")
        require_columns(slopes, ["example_id", "layer", "slope"], "W2S.fit", ["slope"])
        if slopes.duplicated(["example_id", "layer"]).any():
            raise DataError("slopes= has an input and layer several times: select one method, metric and positions")
        self._slopes = slopes.pivot(index="example_id", columns="layer", values="slope")
        try:
            return super().fit(model, data, **options)
        finally:
            del self._slopes

    def fit_activations(self, acts: Activations) -> None:
        """Fit to the plain prompts' states; `fit` has the slopes."""
        labels = [site.label for site in self.sites]
        if missing := [label for label in labels if label not in self._slopes]:
            raise DataError(f"slopes= has the layers {list(self._slopes)}, not {missing}, where this W2S steers")
        ids = list(self._slopes.index)
        if unknown := sorted(set(acts.select(side="prompt").index["example_id"]) - set(ids)):
            raise DataError(f"slopes= has none of {len(unknown)} inputs, such as {unknown[0]!r}: give those of all")
        states = Context(tuple(ids), acts).get_states(self.required_activations[0])
        wanted = self._slopes[labels].to_numpy(float)
        if np.isnan(wanted).any() or len(ids) < 3:
            raise DataError(f"slopes= needs a slope for every site of at least 3 inputs; it has {len(ids)} inputs")
        for part in self._parts:
            check_same_model(part.name, getattr(part, "info_", {}), acts.info)
        self.weights_, self.intercept_ = fit_ridge(states, torch.tensor(wanted))

    def predict_slopes(self, context: Context) -> Float[Tensor, "batch site"]:
        """The predicted slope of each input at each site."""
        check_fitted(self, "weights_")
        check_origin(self, context)
        states = context.get_states(self.required_activations[0])
        return check_width(states, len(self.weights_), "this W2S") @ self.weights_ + self.intercept_

    def choose(self, context: Context) -> Int[Tensor, " batch"]:
        """The number, in `sites`, of the site where each input is steered."""
        return self.predict_slopes(context).argmax(1)

    def vectors(self, context: Context) -> Float[Tensor, "batch hidden"]:
        """Refused: there are several sites."""
        raise SteeringError("this W2S steers another site for each input: call interventions(context)")

    def interventions(self, context: Context) -> tuple[Intervention, ...]:
        """Those of every steerer, each for the inputs whose site it is."""
        chosen = self.choose(context)
        return tuple(
            one.with_gate((chosen == self.sites.index(one.site)).float())
            for part in self._parts
            for one in part.interventions(context)
        )
