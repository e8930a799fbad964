"""`steer`: put vectors into a model for the length of a `with` block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from steerlab._support.errors import SteeringError
from steerlab.capture.rows import Data
from steerlab.methods.base import Steerer
from steerlab.models.job import background
from steerlab.models.model import Model
from steerlab.models.positions import Positions
from steerlab.steering.generate import Generations, run_generate
from steerlab.steering.interventions import Alpha, Request, Scale
from steerlab.steering.next_token import run_first_logits
from steerlab.steering.score import run_score

Steer = Steerer | Request | Sequence[Steerer | Request]


class Run:
    """What `steer` hands out: generate and score under steering, and what really happened.

    Attributes:
        model: the one that is steered.
        steered_tokens: token states written to so far, summed over sites and steerers.
        norm_ratio: mean ‖alpha·v‖/‖h‖ over them; nan before the first.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.steered_tokens = 0
        self._ratio = 0.0

    @property
    def norm_ratio(self) -> float:
        """Mean ‖alpha·v‖/‖h‖ over the states written to so far."""
        return self._ratio / self.steered_tokens if self.steered_tokens else float("nan")

    @background
    def generate(self, prompts: Data, **options: Any) -> Generations:
        """`steerlab.generate` under the steering of the enclosing `with` blocks."""
        self._check()
        found = run_generate(self.model, prompts, _active(self.model), **options)
        self._count(found.steered_tokens, found.norm_ratio)
        return found

    @background
    def score(self, prompts: Data, answers: Sequence[str], **options: Any) -> pd.DataFrame:
        """`steerlab.score` under the steering of the enclosing `with` blocks."""
        self._check()
        found = run_score(self.model, prompts, answers, _active(self.model), **options)
        self._count(found.attrs["steered_tokens"], found.attrs["norm_ratio"])
        return found

    def _count(self, written: int, ratio: float) -> None:
        self.steered_tokens += written
        self._ratio += ratio * written if written else 0.0

    def _check(self) -> None:
        if not any(run is self for run, _ in active_steering(self.model)):
            raise SteeringError(
                "this run has ended (its `with steer(...)` block was left), or it belongs to another thread: "
                "nothing would be steered"
            )


# the open `with steer(...)` statements of this thread
_stack: ContextVar[tuple[tuple[Run, list[Request]], ...]] = ContextVar("steering", default=())


def active_steering(model: Model) -> list[tuple[Run, list[Request]]]:
    """The open `with steer(model, ...)` statements around the call in this thread, outermost first."""
    return [entry for entry in _stack.get() if entry[0].model is model]


@contextmanager
def steer(
    model: Model, steerer: Steer, *, alpha: Alpha = 1.0, positions: Positions | None = None, scale: Scale = "raw"
) -> Iterator[Run]:
    """Steer a model inside a `with` block; afterwards, also after an exception, it is as it was.

    Several steerers, in a list or in nested blocks, **add up**: each is computed from the state before any of them,
    and the sum is formed in float32.

    Example:
        >>> with steerlab.steer(model, l2s, alpha=1.0) as run:
        ...     texts = run.generate(["How do I pick a lock?"], max_new_tokens=60)
        >>> run.steered_tokens, round(run.norm_ratio, 2)

    Args:
        model: from `steerlab.load`.
        steerer: a fitted steerer, or several; `Request(steerer, alpha, positions)` gives one settings of its own.
        alpha: strength, one number or one per input; 0 leaves the model bit-identical.
        positions: where to write (see `steerlab.models.positions`); None: where each method is made for ("all"
            for most, "prompt" for AlphaSteer and AdaSteer).
        scale: "raw", or "norm" for alpha in units of each input's own norm at the steered layer.

    Raises:
        MismatchError: vectors of another width. LayoutError: no such layer. PositionError: no such token.
        SteeringError: alpha is not 0 and yet no token was steered, or a vector is not finite.

    Source: L2S, arXiv 2508.12815, eq. 9; own.
    """
    run = Run(model)
    entry = (run, _requests(steerer, alpha, positions, scale))
    _stack.set((*_stack.get(), entry))
    try:
        yield run
    finally:
        _stack.set(tuple(other for other in _stack.get() if other is not entry))


