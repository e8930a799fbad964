"""The methods of the study of safety with rivals: one vector for all inputs, rivals, and kinds of L2S."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from steerlab import L2S, Activations, MeanDifference, SteeringVector
from steerlab.analysis.shuffling import shuffle_contrasts
from steerlab.data import PUBLISHED_PAIRS
from steerlab.methods import L2S_PAPER, P2S, Gated, LinearProbe, NearestNeighbors, RoutedMean, Steerer
from steerlab.methods.l2s.net import LinearMap
from steerlab.methods.predictor import VectorPredictor
from steerlab.models.operators import Operator
from steerlab.models.sites import Site

BY_KL = {"l2s_by_kl": "l2s", "routed_by_kl": "routed_mean"}  # the same methods, at the strength that has a given KL
Fitted = Steerer | list[Steerer]  # several are added up
Fit = Callable[[int, Activations], Fitted]
ZERO = ["answer"]
BALANCED = replace(L2S_PAPER, class_balanced=True, equalize_norms=("refuse", "defer"))
# one vector for all inputs: the shares of the means of both behaviors in it ("mean" has .65 of the first: its inputs)
MIXES = {"refuse_mean": 1.0, "half_mean": 0.5, "defer_mean": 0.0}
RANK = 4  # of the targets of "low_rank"


class RoutedWithRest(VectorPredictor):
    """The mean of the behavior that a probe reads, and on top of it what a ridge regression adds for this input.

    Args:
        layer: read and steered.
        everywhere: also where the mean is zero; else those inputs stay as they are.
    """

    def __init__(self, layer: int, everywhere: bool = True) -> None:
        self.everywhere = everywhere
        self.layer, self.context_layer, self.context_position = layer, None, "last"
        self.position, self.zero_behaviors, self.site = None, ZERO, Site.of(layer)

    def fit_activations(self, acts: Activations) -> None:
        """The probe and the means; then the regression of what they leave of the inputs' own vectors."""
        contexts, targets, _ = self.training_pairs(acts)
        self.routed_ = RoutedMean(self.layer, zero_behaviors=ZERO).fit(acts)
        self.rest_ = LinearMap.fit(contexts, targets - self.routed_.predict(contexts))

    def predict(self, contexts: Float[Tensor, "batch context"]) -> Float[Tensor, "batch hidden"]:
        """The sum of both."""
        with torch.no_grad():
            routed, rest = self.routed_.predict(contexts), self.rest_(contexts)
        return routed + (rest if self.everywhere else rest * (routed != 0).any(-1, keepdim=True))


def routed_by_layer(layer: int, acts: Activations) -> list[Steerer]:
    """The routed mean with refusals at this layer and deferrals at the lowest that was read, where the probe reads."""
    lowest = min(site.layer for site in acts.sites)
    parts = ((layer, "defer"), (lowest, "refuse"))  # a layer, and the behavior that is left to the other
    return [RoutedMean(at, context_layer=lowest, zero_behaviors=[*ZERO, left]).fit(acts) for at, left in parts]


@dataclass(frozen=True)
class AddKeepingNorm(Operator):
    """`h + strength * vector`, brought back to the length of h."""

    def __call__(self, h: Tensor, vector: Tensor, strength: Tensor | float) -> Tensor:
        """The new states."""
        found = h + strength * vector
        return found * (h.norm(dim=-1, keepdim=True) / found.norm(dim=-1, keepdim=True).clamp(min=1e-12))


OPERATORS: Mapping[str, Operator] = {"kept_norm": AddKeepingNorm()}  # all other vectors are added


def makers(seed: int) -> dict[str, Fit]:
    """A fitted steerer from a layer and training activations, by name of the method."""

    def l2s(layer: int, acts: Activations, **options: Any) -> Steerer:
        return L2S(layer, zero_behaviors=ZERO, seed=seed, progress=False, **options).fit(acts)

    def gated(layer: int, acts: Activations) -> Steerer:
        probe = LinearProbe(layer, positive=["refuse", "defer"], negative=ZERO).fit(acts)
        return Gated(l2s(layer, acts, net="mlp"), probe, threshold=0.5)

    found: dict[str, Fit] = {"mean": lambda layer, acts: MeanDifference(layer).fit(acts)}
    found |= {name: partial(mix, share=share) for name, share in MIXES.items()}
    found |= {
        "routed_mean": lambda layer, acts: RoutedMean(layer, zero_behaviors=ZERO).fit(acts),
        "routed_by_layer": routed_by_layer,
        "routed_soft": lambda layer, acts: RoutedMean(layer, zero_behaviors=ZERO, soft=True).fit(acts),
        "nearest_neighbors": lambda layer, acts: NearestNeighbors(layer, k=5, zero_behaviors=ZERO).fit(acts),
        "linear": partial(l2s, net="linear"),
        "l2s": partial(l2s, net="mlp"),
        "released": partial(l2s, config="released"),
        "published": partial(l2s, config="released"),  # with other sentences and strengths: see `BRINGS`
        "balanced": partial(l2s, config=BALANCED, activation="relu", hidden_units=10),
        "gated": gated,
        "low_rank": partial(l2s, net="mlp", rank=RANK),
        "several_layers": lambda layer, acts: l2s(layer, acts, net="mlp", context_layer=list(acts.sites)),
        "kept_norm": partial(l2s, net="mlp"),  # with another operator: see `OPERATORS`
        "routed_with_rest": lambda layer, acts: RoutedWithRest(layer).fit(acts),
        "routed_with_gated_rest": lambda layer, acts: RoutedWithRest(layer, everywhere=False).fit(acts),
    }
    return found | {name: found[method] for name, method in BY_KL.items()}


# what a method brings: pairs of answers, and its strength. The published words are read at the last token of their pair
PUBLISHED = {name: replace(pair, position=-1) for name, pair in PUBLISHED_PAIRS["qwen"].items()} | {"answer": None}
BRINGS = {"published": ("published", 2.2)}


def mix(layer: int, acts: Activations, share: float) -> Steerer:
    """The means of refusal and deferral in these shares, as one vector for all inputs."""
    own = P2S(layer, zero_behaviors=ZERO).fit(acts)
    behaviors = acts.labels(list(own.ids_))
    means = [own.table_[torch.tensor([one == name for one in behaviors])].mean(0) for name in ("refuse", "defer")]
    return SteeringVector({layer: share * means[0] + (1 - share) * means[1]})


def fit_shuffled(layer: int, acts: Activations, seed: int) -> Fitted:
    """The control: each input's target is the vector of another input of its behavior."""
    return makers(seed)["l2s"](layer, shuffle_contrasts(acts, seed=seed))
