"""Settings of KL-then-steer in one frozen value, and those of the released code."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from steerlab._support.checks import as_number, as_whole, check_option
from steerlab.errors import DataError

DIRECTIONS, TOKENS = ("steered", "reference"), ("answer", "text", "padded")
BLOCKS = ("after", "all")


@dataclass(frozen=True, kw_only=True)
class KTSConfig:
    """How a model is trained to be steered: everything except data, layers and seed.

    Example:
        >>> KTSConfig(steps=200, coefficients=(0.0, 1.5))

    Args:
        steps: updates of the weights.
        batch_size, accumulate: benign texts of a forward, and forwards of a step.
        coefficients: the strength of the steering is drawn from this range, for each forward.
        steered: share of the forwards that are steered; in the others the model itself is held in place.
        kl: "steered", KL(steered and trained || reference), as released; or "reference", KL(reference || steered).
        tokens: whose next-token distribution counts: those of the "answer", all of the "text", or "padded", padding
            included, as released.
        keep: weight of a second loss, on the concepts' own prompts and answers: there the steered model is to stay what
            the *steered* original is. 0 as published, where nothing but `least_effect` speaks against a model
            that undoes every steering.
        blocks: the blocks that LoRA is put on: those "after" the first that is steered, since no other can see the
            vector, which also leaves the fitted directions as they are; or "all", as released.
        refresh: steps after which the directions are fitted to the trained model again; and the held-out KL is
            measured, and a checkpoint written.
        patience: how many times in a row the held-out KL may fail to fall before training stops; None: never stop.
        least_effect: weights under which steering keeps less than this share of its effect are never chosen; None: any.
        learning_rate: of AdamW; falls to 0 along a cosine over all steps.
        rank, scaling: of LoRA, on all linear layers of these blocks; the update is multiplied by `scaling` / `rank`.

    Raises:
        DataError: a number out of range, or an unknown choice.

    Source: arXiv 2406.15518, section 3; the released code for `KTS_RELEASED`.
    """

    steps: int = 200
    batch_size: int = 8
    accumulate: int = 1
    coefficients: tuple[float, float] = (-1.5, 1.5)
    steered: float = 0.5
    kl: str = "steered"
    tokens: str = "text"
    keep: float = 1.0
    blocks: str = "after"
    refresh: int = 25
    patience: int | None = 4
    least_effect: float | None = 0.7
    learning_rate: float = 3e-4
    rank: int = 16
    scaling: float = 32.0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "refresh", "rank"):
            as_whole(name, getattr(self, name), 1)
        if self.patience is not None:
            as_whole("patience", self.patience, 1)
        as_number("steered", self.steered, 0.0, 1.0)
        if self.least_effect is not None:
            as_number("least_effect", self.least_effect, high=1.0)
        as_number("learning_rate", self.learning_rate, 0.0)
        as_number("scaling", self.scaling, 0.0)
        as_number("keep", self.keep, 0.0)
        check_option("blocks", self.blocks, BLOCKS)
        check_option("kl", self.kl, DIRECTIONS)
        check_option("tokens", self.tokens, TOKENS)
        low, high = (as_number("coefficients", one) for one in self.coefficients)
        if low > high or low == high == 0:
            raise DataError(f"coefficients={self.coefficients!r}: give the smallest and the largest strength")

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of a 0-based step."""
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * step / self.steps))


KTS_RELEASED: dict[str, Any] = {"rank": 128, "scaling": 16.0, "learning_rate": 1e-5, "batch_size": 16, "accumulate": 2}
KTS_RELEASED |= {"steered": 0.125, "tokens": "padded", "refresh": 1}
KTS_RELEASED |= {"patience": None, "least_effect": None, "keep": 0.0, "blocks": "all"}
"""Arguments of `KTSConfig` as in the released code, where steps are one pass over its 200,000 texts (`steps=`)."""


def released_layers(n_layers: int) -> list[int]:
    """The 19 blocks that the released code steers, counted from the end; a small model has fewer.

    Example:
        >>> released_layers(32)[0], released_layers(32)[-1]
        (3, 21)
    """
    return [layer for layer in range(n_layers - 29, n_layers - 10) if layer >= 0]
