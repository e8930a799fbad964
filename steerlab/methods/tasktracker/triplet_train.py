"""Training a triplet probe: the recipe and the loop."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float, Int
from sklearn.metrics import roc_auc_score
from torch import Tensor
from tqdm.auto import tqdm

from steerlab._support.errors import DataError
from steerlab.methods.serialization import savable
from steerlab.methods.tasktracker.triplet_mining import TripletRows, drift, embed_batches, mine_triplets, triplet_losses
from steerlab.methods.tasktracker.triplet_net import TripletNet


@savable
@dataclass(frozen=True)
class TripletConfig:
    """How a triplet probe is trained; the defaults are the published ones.

    Example:
        >>> config = TripletConfig(epochs=5)        # Mistral's; SMALL_CONFIG is for a few hundred inputs

    Args:
        epochs: passes over the inputs.
        batch_size: inputs of which triplets are mined together.
        step_size: triplets per optimizer step.
        margin: how much farther than the clean text the foreign task must be.
        hard_after: steps after which triplets that cost more than the margin are used too.
        learning_rate: of Adam.
        decay, decay_every: the rate is multiplied by `decay` every so many steps.
        check_every: steps between looks at the validation rows; the best look is kept, and the last of equals.

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
"""Own, for a few hundred inputs: as many steps as they allow, and hard negatives from the first."""


def train_triplets(
    net: TripletNet, rows: TripletRows, config: TripletConfig, *, validation: TripletRows | None = None, seed: int = 0,
    progress: bool = False,
) -> pd.DataFrame:  # fmt: skip
    """Train `net` in place, so that clean text leaves the task's point where it is and a foreign task moves it.

    Example:
        >>> history = train_triplets(net, rows, TripletConfig(epochs=5, batch_size=128), validation=held_out)

    Args:
        net: changed in place; left in evaluation mode.
        rows: inputs of both kinds.
        validation: inputs by whose AUC the weights to keep are chosen; None: the last weights are kept.
        seed: decides batches, triplets' order and dropout; the global generator is not touched.
        progress: show a bar.

    Returns:
        One row per look: `step`, `loss` (mean since the last look), `triplets` (used since then), `val_auc`, `lr`.

    Source: TaskTracker, arXiv 2406.00799, released code.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        trainer = _Trainer(net, rows, config, validation)
        for _ in tqdm(range(config.epochs), desc="triplet net", disable=not progress):
            for batch in torch.randperm(len(rows)).split(config.batch_size):
                trainer.batch(batch)
        trainer.look()
    if trainer.kept is not None:
        net.load_state_dict(trainer.kept)
    net.eval()
    return pd.DataFrame(trainer.history)


class _Trainer:
    """The loop's state."""

    def __init__(
        self, net: TripletNet, rows: TripletRows, config: TripletConfig, validation: TripletRows | None
    ) -> None:
        self.net, self.rows, self.config, self.validation = net, rows, config, validation
        self.optimizer = torch.optim.Adam(net.parameters(), lr=config.learning_rate)
        self.schedule = torch.optim.lr_scheduler.StepLR(self.optimizer, config.decay_every, config.decay)
        self.step, self.best = 0, -math.inf
        self.kept: dict[str, Tensor] | None = None
        self.losses: list[float] = []
        self.used = 0
        self.history: list[dict[str, int | float]] = []

    def batch(self, rows: Int[Tensor, " batch"]) -> None:
        """Mine a batch, and take a step for every so many of its triplets."""
        for clean, injected in self.mined(rows):
            self.net.train()
            loss = self.loss(clean, injected)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            self.step += 1
            self.losses.append(float(loss.detach()))
            self.used += len(clean)
            if self.step % self.config.check_every == 0:
                self.look()

    def mined(self, rows: Int[Tensor, " batch"]) -> Iterator[tuple[Int[Tensor, " t"], Int[Tensor, " t"]]]:
        foreign = self.rows.injected[rows]
        clean, injected = rows[~foreign], rows[foreign]
        if not len(clean) or not len(injected):
            return
        self.net.eval()
        anchors, positives = (
            embed_batches(self.net, self.rows.primary[clean]),
            embed_batches(self.net, self.rows.full[clean]),
        )
        negatives = embed_batches(self.net, self.rows.full[injected])
        pairs = mine_triplets(
            anchors, positives, negatives, self.config.margin, hard=self.step >= self.config.hard_after
        )
        for part in pairs[torch.randperm(len(pairs))].split(self.config.step_size):
            if len(part):
                yield clean[part[:, 0]], injected[part[:, 1]]

    def loss(self, clean: Int[Tensor, " t"], injected: Int[Tensor, " t"]) -> Float[Tensor, ""]:
        # a row is in many triplets of a step, and is embedded once for all of them
        near, a = clean.unique(return_inverse=True)
        far, n = injected.unique(return_inverse=True)
        states = torch.cat([self.rows.primary[near], self.rows.full[near], self.rows.full[far]])
        anchors, positives, negatives = self.net(states).split([len(near), len(near), len(far)])
        close = (anchors - positives).norm(dim=1)[a]
        return triplet_losses(close, (anchors[a] - negatives[n]).norm(dim=1), self.config.margin).mean()

    def look(self) -> None:
        """Note how far training is, and keep the weights where they are the best so far."""
        auc = math.nan
        if self.validation is not None:
            self.net.eval()
            auc = float(roc_auc_score(self.validation.injected.numpy(), drift(self.net, self.validation).numpy()))
            if auc >= self.best:
                self.best, self.kept = auc, copy.deepcopy(self.net.state_dict())
        self.history.append(
            {
                "step": self.step,
                "loss": sum(self.losses) / len(self.losses) if self.losses else math.nan,
                "triplets": self.used,
                "val_auc": auc,
                "lr": float(self.schedule.get_last_lr()[0]),
            }
        )
        self.losses, self.used = [], 0
