"""Training a steering net: a function of data, config and seed; the language model is not needed."""

from __future__ import annotations

import copy
import math
import warnings
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from sklearn.decomposition import DictionaryLearning, MiniBatchDictionaryLearning, TruncatedSVD
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from steerlab._support.progress import bar as progress_bar
from steerlab.errors import DataError
from steerlab.methods.l2s.config import TrainingConfig
from steerlab.methods.l2s.net import SteeringNet
from steerlab.methods.regression import deviations

RELATIVE_TOLERANCE = 1e-6  # smaller deviations and singular values are rounding noise
CONTEXT_NORM = 4.0

Contexts = Float[Tensor, "example context"]
Rows = Float[Tensor, "example hidden"]
Pairs = tuple[Float[Tensor, "row context"], Float[Tensor, "row hidden"]]


def train_net(
    net: SteeringNet, contexts: Contexts, targets: Rows, config: TrainingConfig, *,
    groups: Int[Tensor, " example"] | None = None, validation: Pairs | None = None, seed: int = 0,
    progress: bool = False,
) -> pd.DataFrame:  # fmt: skip
    """Train `net` in place to map contexts to targets; returns the loss of each epoch.

    Example:
        >>> net = SteeringNet(64, 8)
        >>> history = train_net(net, torch.randn(100, 64), torch.randn(100, 64), TrainingConfig(epochs=5))

    Args:
        net: changed in place; left in evaluation mode.
        contexts, targets: `(example, context)` and `(example, hidden)` float32, in units of the residual stream.
        config: how to train.
        groups: 0-based class of each example, for `class_balanced`.
        validation: contexts and targets that are not trained on.
        seed: decides the order of the batches and the initial decoder; the global generator is not touched.
        progress: show a bar.

    Returns:
        One row per epoch: `epoch`, `loss` (mean over batches), `val_loss`, `val_cos` (mean over the examples
        with a non-zero target; both NaN without validation) and `lr` (of the last batch).

    Raises:
        DataError: the config needs groups or validation data and there are none.

    Source: arXiv 2508.12815, equation 8 and appendix.
    """
    if config.keep == "best" and validation is None:
        raise DataError("keep='best' needs validation pairs; give some, or use a config with keep='last'")
    if config.class_balanced and groups is None:
        raise DataError("class_balanced=True needs the group of each example")
    config = config.extend(len(contexts))
    scales = Scales.of(contexts, targets) if config.standardize else Scales.identity(contexts.shape[1])
    initialize_decoder(net, targets, config, seed)
    trainer = _Trainer(net, scales, config, (contexts, targets), groups, validation)
    generator = torch.Generator().manual_seed(seed)
    history, lowest, best = [], math.inf, None
    with progress_bar(config.epochs, "steering net", "epoch", progress) as shown:
        for epoch in range(config.epochs):
            history.append(trainer.run_epoch(epoch, generator))
            shown.update()
            if config.keep == "best" and history[-1]["val_loss"] < lowest:
                lowest, best = history[-1]["val_loss"], copy.deepcopy(net.state_dict())
    if best is not None:
        net.load_state_dict(best)
    scales.fold_into(net)
    net.eval()
    return pd.DataFrame(history)


