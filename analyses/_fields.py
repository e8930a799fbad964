"""Parts of analyses/fields.py: how each method is fitted, and its strength at a given dose."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd

import steerlab
from steerlab import L2S, Activations, Example, MeanDifference
from steerlab.analysis.calibration import calibrate_strength
from steerlab.analysis.steerability import slopes
from steerlab.errors import SteeringError
from steerlab.methods import W2S, Gated, GradientField, LinearProbe, RandomDirection, Spherical, Steerer
from steerlab.models.model import Model

FRACTIONS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)  # depths at which W2S may steer


@dataclass
class Fitted:
    """The methods of one task, fitted to the same contrasts.

    Attributes:
        model: from `steerlab.load`.
        train: the contrasts, and for a refusal the harmless prompts ("answer").
        positions: the tokens at which states are changed.
        options: of `steerlab.capture`.
        seed: of the nets and of the random direction.
    """

    model: Model
    train: Sequence[Example]
    positions: str
    seed: int
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def layers(self) -> list[int]:
        """The layers of the mean vectors, of which W2S chooses."""
        return sorted({round(fraction * (self.model.n_layers - 1)) for fraction in FRACTIONS})

    @property
    def contrasted(self) -> list[Example]:
        """The training prompts with a contrast."""
        return [e for e in self.train if e.contrast is not None]

    @cached_property
    def acts(self) -> Activations:
        """The training activations at every layer."""
        return steerlab.capture(self.model, self.train, layers=self.layers, progress=False, **self.options)

    @cached_property
    def means(self) -> dict[int, MeanDifference]:
        """The mean vector at each layer."""
        return {k: MeanDifference(k).fit(self.acts) for k in self.layers}

    @cached_property
    def slopes(self) -> pd.DataFrame:
        """How the mean vector of each layer moves each training prompt."""
        return self.measure_slopes(self.contrasted)

    def measure_slopes(self, rows: Sequence[Example]) -> pd.DataFrame:
        """Slopes of the logit difference over the strength, by prompt and layer of the mean vector."""
        frame = steerlab.sweep(
            self.model, rows, {"mean": self.means}, self.layers, (-1.0, 1.0), self.positions, progress=False
        )
        return slopes(frame, frame["metric"].iloc[0])

    def w2s(self, read: int, table: pd.DataFrame | None = None) -> W2S:
        """The mean vectors, one of them for each input: predicted from its state at the layer `read`."""
        rows = self.acts.select(example_id=[e.id for e in self.contrasted])
        return W2S(list(self.means.values()), read).fit(rows, slopes=self.slopes if table is None else table)

    def gated_mean(self, layer: int) -> Gated:
        """The mean vector, for the prompts that a linear probe takes for those with a contrast."""
        positive = list(dict.fromkeys(e.behavior for e in self.contrasted))
        return Gated(self.means[layer], LinearProbe(layer, positive=positive).fit(self.acts), threshold=0.5)


FITS: dict[str, Callable[[Fitted, int], Steerer]] = {
    "mean": lambda fitted, layer: fitted.means[layer],
    "gated_mean": Fitted.gated_mean,
    "l2s": lambda fitted, layer: L2S(
        layer, net="mlp", zero_behaviors=[e.behavior for e in fitted.train if e.contrast is None][:1],
        seed=fitted.seed, progress=False,
    ).fit(fitted.acts),
    "field": lambda fitted, layer: GradientField(layer, normalize=True, seed=fitted.seed).fit(fitted.acts),
    "spherical": lambda fitted, layer: Spherical(layer).fit(fitted.acts),
    "w2s": Fitted.w2s,
    "random": lambda fitted, layer: RandomDirection(layer, seed=fitted.seed).fit(fitted.acts),
}  # fmt: skip


def strength_at(
    fitted: Fitted, steerer: Steerer, prompts: Sequence[Example], kl: float, n_tokens: int
) -> dict[str, Any]:
    """The strength at which a method meets the budget: `alpha, kl, norm_ratio`, all nan if none does."""
    try:
        found = calibrate_strength(
            fitted.model, prompts, steerer, kl=kl, max_new_tokens=n_tokens, positions=fitted.positions,
            batch_size=len(prompts),
        )  # fmt: skip
    except SteeringError as error:  # such as a rotation, which ends at the direction: reported as not reached
        if "no strength of" not in str(error):
            raise
        print(f"at {kl:g} nats: {error}")
        return {"alpha": float("nan"), "kl": float("nan"), "norm_ratio": float("nan")}
    dose = found.curve.set_index("alpha").loc[found.alpha, "norm_ratio"]
    return {"alpha": found.alpha, "kl": found.kl, "norm_ratio": float(dose)}
