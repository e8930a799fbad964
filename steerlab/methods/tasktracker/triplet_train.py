"""Training of the triplet probe: mining, loss and loop."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from sklearn.metrics import roc_auc_score
from torch import Tensor

from steerlab._support.progress import bar as progress_bar
from steerlab.errors import DataError
from steerlab.methods.serialization import savable
from steerlab.methods.tasktracker.triplet_net import TripletNet, embed_batches


@savable
@dataclass(frozen=True)
class TripletConfig:
    """Training configuration of a triplet probe. The defaults were published, with five epochs for Mistral only.

    Example:
        >>> config = TripletConfig(epochs=5)        # as for Mistral; SMALL_CONFIG is for a few hundred inputs

    Args:
        epochs: passes over the inputs.
        batch_size: inputs per batch from which triplets are mined.
        step_size: triplets per optimizer step.
        margin: margin of the triplet loss.
        hard_after: steps after which triplets with a loss above the margin are used too.
        learning_rate: of Adam.
        decay, decay_every: the rate is multiplied by `decay` every `decay_every` steps.
        check_every: steps between evaluations on the validation rows; the best weights are kept, of equally
            good ones the latest.

    Raises:
        DataError: a number that must be positive is not.

    Source: TaskTracker, arXiv 2406.00799, released code.
    """

    epochs: int = 6
    batch_size: int = 2500
    step_size: int = 1024
    margin: float = 0.3
    hard_after: int = 3000
    learning_rate: float = 5e-4
    decay: float = 0.95
    decay_every: int = 800
    check_every: int = 50

    def __post_init__(self) -> None:
        if any(value <= 0 for name, value in vars(self).items() if name != "hard_after"):
            raise DataError(f"{self}: every number but hard_after must be above 0")


SMALL_CONFIG = TripletConfig(epochs=20, batch_size=128, hard_after=0, learning_rate=1e-3, check_every=10)
"""For a few hundred inputs: more passes, small batches, and hard negatives from the first step on."""


@dataclass(frozen=True)
class TripletRows:
    """States of inputs, one row each.

    Attributes:
        primary: after the user's task alone.
        full: after the task and the text to work on.
        injected: whether that text holds an injected instruction.
    """

    primary: Float[Tensor, "row layers hidden"]
    full: Float[Tensor, "row layers hidden"]
    injected: Bool[Tensor, " row"]

    def __len__(self) -> int:
        return len(self.injected)

    def at(self, numbers: Int[Tensor, " some"]) -> TripletRows:
        """Some of the rows."""
        return TripletRows(self.primary[numbers], self.full[numbers], self.injected[numbers])


def triplet_losses(
    to_positive: Float[Tensor, "*rows"], to_negative: Float[Tensor, "*rows"], margin: float
) -> Float[Tensor, "*rows"]:
    """ReLU(‖a - p‖ - ‖a - n‖ + margin), from the distances of the anchor a to the positive p and to the negative n.

    Example:
        >>> triplet_losses(torch.tensor([0.2, 0.2]), torch.tensor([0.5, 0.1]), 0.3)
        tensor([0.0000, 0.4000])

    Source: TaskTracker, arXiv 2406.00799.
    """
    return (to_positive - to_negative + margin).relu()


def mine_triplets(
    anchors: Float[Tensor, "clean embedding"], positives: Float[Tensor, "clean embedding"],
    negatives: Float[Tensor, "injected embedding"], margin: float, *, hard: bool = False,
) -> Int[Tensor, "triplet 2"]:  # fmt: skip
    """Pairs (row of the anchors, row of the negatives) of the triplets with a loss between 0 and the margin.

    Example:
        >>> mine_triplets(a, p, n, margin=0.3)       # every negative can be combined with every anchor
        tensor([[0, 2], [1, 0]])

    Args:
        anchors, positives: embeddings of the task alone and of task and clean text, row by row.
        negatives: embeddings of tasks with a text that holds an injected instruction.
        margin: of the loss; both bounds are exclusive.
        hard: also return triplets with a loss above the margin.

    Source: TaskTracker, arXiv 2406.00799, released code.
    """
    to_positive = (anchors - positives).norm(dim=1, keepdim=True).expand(-1, len(negatives))
    # the exact distance: the faster product form is off by 1e-3 where points nearly coincide
    to_negative = torch.cdist(anchors, negatives, compute_mode="donot_use_mm_for_euclid_dist")
    losses = triplet_losses(to_positive, to_negative, margin)
    mined = (losses > 0) & (losses < margin)
    return (mined | (losses > margin) if hard else mined).nonzero()


def task_drift(net: TripletNet, rows: TripletRows) -> Float[Tensor, " row"]:
    """Distance between the embeddings (of norm 1) of the task alone and of task and text; `net` is in eval mode."""
    return (embed_batches(net, rows.full) - embed_batches(net, rows.primary)).norm(dim=1)


def train_triplets(
    net: TripletNet, rows: TripletRows, config: TripletConfig, *, validation: TripletRows | None = None, seed: int = 0,
    progress: bool = False,
) -> pd.DataFrame:  # fmt: skip
    """Train `net` in place, so that an injected instruction moves the embedding of the task and a clean text does not.

    Example:
        >>> history = train_triplets(net, rows, TripletConfig(epochs=5, batch_size=128), validation=held_out)

    Args:
        net: changed in place; left in evaluation mode.
        rows: inputs of both classes.
        config: the training configuration.
        validation: inputs whose AUC selects the weights; None: the last weights are kept.
        seed: of the batches, the order of triplets and dropout; the global generator is not used.
        progress: show a progress bar.

    Returns:
        One row per evaluation: `step`, `loss` (mean since the last one), `triplets` (used since then), `val_auc`, `lr`.

    Source: TaskTracker, arXiv 2406.00799, released code.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        trainer = _Trainer(net, rows, config, validation)
        with progress_bar(config.epochs, "triplet net", "epoch", progress) as shown:
            for _ in range(config.epochs):
                for batch in torch.randperm(len(rows)).split(config.batch_size):
                    trainer.train_batch(batch)
                shown.update()
        if not trainer.step:
            raise DataError("no triplet was found in any batch: give larger batches of both classes, or hard_after=0")
        trainer.evaluate()
    if trainer.best_state is not None:
        net.load_state_dict(trainer.best_state)
    net.eval()
    return pd.DataFrame(trainer.history)


