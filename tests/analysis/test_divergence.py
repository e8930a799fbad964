"""The KL of two models on the same texts, against plain Hugging Face, row by row."""

from __future__ import annotations

import pytest
import torch
from transformers import RecurrentGemmaConfig, RecurrentGemmaForCausalLM

import steerlab
from steerlab import Request
from steerlab.analysis.divergence import text_divergence
from steerlab.errors import DataError, MismatchError, SteeringError
from steerlab.methods import Prompt
from steerlab.models.model import Model
from steerlab.testing import FAMILIES, tiny_lm, tiny_tokenizer
from steerlab.testing.text import seeded

PROMPTS, ANSWERS = ["red cat", "a small house by the river", "no"], [" blue dog", " yes it is", " one two three four"]


def recurrent_lm() -> Model:
    """A model whose rows take no padding on the left."""
    config = RecurrentGemmaConfig(
        vocab_size=len(tiny_tokenizer()), hidden_size=32, intermediate_size=64, num_hidden_layers=3, lru_width=32,
        num_attention_heads=4, attention_window_size=16,
    )  # fmt: skip
    with seeded(0), torch.no_grad():
        hf = RecurrentGemmaForCausalLM(config).eval()
        for parameter in hf.parameters():
            parameter.normal_(std=0.2) if parameter.ndim > 1 else None
    return steerlab.load(hf, tokenizer=tiny_tokenizer(), backend="hooks")


@pytest.mark.parametrize("family", [*FAMILIES, "recurrent"])
def test_kl_of_each_row_is_that_of_plain_hugging_face(family: str) -> None:
    known = family != "recurrent"
    model = tiny_lm(family if known else "llama", backend="hooks")
    reference = tiny_lm(family, backend="hooks", seed=3) if known else recurrent_lm()
    assert reference.row_format.may_pad("left") == known
    for first in ("model", "reference"):
        frame = text_divergence(model, reference, PROMPTS, ANSWERS, first=first, batch_size=2, progress=False)
        for prompt, answer, kl in zip(PROMPTS, ANSWERS, frame["kl"], strict=True):
            row = model.encode(prompt, answer=answer)
            with torch.no_grad():
                logprobs = [
                    one.hf(torch.tensor([row.ids])).logits[0, row.n_prompt - 1 : -1].log_softmax(-1)
                    for one in ((model, reference) if first == "model" else (reference, model))
                ]
            wanted = (logprobs[0].exp() * (logprobs[0] - logprobs[1])).sum(-1).mean()
            assert kl == pytest.approx(float(wanted), rel=1e-3, abs=1e-5)


def test_steering_is_of_the_model_alone_and_none_is_zero() -> None:
    model = tiny_lm("llama", backend="hooks")
    assert text_divergence(model, model, PROMPTS, ANSWERS, progress=False)["kl"].max() < 1e-6
    vector = {1: torch.ones(model.hidden_size)}
    weak, strong = (
        text_divergence(model, model, PROMPTS, ANSWERS, steer=Request(vector, a, "all"), progress=False)["kl"]
        for a in (0.1, 1.0)
    )
    assert (strong > weak).all() and (weak > 0).all()


def test_models_that_read_other_tokens_and_missing_answers_are_refused() -> None:
    model, other = tiny_lm("llama", backend="hooks"), tiny_lm("gpt2", backend="hooks")
    with pytest.raises(DataError, match="give one for each"):
        text_divergence(model, model, PROMPTS, ["", *ANSWERS[1:]], progress=False)
    other.chat = not model.chat
    with pytest.raises(MismatchError, match="as other tokens"):
        text_divergence(model, other, PROMPTS, ANSWERS, progress=False)
    with pytest.raises(SteeringError, match="changes the prompts"):
        text_divergence(model, model, PROMPTS, ANSWERS, steer=Prompt(), progress=False)


def test_reference_is_unsteered_inside_a_block_that_steers_it() -> None:
    model, reference = tiny_lm("llama", backend="hooks"), tiny_lm("llama", backend="hooks", seed=3)
    plain = text_divergence(model, reference, PROMPTS, ANSWERS, progress=False)["kl"]
    with steerlab.steer(reference, {1: torch.ones(model.hidden_size)}, alpha=2.0, positions="all") as run:
        inside = text_divergence(model, reference, PROMPTS, ANSWERS, progress=False)["kl"]
        run.generate(PROMPTS[:1], max_new_tokens=1)
    assert inside.tolist() == plain.tolist()
