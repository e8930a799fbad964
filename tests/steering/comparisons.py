"""Comparisons of a padded batch with its rows alone, which plain hooks steer."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import plain
import pytest
import torch
from fitted import ANSWERS, PROMPTS, STEPS
from torch import Tensor

from steerlab import Request, generate, score
from steerlab.data.inputs import as_examples
from steerlab.models.encoding import Batch
from steerlab.models.model import Model
from steerlab.models.sites import Site
from steerlab.steering.interventions import build_edits
from steerlab.steering.requests import resolve_interventions


def encoded(
    model: Model, side: str = "left", prompts: Sequence[Any] = PROMPTS, answers: Sequence[str] = ANSWERS
) -> Batch:
    """Prompts with answers as one batch."""
    rows = zip(prompts, answers, strict=True)
    return model.batch([model.encode(p, answer=a, example_id=str(i)) for i, (p, a) in enumerate(rows)], side)


def states(model: Model, batch: Batch, edits: Any) -> Tensor:
    """`(batch, layer, tokens, hidden)` of every layer under edits."""
    sites = [Site(k) for k in range(model.n_layers)]
    return model.engine.capture_states(model.inputs(batch), edits, sites, lambda h: h.clone())


def edits_of(model: Model, batch: Batch, request: Request, prompts: Sequence[str] = PROMPTS, numbers=range(3)) -> Any:
    """What a request adds to the columns of a batch that has the prompts with the given numbers."""
    return build_edits(model, resolve_interventions(model, [request], as_examples(prompts), 16), batch, numbers)


def check_padding(model: Model, request: Request, side: str) -> None:
    """Every state of a padded batch equals that of its row alone."""
    batch = encoded(model, side)
    together = states(model, batch, edits_of(model, batch, request))
    for number, row in enumerate(batch.rows):
        single = model.batch([row])
        expected = states(model, single, edits_of(model, single, request, numbers=[number]))[0]
        here = together[number, :, batch.offsets[number] :][:, : len(row)]
        torch.testing.assert_close(here, expected, rtol=1e-5, atol=1e-5)


def check_hooks(
    model: Model, request: Request, hooks: Callable[[int, str], Iterable[AbstractContextManager]],
    prompts: Sequence[str] = PROMPTS, answers: Sequence[str] = ANSWERS,
) -> tuple[Any, Any, Any]:  # fmt: skip
    """States, scores and greedy ids of a padded batch equal those of every row alone under its plain hooks.

    `hooks(number, prompt)` returns the hooks of a row; the row with its answer runs first, the last new token last.
    Returns the scores, and the texts generated with and without a cache.
    """
    scored = score(model, prompts, answers, steer=request)
    cached = generate(model, prompts, steer=request, max_new_tokens=STEPS)
    uncached = generate(model, prompts, steer=request, max_new_tokens=STEPS, use_cache=False)
    assert (cached.ids, cached.steered_tokens) == (uncached.ids, uncached.steered_tokens)
    batch = encoded(model, "left", prompts, answers)
    together = states(model, batch, edits_of(model, batch, request, prompts))
    for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        ids, _ = plain.chat_ids(model, prompt, answer)
        with plain.under(hooks(number, prompt)):
            logprob = plain.answer_logprob(model, prompt, answer)
            alone, new = torch.stack(plain.hidden(model, ids)), plain.new_ids(model, prompt, STEPS)
        assert scored["logprob"][number] == pytest.approx(logprob, abs=1e-4)
        off = (together[number, :, -len(ids) :] - alone).norm(dim=-1) / alone.norm(dim=-1)
        assert float(off.max()) < 1e-5, "of the norm of each state"
        assert cached.ids[number] == new
    return scored, cached, uncached


def check_copies(model: Model, request: Request) -> Any:
    """Beams of a batch equal those of each row alone, and samples of the likeliest token equal the greedy texts.

    Returns the beams, two of each row.
    """
    options = {"steer": request, "max_new_tokens": STEPS}
    beams, *alone = (
        generate(model, prompts, num_beams=3, num_return_sequences=2, **options)
        for prompts in (PROMPTS, *([prompt] for prompt in PROMPTS))
    )
    assert beams.ids == tuple(ids for one in alone for ids in one.ids)
    greedy = generate(model, PROMPTS, **options)
    drawn = generate(model, PROMPTS, do_sample=True, top_k=1, num_return_sequences=3, **options)
    assert drawn.ids == tuple(ids for ids in greedy.ids for _ in range(3))
    assert drawn.steered_tokens == 3 * greedy.steered_tokens
    assert drawn.norm_ratio == pytest.approx(greedy.norm_ratio, rel=1e-5, nan_ok=True)
    return beams
