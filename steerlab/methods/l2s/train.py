"""Training a steering net: a pure function of data, recipe and seed. The language model is not needed."""

from __future__ import annotations

import copy
import math

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from steerlab._support.errors import DataError
from steerlab.methods.l2s.config import TrainingConfig, balanced_mean, example_losses
from steerlab.methods.l2s.init import Scales, start_decoder
from steerlab.methods.l2s.net import SteeringNet

Pairs = tuple[Float[Tensor, "row hidden"], Float[Tensor, "row hidden"]]


def train_net(
    net: SteeringNet,
    contexts: Float[Tensor, "example hidden"],
    targets: Float[Tensor, "example hidden"],
    recipe: TrainingConfig,
    *,
    groups: Int[Tensor, " example"] | None = None,
    validation: Pairs | None = None,
    seed: int = 0,
    progress: bool = False,
) -> pd.DataFrame:
    """Train `net` in place to map contexts to targets.

    Example:
        >>> net = SteeringNet(64, 8)
        >>> history = train_net(net, torch.randn(100, 64), torch.randn(100, 64), TrainingConfig(epochs=5))

    Args:
        net: changed in place; left in evaluation mode.
        contexts, targets: `(sample, hidden_units)` float32, in units of the residual stream.
        groups: 0-based class of each sample, for `class_balanced`.
        validation: contexts and targets that are not trained on.
        seed: decides the order of the batches and the decoder's start; the global RNG is not touched.
        progress: show a bar.

    Returns:
        One row per epoch: `epoch`, `loss` (mean over batches), `val_loss`, `val_cos` (mean over the samples
        with a non-zero target; both NaN without validation) and `lr` (of the last batch).

    Raises:
        DataError: the recipe needs groups or validation and there are none.

    Source: arXiv 2508.12815, equation 8 and appendix.
    """
    if recipe.keep == "best" and validation is None:
        raise DataError("keep='best' needs validation pairs; give some, or use a recipe with keep='last'")
    if recipe.class_balanced and groups is None:
        raise DataError("class_balanced=True needs the group of each sample")
    recipe = recipe.for_rows(len(contexts))
    scales = Scales.of(contexts, targets) if recipe.standardize else Scales.none(contexts.shape[1])
    start_decoder(net, targets, recipe, seed)
    trainer = _Trainer(net, scales, recipe, contexts, targets, groups, validation)
    generator = torch.Generator().manual_seed(seed)
    history, best, kept = [], math.inf, None
    for epoch in tqdm(range(recipe.epochs), desc="steering net", disable=not progress):
        row = trainer.epoch(epoch, generator)
        history.append(row)
        if recipe.keep == "best" and row["val_loss"] < best:
            best, kept = row["val_loss"], copy.deepcopy(net.state_dict())
    if kept is not None:
        net.load_state_dict(kept)
    scales.fold(net)
    net.eval()
    return pd.DataFrame(history)


class _Trainer:
    """The loop's state: data in training units, the optimizer and the plateau."""

    def __init__(
        self,
        net: SteeringNet,
        scales: Scales,
        recipe: TrainingConfig,
        contexts: Float[Tensor, "example hidden"],
        targets: Float[Tensor, "example hidden"],
        groups: Int[Tensor, " example"] | None,
        validation: Pairs | None,
    ) -> None:
        self.net, self.scales, self.recipe = net, scales, recipe
        self.contexts, self.targets = scales.standard(contexts), targets
        self.groups = groups if recipe.class_balanced else None
        self.n_groups = 0 if self.groups is None else int(self.groups.max()) + 1
        self.validation = None if validation is None else (scales.standard(validation[0]), validation[1])
        self.steps = recipe.epochs * math.ceil(len(contexts) / recipe.batch_size)
        self.optimizer = torch.optim.Adam(
            net.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True
        )
        self.step, self.damping, self.lowest, self.waited = 0, 1.0, math.inf, 0

    def epoch(self, epoch: int, generator: torch.Generator) -> dict[str, int | float]:
        self.net.train()
        total, n = torch.zeros(()), len(self.contexts)
        for rows in torch.randperm(n, generator=generator).split(self.recipe.batch_size):
            rate = self.damping * self.recipe.rate_at(self.step, self.steps)
            self.optimizer.param_groups[0]["lr"] = rate
            loss = self.batch_loss(rows, self.recipe.cosine_at(epoch))
            self.optimizer.zero_grad()
            # a constant factor is nothing to Adam but for its epsilon, which tiny targets would come close to
            (loss / self.scales.size**2).backward()
            self.optimizer.step()
            total += loss.detach() * len(rows) / n
            self.step += 1
        val_loss, val_cos = self.validate()
        self.damp(epoch, float(total) if math.isnan(val_loss) else val_loss)
        return {"epoch": epoch, "loss": float(total), "val_loss": val_loss, "val_cos": val_cos, "lr": rate}

    def batch_loss(self, rows: Int[Tensor, " batch"], cosine_weight: float) -> Float[Tensor, ""]:
        predicted = self.scales.size * self.net(self.contexts[rows])
        losses = example_losses(predicted, self.targets[rows], self.recipe.loss, cosine_weight)
        if self.groups is None:
            return losses.mean()
        return balanced_mean(losses, self.groups[rows], self.n_groups)

    @torch.no_grad()
    def validate(self) -> tuple[float, float]:
        if self.validation is None:
            return math.nan, math.nan
        contexts, targets = self.validation
        predicted = self.scales.size * self.net(contexts)
        losses = example_losses(predicted, targets, self.recipe.loss, self.recipe.validation_cosine_weight)
        steered = targets.norm(dim=-1) > 0
        cosines = torch.nn.functional.cosine_similarity(predicted, targets, dim=-1)[steered]
        return float(losses.mean()), float(cosines.mean()) if len(cosines) else math.nan

    def damp(self, epoch: int, monitored: float) -> None:
        """Reduce the rate on a plateau, once the warm-up is over."""
        patience = self.recipe.plateau_patience
        if patience is None or self.step <= self.recipe.warmup * self.steps:
            return
        self.waited = 0 if monitored < self.lowest else self.waited + 1
        self.lowest = min(self.lowest, monitored)
        if self.waited > patience:
            self.damping, self.waited = self.damping * self.recipe.plateau_factor, 0
