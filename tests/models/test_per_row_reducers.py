"""The logits reducers of all verbs give the same values when applied to one row at a time."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import steerlab
from steerlab import Contrast, Example, SteeringVector
from steerlab.models._hooks import HooksEngine
from steerlab.models._nnsight.vllm_requests import join_reduced
from steerlab.models.engine import FULL_FORWARD, PerRowReducer, identity
from steerlab.models.model import Model

PROMPTS = ["hello there", "how are you today, my friend?", "no", "what is the time"]
PAIRS = [Example(p, Contrast("Sure, why not", "Sure. Never"), id=str(i), behavior="b") for i, p in enumerate(PROMPTS)]


class PerRowEngine(HooksEngine):
    """Applies reducers to each row, and counts the rows."""

    rows = 0

    def logits(self, inputs: Any, edits: Any, keep: Any, start: Any = FULL_FORWARD, reduce: Any = identity) -> Any:
        logits = super().logits(inputs, edits, keep, start)
        if not isinstance(reduce, PerRowReducer):
            return reduce(logits)
        self.rows += len(logits)
        return join_reduced([reduce.for_row(i)(logits[i : i + 1]) for i in range(len(logits))])


def sweep_values(model: Model, metrics: list[str]) -> Tensor:
    vectors = {k: SteeringVector({k: torch.ones(model.hidden_size)}) for k in (0, 2)}
    frame = steerlab.sweep(model, PAIRS, {"m": vectors}, alphas=[-1.0, 0.0, 2.0], metric=metrics, progress=False)
    return torch.tensor(frame["value"].to_numpy())


VERBS: dict[str, Callable[[Model], Tensor]] = {
    "first logits": lambda m: steerlab.next_token_logits(m, PROMPTS),
    "of some tokens": lambda m: steerlab.next_token_logits(m, PROMPTS, [3, 5]),
    "and the best of the rest": lambda m: steerlab.next_token_logits(m, PROMPTS, [5, 3], max_other=True),
    "scores": lambda m: torch.tensor(
        steerlab.score(m, PROMPTS, ["yes", "no, never", "why not?", "I see"])[["logprob", "greedy"]].to_numpy()
    ),
    "a sweep of first tokens": lambda m: sweep_values(m, ["propensity", "answer_probability", "accuracy"]),
    "a sweep of whole answers": lambda m: sweep_values(m, ["logprob", "logit_sum_difference"]),
}


@pytest.mark.parametrize("verb", VERBS)
def test_reduced_per_row_matches_reduced_at_once(lm: Callable[..., Model], verb: str) -> None:
    whole = lm("llama", "hooks")
    engine = PerRowEngine(whole.hf, whole.layout)
    model = Model(whole.hf, whole.tokenizer, whole.layout, id=whole.id, backend="hooks", engine=engine)
    torch.testing.assert_close(VERBS[verb](model), VERBS[verb](whole), rtol=1e-6, atol=1e-6)
    assert engine.rows >= len(PROMPTS), "the reducer is a PerRowReducer"
