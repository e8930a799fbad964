"""LongRoPE: one row beyond a limit has all rows of its forward rotated by other factors; each must be as alone."""

from typing import Any

import pytest
import torch

from steerlab import Contrast, Example, SteeringVector, sweep
from steerlab.analysis.patching import patch
from steerlab.analysis.texts import write_texts
from steerlab.analysis.token_effects import token_effects
from steerlab.capturing import capture
from steerlab.cli.talk import Talk
from steerlab.errors import EncodingError
from steerlab.models.model import Model
from steerlab.steering import generate
from steerlab.testing import tiny_lm

VECTOR = SteeringVector({1: torch.ones(32)})
SHORT = "Tell me of bread."


def rotated_from(limit: int, **options: Any) -> Model:
    """A model whose rows beyond `limit` tokens are rotated by other factors."""
    half, place = 4, "original_max_position_embeddings"  # numbers that are rotated, of a head of 8
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * half, "long_factor": [4.0] * half}
    options |= {"rope_parameters": rope | {place: limit}, place: limit}
    return tiny_lm("phi3", backend="hooks", **options)


@torch.no_grad()
def logprobs_alone(model: Model, ids: list[int]) -> torch.Tensor:
    """Of each token after the first, by plain Hugging Face."""
    logits = model.hf(torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
    return logits[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]


@pytest.mark.parametrize("limit", [60, 100])
def test_rows_are_generated_captured_and_written_as_alone(limit: int) -> None:
    model, long = rotated_from(limit), SHORT + " Tell me of bread." * 11
    alone = generate(model, [SHORT], max_new_tokens=6).ids[0]
    assert generate(model, [long, SHORT], max_new_tokens=6).ids[1] == alone
    assert not model.row_format.neutral_sides and not model.shortcuts.prefix
    fresh = rotated_from(limit)
    texts = write_texts(fresh, [long, SHORT], VECTOR, [0.0], max_new_tokens=6)
    assert texts["text"].tolist()[1] == model.tokenizer.decode(alone, skip_special_tokens=True)


def test_a_prompt_with_a_long_answer_is_captured_as_alone() -> None:
    model, prompt = rotated_from(100), "Tell me of bread. " * 3
    contrast = Contrast("Bread is baked of flour. " * 3, "No.")
    assert len(model.encode(prompt)) <= 100 < len(model.encode(prompt, answer=contrast.positive))
    pair = capture(model, [Example(prompt, contrast)], layers=[1, 3], progress=False).select(side="prompt")
    assert torch.allclose(pair.values, capture(model, [prompt], layers=[1, 3], progress=False).values, atol=1e-5)


def test_a_row_that_leaves_a_window_too_keeps_padding_off() -> None:
    model = rotated_from(100, sliding_window=200)
    alone = capture(model, [SHORT], layers=[3], progress=False).values
    for times in (6, 15, 6):
        beside = capture(model, [SHORT, "Tell me of bread. " * times], layers=[3], progress=False).values
        assert torch.allclose(beside[:1], alone, atol=1e-5) and not model.row_format.neutral_sides


def test_sweep_counts_the_longer_of_both_answers() -> None:
    model, long = rotated_from(128), "Yes, it is quite so. " * 6
    rows = [Example("Why is it?", Contrast("No", "So")), Example("Why is it so?", Contrast(long, long[::-1]))]
    found = sweep(model, rows, VECTOR, alphas=[0.0], metric="logprob", progress=False)
    encoded = [model.encode(row.prompt, answer=row.contrast.positive) for row in rows if row.contrast]
    alone = [float(logprobs_alone(model, list(row.ids))[row.n_prompt - 1 :].sum()) for row in encoded]
    assert found["value"].tolist() == pytest.approx(alone, abs=1e-3)
    with pytest.raises(EncodingError, match="Give answers of equal length"):
        sweep(rotated_from(128), [Example("Why?", Contrast("No", long))], VECTOR, metric="logprob_difference")


@pytest.mark.parametrize(
    ("prompts", "texts"),
    [
        (["Why is it?", "Who is it?", "Why?"], [[50, 60, 70], [*range(20, 110)], [9]]),
        (["Why is it so, and what is there, my friend, who came from far?", "Why?"], [[50, 60, 70], [*range(20, 70)]]),
    ],
)
def test_token_effects_of_a_short_text_beside_a_long_one(prompts: list[str], texts: list[list[int]]) -> None:
    """In the second case only the longest prompt with the longest text would leave the limit."""
    model = rotated_from(128)
    for prompt, text, found in zip(prompts, texts, token_effects(model, prompts, texts, steer=VECTOR), strict=True):
        row = model.encode(prompt)
        alone = logprobs_alone(model, [*row.ids, *text])[len(row) - 1 :]
        assert [one["logprob"] for one in found] == pytest.approx(alone.tolist(), abs=1e-3)


def test_talk_shows_an_answer_that_leaves_the_limit() -> None:
    model = rotated_from(100)
    model.hf.generation_config.eos_token_id = None
    talk = Talk(model, {"v": VECTOR}, 2.0, max_new_tokens=30)
    talk.turns = [{"prompt": "Hi", "texts": ["a", "b b b"], "alpha": 1, "layers": {}, "positions": None}]
    assert all(talk.answer("Why is it so?"))


def test_patch_runs_a_long_corrupted_prompt_whole() -> None:
    model, clean, corrupted, column = rotated_from(128), "Paris is a town", "Rome is a town " + "and so on " * 14, 52
    rows = [list(model.encode(prompt).ids) for prompt in (clean, corrupted)]
    assert len(rows[0]) < 128 < len(rows[1])
    found = patch(
        model, [clean], [corrupted], metric=lambda logits: logits[:, 10] - logits[:, 20], layers=[1],
        alignment="start", positions=f"prompt[{column}]",
    )  # fmt: skip
    block, kept = model.hf.model.layers[1], list[torch.Tensor]()

    def write(_module: Any, _args: Any, out: Any) -> Any:
        states = (out[0] if isinstance(out, tuple) else out).clone()
        kept.append(states[0, column].clone())
        states[0, column] = kept[0]
        return (states, *out[1:]) if isinstance(out, tuple) else states

    hook = block.register_forward_hook(write)
    with torch.no_grad():
        logits = [model.hf(torch.tensor([row]), use_cache=False).logits[0, -1] for row in rows][1]
    hook.remove()
    assert found["value"][0] == pytest.approx(float(logits[10] - logits[20]), abs=1e-4)
