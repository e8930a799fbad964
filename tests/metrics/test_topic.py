"""The gain of an answer by its own prompt, against perplexities of single rows."""

from collections.abc import Callable

import numpy as np
import pytest

from steerlab import Example
from steerlab.errors import DataError
from steerlab.metrics import perplexity, topic_gain
from steerlab.models.model import Model

PROMPTS = ["Tell me of the Nile.", "Hi", "Tell me of the Nile.", "What does a heron eat?"]
TEXTS = ["It is long.", "ok", "I see no river.", "Fish, in the end."]


@pytest.mark.parametrize("others", [1, 2, 5])
def test_gain_is_the_mean_surprise_after_other_distinct_prompts_minus_that_after_the_own(
    lm: Callable[..., Model], others: int
) -> None:
    model = lm("llama")
    distinct = ["Tell me of the Nile.", "Hi", "What does a heron eat?"]
    found = topic_gain(model, PROMPTS, TEXTS, others=others, progress=False)
    for prompt, text, gain in zip(PROMPTS, TEXTS, found, strict=True):
        compared = [distinct[(distinct.index(prompt) + step) % 3] for step in range(1, min(others, 2) + 1)]
        own, *rest = (np.log(perplexity(model, [p], [text], progress=False)[0]) for p in (prompt, *compared))
        assert gain == pytest.approx(np.mean(rest) - own, abs=1e-4)


def test_empty_answers_have_no_topic_and_one_prompt_alone_can_not_be_compared(lm: Callable[..., Model]) -> None:
    model = lm("llama")
    assert np.isnan(topic_gain(model, PROMPTS[:2], ["", "ok"], progress=False)).tolist() == [True, False]
    with pytest.raises(DataError, match="all prompts are the same"):
        topic_gain(model, ["Hi", "Hi"], ["a", "b"], progress=False)
    systems = [Example("Hi", system=text) for text in ("Be kind.", "Be rude.")]
    assert topic_gain(model, systems, ["a", "b"], progress=False).any(), "prompts differ in the system message too"
    with pytest.raises(DataError, match="2 prompts but 1 texts"):
        topic_gain(model, PROMPTS[:2], ["a"], progress=False)
    with pytest.raises(DataError, match="others"):
        topic_gain(model, PROMPTS[:2], ["a", "b"], others=0, progress=False)