class _Trainer:
    """Data in training units, the optimizer, and the state of the learning-rate schedule."""

    def __init__(
        self,
        net: SteeringNet,
        scales: Scales,
        config: TrainingConfig,
        pairs: tuple[Contexts, Rows],
        groups: Int[Tensor, " example"] | None,
        validation: Pairs | None,
    ) -> None:
        self.net, self.scales, self.config, self.targets = net, scales, config, pairs[1]
        self.contexts = scales.standardize(pairs[0])
        self.groups = groups if config.class_balanced else None
        self.validation = None if validation is None else (scales.standardize(validation[0]), validation[1])
        self.steps = config.steps(len(self.contexts))
        self.optimizer = torch.optim.Adam(
            net.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self.step, self.damping, self.lowest, self.epochs_waited = 0, 1.0, math.inf, 0

    def run_epoch(self, epoch: int, generator: torch.Generator) -> dict[str, int | float]:
        """Train for one epoch; returns its row of the history."""
        self.net.train()
        total, n = torch.zeros(()), len(self.contexts)
        for rows in torch.randperm(n, generator=generator).split(self.config.batch_size):
            rate = self.damping * self.config.learning_rate_at(self.step, self.steps)
            self.optimizer.param_groups[0]["lr"] = rate
            loss = self._batch_loss(rows, self.config.cosine_weight_at(epoch))
            self.optimizer.zero_grad()
            # Adam ignores a constant factor except for its epsilon, which the gradients of tiny targets would approach
            (loss / self.scales.target_scale**2).backward()
            self.optimizer.step()
            total += loss.detach() * len(rows) / n
            self.step += 1
        val_loss, val_cos = self._validate()
        self._reduce_on_plateau(float(total) if math.isnan(val_loss) else val_loss)
        return {"epoch": epoch, "loss": float(total), "val_loss": val_loss, "val_cos": val_cos, "lr": rate}

    def _batch_loss(self, rows: Int[Tensor, " batch"], cosine_weight: float) -> Float[Tensor, ""]:
        predicted = self.scales.target_scale * self.net(self.contexts[rows])
        losses = example_losses(predicted, self.targets[rows], self.config.loss, cosine_weight)
        if self.groups is None:
            return losses.mean()
        return balanced_mean(losses, self.groups[rows], int(self.groups.max()) + 1)

    @torch.no_grad()
    def _validate(self) -> tuple[float, float]:
        if self.validation is None:
            return math.nan, math.nan
        contexts, targets = self.validation
        predicted = self.scales.target_scale * self.net(contexts)
        losses = example_losses(predicted, targets, self.config.loss, self.config.validation_cosine_weight)
        cosines = torch.nn.functional.cosine_similarity(predicted, targets, dim=-1)[targets.norm(dim=-1) > 0]
        return float(losses.mean()), float(cosines.mean()) if len(cosines) else math.nan

    def _reduce_on_plateau(self, monitored: float) -> None:
        """Reduce the learning rate on a plateau, after the warm-up."""
        patience = self.config.plateau_patience
        if patience is None or self.step <= self.config.warmup * self.steps:
            return
        self.epochs_waited = 0 if monitored < self.lowest else self.epochs_waited + 1
        self.lowest = min(self.lowest, monitored)
        if self.epochs_waited > patience:
            self.damping, self.epochs_waited = self.damping * self.config.plateau_factor, 0


def example_losses(
    predicted: Float[Tensor, "batch hidden"], target: Float[Tensor, "batch hidden"], loss: str, cosine_weight: float
) -> Float[Tensor, " batch"]:
    """The loss of each example: equation 8 of the paper ("mse"), or that of the released code ("mse_l1_cos")."""
    error = predicted - target
    squared = error.square().mean(-1)
    if loss == "mse":
        return squared
    cosine = torch.nn.functional.cosine_similarity(predicted, target, dim=-1)
    return squared + error.abs().mean(-1) - cosine_weight * cosine


def balanced_mean(losses: Float[Tensor, " batch"], groups: Int[Tensor, " batch"], n_groups: int) -> Float[Tensor, ""]:
    """The mean over all groups of their mean losses; a group without an example in the batch counts as 0."""
    total = losses.new_zeros(n_groups).index_add(0, groups, losses)
    return (total / torch.bincount(groups, minlength=n_groups).clamp(min=1)).mean()


@torch.no_grad()
def initialize_decoder(net: SteeringNet, targets: Rows, config: TrainingConfig, seed: int) -> None:
    """Set the first columns of W2 as `config.decoder_init` says; the other columns keep PyTorch's initialization."""
    columns = decoder_columns(targets, net.hidden_units, config, seed)
    net.decoder.weight[:, : len(columns)] = columns.T


def decoder_columns(
    targets: Rows, hidden_units: int, config: TrainingConfig, seed: int
) -> Float[Tensor, "columns hidden"]:
    """Initial columns of the decoder, one per row: none by default, fewer than `hidden_units` at a lower rank."""
    values = targets.double().numpy()
    most = min(hidden_units, *values.shape)
    if config.decoder_init == "dictionary":
        learner = (DictionaryLearning if config.dictionary == "full" else MiniBatchDictionaryLearning)(
            most, max_iter=config.dictionary_iterations, positive_code=True, fit_algorithm="cd", random_state=seed
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # an initial value need not be an optimum
            return torch.from_numpy(learner.fit(values).components_).float()
    centered = values - values.mean(0)
    constant = np.max(abs(centered)) <= RELATIVE_TOLERANCE * np.max(abs(values))
    if config.decoder_init == "default" or constant:
        return targets.new_zeros(0, targets.shape[1])
    svd = TruncatedSVD(most, random_state=seed).fit(centered)
    keep = svd.singular_values_ > RELATIVE_TOLERANCE * svd.singular_values_[0]
    return torch.from_numpy(svd.components_[keep]).float()


@dataclass(frozen=True)
class Scales:
    """Training units: contexts minus `mean` over `deviation`, targets over `target_scale`."""

    mean: Float[Tensor, " context"]
    deviation: Float[Tensor, " context"]
    target_scale: float

    @classmethod
    def of(cls, contexts: Contexts, targets: Rows) -> Scales:
        """Mean and deviation of each context dimension, root mean square of the targets (float64).

        The deviations are multiplied so that contexts of any width have a norm of about 4: Adam changes all
        weights of a unit at the same rate, and with a norm of √hidden a wide net would memorize inputs before it
        used its bias.
        """
        factor = max(1.0, contexts.shape[1] ** 0.5 / CONTEXT_NORM)
        root_mean_square = float(targets.double().square().mean().sqrt())
        return cls(contexts.double().mean(0), factor * deviations(contexts), root_mean_square or 1.0)

    @classmethod
    def identity(cls, width: int) -> Scales:
        """Raw units."""
        return cls(torch.zeros(width, dtype=torch.float64), torch.ones(width, dtype=torch.float64), 1.0)

    def standardize(self, contexts: Contexts) -> Contexts:
        """The contexts in training units, float32."""
        return ((contexts.double() - self.mean) / self.deviation).float()

    @torch.no_grad()
    def fold_into(self, net: SteeringNet) -> None:
        """Change W1, b1 and W2 so that the net takes raw contexts and returns raw units."""
        weight = net.encoder.weight.double() / self.deviation
        net.encoder.bias.copy_(net.encoder.bias.double() - weight @ self.mean)
        net.encoder.weight.copy_(weight)
        net.decoder.weight.mul_(self.target_scale)