class _Trainer:
    """The state of the training loop."""

    def __init__(
        self, net: TripletNet, rows: TripletRows, config: TripletConfig, validation: TripletRows | None
    ) -> None:
        self.net, self.rows, self.config, self.validation = net, rows, config, validation
        self.optimizer = torch.optim.Adam(net.parameters(), lr=config.learning_rate)
        self.schedule = torch.optim.lr_scheduler.StepLR(self.optimizer, config.decay_every, config.decay)
        self.step, self.triplets, self.best_auc = 0, 0, -math.inf
        self.best_state: dict[str, Tensor] | None = None
        self.losses: list[float] = []
        self.history: list[dict[str, int | float]] = []

    def train_batch(self, numbers: Int[Tensor, " batch"]) -> None:
        """Mine the triplets of the inputs with these numbers, and make one step for every `step_size` of them."""
        for clean, injected in self._mine(numbers):
            self.net.train()
            loss = self._loss(clean, injected)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            self.losses.append(float(loss.detach()))
            self.step, self.triplets = self.step + 1, self.triplets + len(clean)
            if self.step % self.config.check_every == 0:
                self.evaluate()

    def evaluate(self) -> None:
        """Append to the history, and keep the weights with the best validation AUC."""
        auc, losses = math.nan, self.losses
        if self.validation is not None:
            self.net.eval()
            auc = float(roc_auc_score(self.validation.injected.numpy(), task_drift(self.net, self.validation).numpy()))
            if auc >= self.best_auc:
                self.best_auc, self.best_state = auc, copy.deepcopy(self.net.state_dict())
        loss, rate = sum(losses) / len(losses) if losses else math.nan, float(self.schedule.get_last_lr()[0])
        self.history.append({"step": self.step, "loss": loss, "triplets": self.triplets, "val_auc": auc, "lr": rate})
        self.losses, self.triplets = [], 0

    def _mine(self, numbers: Int[Tensor, " batch"]) -> Iterator[tuple[Int[Tensor, " t"], Int[Tensor, " t"]]]:
        """For each step, the numbers of the clean and of the injected input of every triplet."""
        is_injected = self.rows.injected[numbers]
        clean, injected = numbers[~is_injected], numbers[is_injected]
        if not len(clean) or not len(injected):
            return
        self.net.eval()
        anchors, positives, negatives = (
            embed_batches(self.net, states)
            for states in (self.rows.primary[clean], self.rows.full[clean], self.rows.full[injected])
        )
        hard = self.step >= self.config.hard_after
        pairs = mine_triplets(anchors, positives, negatives, self.config.margin, hard=hard)
        for part in pairs[torch.randperm(len(pairs))].split(self.config.step_size):
            if len(part):
                yield clean[part[:, 0]], injected[part[:, 1]]

    def _loss(self, clean: Int[Tensor, " t"], injected: Int[Tensor, " t"]) -> Float[Tensor, ""]:
        # a row is in many triplets of a step, and is embedded once for all of them
        clean, anchor = clean.unique(return_inverse=True)
        injected, negative = injected.unique(return_inverse=True)
        states = torch.cat([self.rows.primary[clean], self.rows.full[clean], self.rows.full[injected]])
        anchors, positives, negatives = self.net(states).split([len(clean), len(clean), len(injected)])
        to_positive = (anchors - positives).norm(dim=1)[anchor]
        to_negative = (anchors[anchor] - negatives[negative]).norm(dim=1)
        return triplet_losses(to_positive, to_negative, self.config.margin).mean()
