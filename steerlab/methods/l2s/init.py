"""How a net starts and in which units it trains: its first decoder, and the scales folded in afterwards."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from jaxtyping import Float
from sklearn.decomposition import DictionaryLearning, MiniBatchDictionaryLearning, TruncatedSVD
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from steerlab.methods.l2s.config import TrainingConfig
from steerlab.methods.l2s.net import SteeringNet

NO_SPREAD = 1e-6
CONTEXT_NORM = 4.0


def decoder_columns(
    targets: Float[Tensor, "example hidden"], hidden_units: int, recipe: TrainingConfig, seed: int
) -> Float[Tensor, "columns hidden"]:
    """Up to `hidden_units` rows to start the decoder's columns from; fewer where the targets have a lower rank."""
    values = targets.double().numpy()
    most = min(hidden_units, *values.shape)
    if recipe.decoder_init == "dictionary":
        kind = DictionaryLearning if recipe.dictionary == "full" else MiniBatchDictionaryLearning
        options = {"positive_code": True, "fit_algorithm": "cd", "random_state": seed}
        learner = kind(most, max_iter=recipe.dictionary_iterations, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a start need not be an optimum
            return torch.from_numpy(learner.fit(values).components_).float()
    centered = values - values.mean(0)
    # what is left of a constant target is rounding noise, whose singular vectors mean nothing
    if recipe.decoder_init == "default" or abs(centered).max() <= NO_SPREAD * abs(values).max():
        return targets.new_zeros(0, targets.shape[1])
    svd = TruncatedSVD(most, random_state=seed).fit(centered)
    real = svd.singular_values_ > NO_SPREAD * svd.singular_values_[0]
    return torch.from_numpy(svd.components_[real]).float()


@torch.no_grad()
def start_decoder(
    net: SteeringNet, targets: Float[Tensor, "example hidden"], recipe: TrainingConfig, seed: int
) -> None:
    """Overwrite the first columns of W2 as the recipe says; columns beyond the rank keep the default."""
    if recipe.decoder_init != "default":
        columns = decoder_columns(targets, net.encoder.out_features, recipe, seed)
        net.decoder.weight[:, : len(columns)] = columns.T


@dataclass(frozen=True)
class Scales:
    """Units in which a net is trained: contexts minus `shift` over `spread`, targets over `size`."""

    shift: Float[Tensor, " hidden"]
    spread: Float[Tensor, " hidden"]
    size: float

    @classmethod
    def of(cls, contexts: Float[Tensor, "example hidden"], targets: Float[Tensor, "example hidden"]) -> Scales:
        """Mean and deviation of each context dimension, root mean square of the targets (float64).

        The deviations are stretched so that contexts of any width have a norm of about 4: Adam moves all
        weights of a unit alike, and with a norm of √hidden a wide net would memorise inputs before it used
        its bias.
        """
        deviation = contexts.double().std(0, correction=0)
        # a dimension that hardly varies would otherwise turn noise at test time into a large input
        floor = 1e-2 * float(deviation.mean())
        size = float(targets.double().square().mean().sqrt())
        spread = deviation.clamp(min=floor) if floor else deviation + 1
        stretch = max(1.0, contexts.shape[1] ** 0.5 / CONTEXT_NORM)
        return cls(contexts.double().mean(0), stretch * spread, size or 1.0)

    @classmethod
    def none(cls, hidden_units: int) -> Scales:
        """Raw units."""
        nothing = torch.zeros(hidden_units, dtype=torch.float64)
        return cls(nothing, nothing + 1, 1.0)

    def standard(self, contexts: Float[Tensor, "example hidden"]) -> Float[Tensor, "example hidden"]:
        """The contexts in training units, float32."""
        return ((contexts.double() - self.shift) / self.spread).float()

    @torch.no_grad()
    def fold(self, net: SteeringNet) -> None:
        """Change W1, b1 and W2 so that the net takes raw contexts and answers in raw units."""
        weight = net.encoder.weight.double() / self.spread
        net.encoder.bias.copy_(net.encoder.bias.double() - weight @ self.shift)
        net.encoder.weight.copy_(weight)
        net.decoder.weight.mul_(self.size)