@background
def generate(
    model: Model,
    prompts: Data,
    *,
    steer: Steer | None = None,
    alpha: Alpha = 1.0,
    positions: Positions | None = None,
    scale: Scale = "raw",
    blocking: bool = True,  # `background` takes it
    **options: Any,
) -> Generations:
    """Generate text for a whole batch, each row with its own vector.

    Example:
        >>> steerlab.generate(model, ["Hi"], steer=l2s, alpha=1.0, max_new_tokens=20)[0]

    Args:
        model: from `steerlab.load`.
        prompts: texts or Examples.
        steer: steerers; None takes the steering of the enclosing `with steerlab.steer(...)` (none outside one), and
            `()` none at all.
        alpha, positions, scale: as in `steer`.
        blocking: False hands out a `Job` at once, whose `result()` are the texts; for a model on a server.
        options: `max_new_tokens` (60), `batch_size` (16), `seed` (0), `progress` (False), and anything
            Hugging Face's `generate` takes (`do_sample`, `num_beams`, `num_return_sequences`, `temperature`, ...).

    Returns:
        Generations, a sequence of texts in the order of the prompts.

    Raises:
        As `steer`; EncodingError where prompt and new tokens outgrow the model's context; RemoteError where the server
            that holds the weights did not do it.
    """
    requests = _active(model) if steer is None else _requests(steer, alpha, positions, scale)
    return run_generate(model, prompts, requests, **options)


@background
def score(
    model: Model,
    prompts: Data,
    answers: Sequence[str],
    *,
    steer: Steer | None = None,
    alpha: Alpha = 1.0,
    positions: Positions | None = None,
    scale: Scale = "raw",
    blocking: bool = True,  # `background` takes it
    **options: Any,
) -> pd.DataFrame:
    """Log-probability of given answers, by teacher forcing, each row with its own vector.

    `"generated"` and `"answer"` both mean the answer's tokens here, as they would be while decoding them.

    Example:
        >>> steerlab.score(model, ["2 + 2 ="], ["4"])[["example_id", "logprob", "n_tokens"]]

    Args:
        model, prompts, steer, alpha, positions, scale, blocking: as in `generate`.
        answers: one for each prompt.
        options: `batch_size` (16), `progress` (False).

    Returns:
        A frame with `example_id`, `logprob` (nats, summed over the answer), `n_tokens` and `greedy` (share of the
        answer's tokens that are the model's first choice); `.attrs` has `steered_tokens` and `norm_ratio`.

    Raises:
        DataError: not one nonempty answer per prompt; otherwise as `steer`.
    """
    requests = _active(model) if steer is None else _requests(steer, alpha, positions, scale)
    return run_score(model, prompts, answers, requests, **options)


@background
def next_token_logits(
    model: Model,
    prompts: Data,
    tokens: Sequence[int] | None = None,
    *,
    steer: Steer | None = None,
    alpha: Alpha = 1.0,
    positions: Positions | None = None,
    scale: Scale = "raw",
    blocking: bool = True,  # `background` takes it
    **options: Any,
) -> Float[Tensor, "row token"]:
    """Logits of the first new token, each row with its own vector: what is said, without generating it.

    Example:
        >>> yes, no = steerlab.metrics.yes_no_ids(model.tokenizer)
        >>> logits = steerlab.next_token_logits(model, questions, [*yes, *no], steer=l2s, positions="last")

    Args:
        model, prompts, steer, alpha, positions, scale, blocking: as in `generate`.
        tokens: ids of the tokens wanted; None for the whole vocabulary.
        options: `max_other` (False; True adds a last column with the largest logit among all other tokens),
            `batch_size`
            (16), `progress` (False).

    Returns:
        `(prompt, token)` float32 on the host, in the order of the prompts.

    Raises:
        DataError: no tokens, or `max_other` without tokens; otherwise as `steer`.

    Source: own.
    """
    requests = _active(model) if steer is None else _requests(steer, alpha, positions, scale)
    return run_first_logits(model, prompts, tokens, requests, **options)


def _active(model: Model) -> list[Request]:
    return [request for _, requests in active_steering(model) for request in requests]


def _requests(steerer: Steer, alpha: Alpha, positions: Positions | None, scale: Scale) -> list[Request]:
    given = [steerer] if isinstance(steerer, Steerer | Request) else list(steerer)
    return [one if isinstance(one, Request) else Request(one, alpha, positions, scale) for one in given]
