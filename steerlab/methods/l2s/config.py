"""Training settings of the steering net in one frozen value, and the published settings by name."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from steerlab._support.checks import as_number, as_whole
from steerlab.errors import DataError
from steerlab.methods.serialization import savable

CHOICES = {
    "loss": ("mse", "mse_l1_cos"),
    "schedule": ("constant", "warmup_cosine"),
    "decoder_init": ("default", "svd", "dictionary"),
    "dictionary": ("full", "minibatch"),
    "keep": ("last", "best"),
}


@savable
@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a steering net is trained: everything except data, sizes and seed.

    Example:
        >>> L2S(layer=15, config=replace(L2S_PAPER, epochs=20, learning_rate=3e-3))

    Args:
        loss: "mse" (squared error, averaged over dimensions) or "mse_l1_cos" (plus the mean absolute error, minus
            `cosine_weight` times the cosine).
        cosine_weight: weight of the cosine in training.
        cosine_ramp_epochs: the weight grows linearly from 0 to its value over this many epochs; 0: constant.
        validation_cosine_weight: weight of the cosine in the validation loss.
        learning_rate, weight_decay, epochs, batch_size: of Adam; the last batch of an epoch may be smaller.
        min_steps: train for more epochs if `epochs` epochs of a small data set have fewer batches than this.
        schedule: "constant", or "warmup_cosine": linear from 0 over the share `warmup` of all batches, then a cosine
            to 0.
        plateau_patience: multiply the learning rate by `plateau_factor` if the monitored loss (validation, else
            training) has not fallen for more epochs than this after the warm-up; None: never.
        decoder_init: initial columns of W2: "default" (PyTorch's), "svd" (leading right singular vectors of the
            mean-centered targets) or "dictionary" (dictionary learning with positive codes).
        dictionary: "full" as published, which is very slow for wide targets, or "minibatch".
        dictionary_iterations: largest number of its iterations.
        keep: the weights of the "last" epoch, or of the "best" one on validation data (which must be given).
        class_balanced: the loss of a batch is the mean of the mean losses of all groups.
        equalize_norms: rescale the targets of every group (a behavior, unless `L2S(label=...)` says otherwise)
            to the mean norm of the first group. True takes groups in order of appearance; a tuple names them, the
            reference first, and leaves the others unchanged.
        standardize: train with standardized contexts and targets of unit root mean square; both scales are folded
            into the weights afterwards, so that the net takes and returns raw units.

    Raises:
        DataError: an unknown choice, or a number out of range.

    Source: arXiv 2508.12815, equation 8 and appendix; the released code for the presets `L2S_RELEASED_*`.
    """

    loss: str = "mse"
    cosine_weight: float = 0.1
    cosine_ramp_epochs: int = 0
    validation_cosine_weight: float = 0.05
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    epochs: int = 100
    batch_size: int = 64
    min_steps: int = 0
    schedule: str = "constant"
    warmup: float = 0.0
    plateau_patience: int | None = None
    plateau_factor: float = 0.5
    decoder_init: str = "default"
    dictionary: str = "full"
    dictionary_iterations: int = 5000
    keep: str = "last"
    class_balanced: bool = False
    equalize_norms: bool | tuple[str, ...] = False
    standardize: bool = False

    def __post_init__(self) -> None:
        for field, allowed in CHOICES.items():
            if getattr(self, field) not in allowed:
                raise DataError(f"{field}={getattr(self, field)!r}; expected one of {', '.join(allowed)}")
        for field, least in (("epochs", 1), ("batch_size", 1), ("min_steps", 0), ("cosine_ramp_epochs", 0)):
            as_whole(field, getattr(self, field), least)
        for field in ("learning_rate", "weight_decay", "cosine_weight", "validation_cosine_weight", "plateau_factor"):
            as_number(field, getattr(self, field), 0.0)
        as_number("warmup", self.warmup, 0.0, 1.0)
        if not (self.learning_rate and self.plateau_factor):
            raise DataError(f"learning_rate={self.learning_rate}, plateau_factor={self.plateau_factor}: give more")

    def steps(self, n_examples: int) -> int:
        """How many batches `epochs` epochs of so many examples have."""
        return self.epochs * math.ceil(n_examples / self.batch_size)

    def extend(self, n_examples: int) -> TrainingConfig:
        """This config with more epochs, and the patience scaled alike, if `min_steps` needs them."""
        factor = max(1.0, self.min_steps / self.steps(n_examples))
        patience = None if self.plateau_patience is None else round(factor * self.plateau_patience)
        return replace(self, epochs=math.ceil(factor * self.epochs), plateau_patience=patience)

    def cosine_weight_at(self, epoch: int) -> float:
        """Weight of the cosine in a 0-based epoch."""
        return self.cosine_weight * (min(1.0, epoch / self.cosine_ramp_epochs) if self.cosine_ramp_epochs else 1.0)

    def learning_rate_at(self, step: int, steps: int) -> float:
        """Learning rate of a 0-based batch out of `steps` in all."""
        if self.schedule == "constant":
            return self.learning_rate
        warm = round(self.warmup * steps)
        if step < warm:
            return self.learning_rate * step / warm
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


# the paper's: squared error (equation 8), warm-up and cosine, then a lower rate on a plateau, the best epoch. Ours,
# where it gives no number: rate, weight decay, epochs, length of the warm-up, steps, patience, standardizing
L2S_PAPER = TrainingConfig(
    loss="mse", learning_rate=1e-3, weight_decay=1e-4, epochs=60, schedule="warmup_cosine", warmup=0.1,
    min_steps=1500, plateau_patience=10, keep="best", standardize=True,
)  # fmt: skip
# the training of the released code for MM-SafetyBench
L2S_RELEASED_SAFETY = TrainingConfig(
    loss="mse_l1_cos", learning_rate=1e-4, decoder_init="dictionary", equalize_norms=True, keep="last"
)
# the training of the released code for POPE
L2S_RELEASED_POPE = TrainingConfig(
    loss="mse_l1_cos", cosine_ramp_epochs=100, learning_rate=5e-5, schedule="warmup_cosine", warmup=0.5,
    decoder_init="svd", class_balanced=True, keep="best",
)  # fmt: skip
PRESETS = {
    "paper": L2S_PAPER,
    "released": L2S_RELEASED_SAFETY,
    "released_safety": L2S_RELEASED_SAFETY,
    "released_pope": L2S_RELEASED_POPE,
}
