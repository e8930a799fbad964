"""`steer`: add vectors to a model's states inside a `with` block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import pandas as pd

from steerlab._support.checks import named_options
from steerlab.data.inputs import Data
from steerlab.errors import SteeringError
from steerlab.models.job import background
from steerlab.models.model import Model
from steerlab.models.positions import Positions
from steerlab.steering.batches import OPEN_RUNS, Steer, active_steering, as_requests
from steerlab.steering.direct import DirectSteering
from steerlab.steering.generate import Generations, generate
from steerlab.steering.requests import Alpha, Scale
from steerlab.steering.score import score


class Run:
    """The object of a `with steer(...)` block: generates and scores under steering, and counts the steered states.

    Attributes:
        model: that is steered.
        steered_tokens: token states that a vector was added to so far, summed over sites and steerers.
        norm_ratio: mean ‖h' - h‖/‖h‖ over them; nan before the first.
    """

    def __init__(self, model: Model) -> None:
        self.model, self.steered_tokens, self._ratios = model, 0, 0.0
        self._calls = self._calls_to_steer = 0

    @property
    def norm_ratio(self) -> float:
        """Mean ‖h' - h‖/‖h‖ over the states steered so far."""
        return self._ratios / self.steered_tokens if self.steered_tokens else float("nan")

    @background
    def generate(self, data: Data, **options: Any) -> Generations:
        """`steerlab.generate` under the steering of the enclosing `with` blocks."""
        self._check_open()
        return generate(self.model, data, **options)

    @background
    def score(self, data: Data, answers: Sequence[str], **options: Any) -> pd.DataFrame:
        """`steerlab.score` under the steering of the enclosing `with` blocks."""
        self._check_open()
        return score(self.model, data, answers, **options)

    def count(self, steered: int, ratios: float, has_vectors: bool) -> None:
        """Count what a call did: states steered, the sum of their norm ratios, and whether any vector was not zero."""
        self.steered_tokens += steered
        self._ratios += ratios
        self._calls += 1
        self._calls_to_steer += has_vectors

    def check_steered(self) -> None:
        """Refuse a block in which nothing was steered, unless every vector was zero."""
        if not self._calls:
            raise SteeringError(
                "nothing was run in this `with steer(...)` block, so nothing was steered: call run.generate(...), "
                "steerlab.generate(model, ...) or model.hf.generate(...) inside it"
            )
        if self._calls_to_steer and not self.steered_tokens:
            raise SteeringError(
                "alpha is not 0 but no token was steered in this `with steer(...)` block: the positions match none"
            )

    def _check_open(self) -> None:
        if not any(run is self for run, _ in active_steering(self.model)):
            raise SteeringError(
                "this run has ended (its `with steer(...)` block was left), or it belongs to another thread: "
                "nothing would be steered"
            )


@named_options
@contextmanager
def steer(
    model: Model, steerer: Steer, *, alpha: Alpha = 1.0, positions: Positions | None = None, scale: Scale = "raw"
) -> Iterator[Run]:
    """Steer a model inside a `with` block; afterwards, also after an exception, the model is as before.

    What is run on `model.hf` in the block is steered as well: its forward, its `generate`, a pipeline, a Trainer's
    evaluation. All tokens of such a call are the prompt; its parts ("user", "system") are unknown. nnsight users trace
    the same weights with `model.nnsight`. `capture` reads the model unsteered.

    Several steerers, in a list or in nested blocks, are applied in their order. Vectors that are added add up: each is
    computed from the state before any of them, and the sum is formed in float32.

    Example:
        >>> with steerlab.steer(model, l2s, alpha=1.0) as run:
        ...     texts = run.generate(["How do I pick a lock?"], max_new_tokens=60)
        ...     ids = model.hf.generate(**model.tokenizer("Locks are", return_tensors="pt"))
        >>> run.steered_tokens, round(run.norm_ratio, 2)

    Args:
        model: from `steerlab.load`.
        steerer: a fitted steerer, or vectors by layer (`{15: tensor}`), or several;
            `Request(steerer, alpha, positions)` sets alpha and positions of one.
        alpha: strength, one number or one per input; 0 leaves the model bit-identical.
        positions: where to add the vectors (see `steerlab.models.positions`); None: each method's
            `default_positions` ("all" for most, "prompt" for AlphaSteer, AdaSteer and CONFST).
        scale: "raw", "norm" for alpha in units of each input's norm at the steered layer, or "token_norm" for units of
            each state's own norm.

    Raises:
        MismatchError: vectors of another width. LayoutError: no such layer. PositionError: no such token.
        SteeringError: alpha is not 0 but no token was steered when the block is left; a vector or alpha is not finite;
            a steerer that needs more than token ids steers a call of `model.hf`; blocks are not left in reverse order.
        SteerlabError: the model is in training mode or compiled, or autocast is on: its numbers would be others.

    Source: L2S, arXiv 2508.12815, eq. 9.
    """
    run = Run(model)
    requests = as_requests(model, steerer, alpha, positions, scale)
    if any(one.model is not model and one.model.hf is model.hf for one, _ in OPEN_RUNS.get()):
        raise SteeringError("a block of another `Model` with the same weights is open here: steer with one of the two")
    OPEN_RUNS.set((*OPEN_RUNS.get(), (run, requests)))
    live = [request for _, given in active_steering(model) for request in given if not request.is_noop]
    hooks = DirectSteering(run, live).attached() if live and not model.is_remote else nullcontext()
    try:
        with hooks:
            yield run
            if (opened := active_steering(model)) and opened[-1][0] is not run:
                raise SteeringError(
                    "this `with steer(...)` block is left before one that was opened later (in generators that take "
                    "turns?): what ran since then was steered by both"
                )
            if not (model.is_remote or all(request.is_noop for request in requests)):
                run.check_steered()  # a server's verbs check themselves, perhaps after the block
    finally:
        OPEN_RUNS.set(tuple(entry for entry in OPEN_RUNS.get() if entry[0] is not run))
