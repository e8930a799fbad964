"""Perplexity against a log-softmax over plain Hugging Face logits, one row at a time."""

from collections.abc import Callable

import numpy as np
import plain
import pytest
import torch

from steerlab import SteeringVector, generate, score, steer
from steerlab.metrics import perplexity
from steerlab.models.model import Model
from steerlab.testing import tiny_lm

PROMPTS = ["Tell me of the Nile.", "Hi", "What does a heron eat, and where does it sleep at night?"]
TEXTS = ["It is long and has many reeds.", "ok", "Fish, in the end."]


def by_hand(model: Model, prompt: str, text: str) -> float:
    """The exponential of the mean surprise of the answer's tokens, from the model alone."""
    ids, n = plain.chat_ids(model, prompt, text)
    return float(np.exp(-plain.answer_logprob(model, prompt, text) / (len(ids) - n)))


@pytest.mark.parametrize("backend", ["nnsight", "hooks"])
@pytest.mark.parametrize("batch_size", [1, 16])
def test_perplexity_equals_plain_hugging_face_logits(lm: Callable[..., Model], backend: str, batch_size: int) -> None:
    model = lm("llama", backend)
    expected = [by_hand(model, prompt, text) for prompt, text in zip(PROMPTS, TEXTS, strict=True)]
    assert len({round(value, 3) for value in expected}) == 3, "the premise"
    np.testing.assert_allclose(perplexity(model, PROMPTS, TEXTS, batch_size=batch_size), expected, rtol=1e-4)


def test_perplexity_inside_a_steering_block_is_unsteered(lm: Callable[..., Model]) -> None:
    model = lm("llama", "nnsight")
    vector = torch.randn(model.hidden_size, generator=torch.Generator().manual_seed(0))
    before, said = perplexity(model, PROMPTS, TEXTS), score(model, PROMPTS, TEXTS)
    with steer(model, SteeringVector({1: vector}), alpha=5.0) as run:
        assert run.score(PROMPTS, TEXTS)["logprob"].tolist() != said["logprob"].tolist(), "steering matters here"
        np.testing.assert_array_equal(perplexity(model, PROMPTS, TEXTS), before)


def test_perplexity_of_an_empty_answer_is_nan(lm: Callable[..., Model]) -> None:
    model = lm()
    found = perplexity(model, PROMPTS, ["", TEXTS[1], "  "])
    np.testing.assert_array_equal(np.isnan(found), [True, False, True])
    assert found[1] == pytest.approx(by_hand(model, PROMPTS[1], TEXTS[1]), rel=1e-4)
    assert np.isnan(perplexity(model, PROMPTS[:1], [""])).all()


def test_texts_of_a_model_without_a_template_are_scored_as_the_tokens_that_were_generated() -> None:
    model = tiny_lm("llama", backend="hooks")
    model.chat = False
    prompts = ["The Nile is", "A heron eats", "It is"]
    (space, *letters) = model.tokenizer(" bdf", add_special_tokens=False).input_ids
    found = generate(
        model, prompts, max_new_tokens=4, progress=False,
        prefix_allowed_tokens_fn=lambda row, ids: [space] if len(ids) == len(model.encode(prompts[row])) else letters,
    )  # fmt: skip
    assert all(text.startswith(" ") for text in found)
    expected = []
    for prompt, new in zip(prompts, found.ids, strict=True):
        ids = torch.tensor([[*model.encode(prompt).ids, *new]])
        with torch.no_grad():
            logprobs = model.hf(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
        expected.append(float(logprobs[:-1].gather(-1, ids[0, 1:, None])[-len(new) :].mean().neg().exp()))
    np.testing.assert_allclose(perplexity(model, prompts, found.texts), expected, rtol=1e-4)
