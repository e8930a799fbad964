"""How strong is too strong: the strength at which a steered model is a given distance from the unsteered one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, isnan

import pandas as pd

from steerlab._support.checks import as_number
from steerlab.analysis._dose import AnsweredPrompts, Dose
from steerlab.data.inputs import Data, as_examples
from steerlab.errors import SteeringError
from steerlab.methods.base import Intervention, Steerer
from steerlab.methods.vector import Vectors, as_steerer
from steerlab.metrics import is_fluent, perplexity
from steerlab.models.model import Model
from steerlab.models.positions import Positions
from steerlab.steering import generate
from steerlab.steering.batches import Steer, as_requests
from steerlab.steering.generate import NEW_TOKENS
from steerlab.steering.interventions import BatchedSetting
from steerlab.steering.requests import Scale, resolve_interventions

LOWEST, HIGHEST = 2.0**-16, 2.0**16  # the strengths that are tried


@dataclass(frozen=True)
class Strength:
    """The strength at which a steerer has a given distance, and what was tried on the way.

    Attributes:
        alpha: the largest strength tried whose distance is within the budget.
        kl: the distance at `alpha`, in nats.
        curve: one row for each strength tried: `alpha, kl, norm_ratio` (mean ‖h' - h‖/‖h‖ over the states changed).
    """

    alpha: float
    kl: float
    curve: pd.DataFrame


def calibrate_strength(
    model: Model,
    data: Data,
    steer: Steerer | Vectors,
    *,
    kl: float = 1.0,
    quantile: float = 0.95,
    max_new_tokens: int = 50,
    positions: Positions | None = None,
    scale: Scale = "raw",
    batch_size: int = 4,
) -> Strength:
    """Find the strength at which the next-token distributions differ by a given amount from the unsteered ones.

    The unsteered model answers the prompts; for every token of its answers, KL(steered, unsteered) of the distribution
    that predicts it is computed. The strength is the largest of those tried, to within 2 %, at which the `quantile` of
    these numbers is at most `kl`. Steerers calibrated with the same budget can be compared at equal dose.

    Example:
        >>> found = calibrate_strength(model, prompts[:32], l2s, kl=1.0)
        >>> texts = steerlab.generate(model, prompts, steer=l2s, alpha=found.alpha)

    Args:
        model: from `steerlab.load`.
        data: prompts, as in `generate`; some tens are enough.
        steer: a fitted steerer, or vectors by layer.
        kl: the budget in nats per token.
        quantile: which of the per-token numbers has to meet it, above 0 and at most 1.
        max_new_tokens: length of the unsteered answers.
        positions, scale: as in `steer`.
        batch_size: rows of a forward; the logits of all their answers' tokens are held at once.

    Returns:
        A `Strength`.

    Raises:
        SteeringError: no strength reaches the budget, or even the weakest is beyond it; otherwise as `measure_dose`.
        DataError: a number out of range.
    """
    as_number("kl", kl, 1e-6)
    answers = AnsweredPrompts.of(
        model, data, as_steerer(steer, model.n_layers), None, quantile, max_new_tokens, positions, scale, batch_size
    )
    limit = _limit(answers.settings)
    tried: dict[float, tuple[float, float]] = {}

    def within(alpha: float) -> bool:
        dose = answers.dose(alpha)
        tried[alpha] = (dose.kl, dose.norm_ratio)
        return dose.kl <= kl

    alpha = _search(within, limit)
    if alpha is None and min(tried) <= LOWEST:
        raise SteeringError(f"even at alpha {LOWEST:g} the distance is {tried[min(tried)][0]:.3g} nats, above {kl:g}")
    if alpha is None:
        which = "its operator takes" if limit < HIGHEST else "was tried"
        raise SteeringError(
            f"no strength of {answers.name} reaches a distance of {kl:g} nats: at alpha {max(tried):g}, the "
            f"strongest that {which}, it is {tried[max(tried)][0]:.3g}"
        )
    curve = pd.DataFrame([(a, *tried[a]) for a in sorted(tried)], columns=["alpha", "kl", "norm_ratio"])
    return Strength(alpha, tried[alpha][0], curve)


def measure_dose(
    model: Model,
    data: Data,
    steer: Steer,
    *,
    alpha: float = 1.0,
    quantile: float = 0.95,
    max_new_tokens: int = 50,
    positions: Positions | None = None,
    scale: Scale = "raw",
    batch_size: int = 4,
) -> Dose:
    """Measure the dose of a steerer at one strength, as `calibrate_strength` does.

    Example:
        >>> measure_dose(model, prompts[:32], Request(l2s, alpha=0.8)).kl

    Args:
        model, data, quantile, max_new_tokens, batch_size: as in `calibrate_strength`.
        steer, alpha, positions, scale: as in `steer`.

    Returns:
        A `Dose`.

    Raises:
        SteeringError: none of the inputs is changed; a prompt is changed (its tokens can't be compared).
        DataError: a number out of range.
    """
    as_number("alpha", alpha)
    return AnsweredPrompts.of(model, data, steer, alpha, quantile, max_new_tokens, positions, scale, batch_size).dose()


def find_breaking_norm_ratio(
    model: Model,
    data: Data,
    steer: Steerer | Vectors,
    *,
    fluent: float = 0.5,
    max_perplexity: float = 5.75,
    max_new_tokens: int = NEW_TOKENS,
    positions: Positions | None = None,
    scale: Scale = "raw",
    batch_size: int = 16,
) -> pd.DataFrame:
    """Find the norm ratio from which on texts break, and remember it as `model.breaking_norm_ratio`.

    The strength is doubled and then bisected to 10 %, until the share of fluent texts falls below `fluent`. From then
    on `generate` warns where a norm ratio reaches this one. Steerers differ in what they can do before texts break:
    measure it with the one, at the site and positions, that is used.

    Example:
        >>> find_breaking_norm_ratio(model, prompts[:16], l2s)
        >>> model.breaking_norm_ratio

    Args:
        model, data, max_new_tokens, positions, scale, batch_size: as in `generate`.
        steer: one fitted steerer, or vectors by layer.
        fluent: the share of texts that have to be fluent (`metrics.is_fluent`).
        max_perplexity: of a fluent text, under the unsteered model. The default was chosen for a model of 135 million
            parameters; give a larger one where a model's own answers come near it.

    Returns:
        What was tried: `alpha, norm_ratio, fluent`, by alpha.

    Raises:
        SteeringError: no strength breaks the texts, or even the weakest does, or they are broken unsteered.
    """
    as_number("fluent", fluent, 1e-6, 1.0)
    as_number("max_perplexity", max_perplexity, 1.0)
    (request,) = as_requests(model, as_steerer(steer, model.n_layers), 1.0, positions, scale)
    examples = as_examples(data)
    settings = resolve_interventions(model, [request], examples, batch_size, check_alpha=False)
    tried: dict[float, tuple[float, float]] = {}

    def within(alpha: float) -> bool:
        texts = generate(
            model, examples, steer=request.steerer if alpha else (), alpha=alpha, positions=positions, scale=scale,
            max_new_tokens=max_new_tokens, batch_size=batch_size, progress=False,
        )  # fmt: skip
        likely = perplexity(model, examples, list(texts), batch_size=batch_size, progress=False)
        passed = [
            is_fluent(text, perplexity=None if isnan(one) else one, max_perplexity=max_perplexity)
            for text, one in zip(texts, likely, strict=True)
        ]
        tried[alpha] = texts.norm_ratio, sum(passed) / len(passed)
        return tried[alpha][1] >= fluent

    if not within(0.0):
        raise SteeringError(
            f"without steering {tried[0.0][1]:.0%} of these texts are fluent, below fluent={fluent:g}: give a larger "
            f"max_perplexity than {max_perplexity:g} if they read well"
        )
    del tried[0.0]
    limit, known = _limit(settings), model.breaking_norm_ratio
    model.breaking_norm_ratio = None  # no warnings while it is measured
    try:
        if _search(within, limit, 1.1) is None:
            raise SteeringError(
                f"at alpha {max(tried):g} the share of fluent texts is {tried[max(tried)][1]:.0%}, and at "
                f"{min(tried):g} {tried[min(tried)][1]:.0%}: no strength between divides them"
            )
        known = min(ratio for ratio, share in tried.values() if share < fluent)
    finally:
        model.breaking_norm_ratio = known
    return pd.DataFrame([(a, *tried[a]) for a in sorted(tried)], columns=["alpha", "norm_ratio", "fluent"])


def _limit(settings: Sequence[BatchedSetting]) -> float:
    """The largest alpha that the operators of all interventions take."""
    return min([_highest(one) for setting in settings for one in setting.interventions] + [HIGHEST])


def _highest(intervention: Intervention) -> float:
    """The largest alpha that an operator takes, with the largest gate."""
    largest = 1.0 if intervention.gate is None else float(intervention.gate.float().max())
    return intervention.rule.operator.strengths[1] / max(largest, 1e-30)


def _search(within: Callable[[float], bool], limit: float, precision: float = 1.02) -> float | None:
    """The largest strength found within the budget: doubled or halved until it is enclosed, then bisected."""
    low, high = 0.0, inf
    alpha = min(1.0, limit)
    while not (low and high < inf):
        if within(alpha):
            low = alpha
            if alpha >= limit:
                return None
            alpha = min(2 * alpha, limit)
        else:
            high = alpha
            alpha /= 2
            if alpha < LOWEST:
                return None
    while high / low > precision:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if within(middle) else (low, middle)
    return low
