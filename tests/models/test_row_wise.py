"""What verbs ask of logits, asked of each row by itself: the same answers, so that rows may be apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import steerlab
from steerlab import Contrast, Example, MeanDifference
from steerlab.models._hooks import HooksEngine
from steerlab.models._nnsight.vllm_rows import joined
from steerlab.models.engine import FULL_FORWARD, Inputs, LogitsReducer, PerRowReducer, identity
from steerlab.models.interventions import SiteEdits
from steerlab.models.kv_prefix import ForwardState
from steerlab.models.model import Model

PROMPTS = ["hello there", "how are you today, my friend?", "no", "what is the time"]
PAIRS = [Example(str(i), p, "b", Contrast("Sure, why not", "Sure. Never")) for i, p in enumerate(PROMPTS)]


class Apart(HooksEngine):
    """Asks every row by itself, and keeps how many it asked."""

    rows = 0

    def logits(
        self,
        inputs: Inputs,
        plan: SiteEdits,
        keep: int | Tensor,
        forward_state: ForwardState = FULL_FORWARD,
        reduce: LogitsReducer = identity,
    ) -> Any:
        logits = super().logits(inputs, plan, keep, forward_state)
        if not isinstance(reduce, PerRowReducer):
            return reduce(logits)
        self.rows += len(logits)
        return joined([reduce.for_row(i)(logits[i : i + 1]) for i in range(len(logits))])


def swept(model: Model, metrics: list[str]) -> Tensor:
    vectors = {k: MeanDifference.from_tensor(k, torch.ones(model.hidden_size)) for k in (0, 2)}
    frame = steerlab.sweep(model, {"m": vectors}, PAIRS, alphas=[-1.0, 0.0, 2.0], metric=metrics, progress=False)
    return torch.tensor(frame["value"].to_numpy())


VERBS: dict[str, Callable[[Model], Tensor]] = {
    "first logits": lambda m: steerlab.next_token_logits(m, PROMPTS),
    "of some tokens": lambda m: steerlab.next_token_logits(m, PROMPTS, [3, 5]),
    "and the best of the rest": lambda m: steerlab.next_token_logits(m, PROMPTS, [5, 3], max_other=True),
    "scores": lambda m: torch.tensor(
        steerlab.score(m, PROMPTS, ["yes", "no, never", "why not?", "I see"])[["logprob", "greedy"]].to_numpy()
    ),
    "a sweep of first tokens": lambda m: swept(m, ["propensity", "answer_probability", "accuracy"]),
    "a sweep of whole answers": lambda m: swept(m, ["logprob", "logit_sum_difference"]),
}


@pytest.mark.parametrize("verb", VERBS)
def test_rows_asked_one_by_one_answer_as_they_do_together(lm: Callable[..., Model], verb: str) -> None:
    near = lm("llama", "hooks")
    apart = Apart(near.hf, near.layout)
    model = Model(near.hf, near.tokenizer, near.layout, id=near.id, backend="hooks", engine=apart)
    torch.testing.assert_close(VERBS[verb](model), VERBS[verb](near), rtol=1e-6, atol=1e-6)
    assert apart.rows >= len(PROMPTS), "the verb's question is one that rows can be asked"
