"""The requests in force, and the batch loop of `generate`, `score` and `next_token_logits`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, TypeVar

from steerlab._support.progress import bar as progress_bar
from steerlab.data.example import Example
from steerlab.data.inputs import Data, as_examples
from steerlab.errors import SteeringError
from steerlab.methods.base import Steerer
from steerlab.methods.vector import Vectors, as_steerer
from steerlab.models.encoding import Batch, EncodedPrompt
from steerlab.models.interventions import SiteEdits
from steerlab.models.model import Model
from steerlab.models.positions import Positions, check_positions
from steerlab.models.ready import check_ready
from steerlab.steering.counts import Totals
from steerlab.steering.interventions import BatchedSetting, build_edits, writes_anything
from steerlab.steering.requests import Alpha, Request, Scale

R = TypeVar("R")
Steer = Steerer | Vectors | Request | Sequence[Steerer | Vectors | Request]
# the open `with steer(...)` statements of this thread, outermost first: each a run with its requests
OPEN_RUNS: ContextVar[tuple[tuple[Any, list[Request]], ...]] = ContextVar("OPEN_RUNS", default=())


def active_steering(model: Model) -> list[tuple[Any, list[Request]]]:
    """The open `with steer(model, ...)` statements around the call in this thread, outermost first."""
    return [entry for entry in OPEN_RUNS.get() if entry[0].model is model]


def as_requests(
    model: Model, steer: Steer | None, alpha: Alpha, positions: Positions | None, scale: Scale
) -> list[Request]:
    """One request per steerer; `steer=None` means those of the open `with steer(...)` blocks of this model.

    Raises:
        SteeringError: alpha, positions or scale beside requests, or open blocks, that have their own.
    """
    check_ready(model)
    listed = list(steer) if isinstance(steer, list | tuple) else [steer]
    own = steer is None or (listed and all(isinstance(one, Request) for one in listed))
    is_default = isinstance(alpha, int | float) and bool(alpha == 1)
    unlike = {"alpha": not is_default, "positions": positions is not None, "scale": scale != "raw"}
    if own and (given := [name for name, other in unlike.items() if other]):
        if steer is None and not active_steering(model):
            raise SteeringError(f"{given[0]}= would be ignored: nothing is steered here; give it with steer=")
        where = "the `with steer(...)` block" if steer is None else "each Request"
        raise SteeringError(f"{given[0]}= would be ignored: {where} has its own; give it there, or with a steerer here")
    if steer is None:
        return [request for _, requests in active_steering(model) for request in requests]
    return [
        one if isinstance(one, Request) else Request(as_steerer(one, model.n_layers), alpha, positions, scale)
        for one in listed
    ]


def apply_prompt_transforms(prompts: Data, requests: Sequence[Request]) -> list[Example]:
    """The prompts as examples, each changed by the steerers that change prompts (instruction baselines)."""
    examples = as_examples(prompts)
    for request in (r for r in requests if not r.is_noop):
        examples = [
            e.replace(prompt=request.steerer.transform_prompt(e.prompt)) if alpha > 0 else e
            for e, alpha in zip(examples, request.alphas(len(examples)).tolist(), strict=True)
        ]
    return examples


def encode_examples(
    model: Model, examples: Sequence[Example], answers: Sequence[str | None] | None = None
) -> list[EncodedPrompt]:
    """One row per example: its prompt, and its answer where answers are given."""
    return [
        model.encode(e.prompt, answer=answer, system=e.system, example_id=e.id, images=e.images)
        for e, answer in zip(examples, answers or [None] * len(examples), strict=True)
    ]


def run_batches(
    model: Model, settings: Sequence[BatchedSetting], rows: Sequence[EncodedPrompt],
    forward: Callable[[Batch, SiteEdits], tuple[Sequence[R], Totals]], *,
    batch_size: int, label: str, hint: str, progress: bool, in_block: bool, unpadded: bool = False,
) -> tuple[list[R], int, float]:  # fmt: skip
    """Run all rows, left-padded, in batches of similar length under the edits of all settings.

    Args:
        forward: gives a batch's results, one per row, and the totals of its edits.
        label: of the progress bar.
        hint: what to change if no state was steered.
        in_block: whether the settings are those of the open `with steer(...)` blocks, which then count what is steered.
        unpadded: whether only rows of equal length share a batch.

    Returns:
        The results in the order of the rows, the number of steered states, and their mean ‖h' - h‖/‖h‖ (nan if none).

    Raises:
        SteeringError: no state was steered although a vector is not zero.
        PositionError: a mask of positions has other rows than there are inputs.
    """
    for setting in settings:
        check_positions([setting.positions], len(rows))
    numbered = model.batches(rows, batch_size, "left", unpadded=unpadded)
    results: dict[int, R] = {}
    steered, ratios = 0, 0.0
    with progress_bar(len(rows), label, "row", progress) as bar:
        for numbers in numbered:
            batch = model.batch([rows[i] for i in numbers], "left")
            edits = build_edits(model, settings, batch, numbers)
            with model.lock:
                found, (more, total) = forward(batch, edits)
            results |= dict(zip(numbers, found, strict=True))
            steered, ratios = steered + more, ratios + total
            bar.update(len(numbers))
    for run, _ in active_steering(model) if in_block else ():
        run.count(steered, ratios, writes_anything(settings))
    if steered == 0 and writes_anything(settings):
        raise SteeringError(f"alpha is not 0 but no token was steered: {hint}")
    return [results[i] for i in range(len(rows))], steered, ratios / steered if steered else float("nan")
