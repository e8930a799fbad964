"""Settings of KL-then-steer in one frozen value, and those of the released code."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from steerlab._support.checks import as_number, as_whole, check_option
from steerlab.errors import DataError

FIRST, TOKENS, BLOCKS = ("model", "reference"), ("answer", "text", "padded"), ("after", "all")


@dataclass(frozen=True, kw_only=True)
class KTSConfig:
    """How a model is trained to be steered: everything except data, layers and seed.

    Example:
        >>> KTSConfig(steps=200, coefficients=(0.0, 1.5))

    Args:
        steps: updates of the weights.
        batch_size, accumulate: benign texts of a forward, and forwards of a step.
        coefficients: the strength of the steering is drawn from this range, for each forward.
        steered_share: share of the forwards that are steered; in the others the model itself is held in place.
        first: which distribution comes first in the divergence: "model", KL(trained and steered || reference), as
            released; or "reference".
        tokens: whose next-token distribution counts: those of the "answer", all of the "text", or "padded", padding
            included, as released.
        keep_weight: weight of a second loss, on the prompts and answers that the vectors are fitted to: there the
            steered model is to stay what the *steered* original is. 0 as published, where nothing but `least_effect`
            speaks against a model that undoes every steering.
        least_effect: weights under which steering keeps less than this share of its effect are never chosen; None: any.
        blocks: the blocks that LoRA is put on: those "after" the first that is steered, or "all", as released. With one
            steered layer no earlier block can see the vector, and the fitted vectors stay as they are.
        refit_every: steps after which the vectors are fitted to the trained model again.
        measure_every: steps after which the held-out KL is measured and a checkpoint written; vectors are fitted again
            then too.
        patience: how many measurements in a row may find no better weights before training stops; None: never stop.
        learning_rate: of AdamW; falls to 0 along a cosine over all steps.
        rank, scaling: of LoRA, on all linear layers of these blocks; the update is multiplied by `scaling` / `rank`.

    Raises:
        DataError: a number out of range, or an unknown choice.

    Source: arXiv 2406.15518, section 3; the released code for `KTS_RELEASED`. The second loss is ours.
    """

    steps: int = 200
    batch_size: int = 8
    accumulate: int = 1
    coefficients: Sequence[float] = (-1.5, 1.5)
    steered_share: float = 0.5
    first: str = "model"
    tokens: str = "text"
    keep_weight: float = 1.0
    least_effect: float | None = 0.7
    blocks: str = "after"
    refit_every: int = 25
    measure_every: int = 25
    patience: int | None = 4
    learning_rate: float = 3e-4
    rank: int = 16
    scaling: float = 32.0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "refit_every", "measure_every", "rank"):
            as_whole(name, getattr(self, name), 1)
        if self.patience is not None:
            as_whole("patience", self.patience, 1)
        if self.least_effect is not None:
            as_number("least_effect", self.least_effect, high=1.0)
        as_number("steered_share", self.steered_share, 0.0, 1.0)
        as_number("keep_weight", self.keep_weight, 0.0)
        for name in ("learning_rate", "scaling"):
            as_number(name, getattr(self, name), 1e-12)
        for name, allowed in (("first", FIRST), ("tokens", TOKENS), ("blocks", BLOCKS)):
            check_option(name, getattr(self, name), allowed)
        expected = f"coefficients={self.coefficients!r}: give the smallest and the largest strength"
        if not isinstance(self.coefficients, tuple | list) or len(self.coefficients) != 2:
            raise DataError(expected)
        low, high = (as_number("coefficients", one) for one in self.coefficients)
        if low > high or low == high == 0:
            raise DataError(expected)

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of a 0-based step."""
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * step / self.steps))

    @property
    def strength(self) -> float:
        """The strength at which is measured: the largest, of two alike the positive one."""
        return max(self.coefficients, key=lambda one: (abs(one), one))


# arguments of `KTSConfig` as in the released training
KTS_RELEASED: dict[str, Any] = {"rank": 128, "scaling": 256.0, "learning_rate": 1e-5, "batch_size": 16, "accumulate": 2}
KTS_RELEASED |= {"steered_share": 0.125, "tokens": "padded", "refit_every": 1, "keep_weight": 0.0, "blocks": "all"}
KTS_RELEASED |= {"patience": None, "least_effect": None}
"""Arguments of `KTSConfig` as in the released code, where steps are one pass over its 200,000 texts (`steps=`)."""


def released_layers(n_layers: int) -> list[int]:
    """The 19 blocks that the released code steers, counted from the end; a small model has fewer.

    Example:
        >>> released_layers(32)[0], released_layers(32)[-1]
        (3, 21)
    """
    return [layer for layer in range(n_layers - 29, n_layers - 10) if layer >= 0]
