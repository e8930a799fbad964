"""`next_token_logits` is the last row of an ordinary forward, steered or not."""

import pytest
import torch

import steerlab
from steerlab import SteeringVector
from steerlab.errors import DataError, SteeringError
from steerlab.testing import tiny_lm

PROMPTS = ["Tell me of the Nile.", "Hi", "What does a heron eat, and where does it sleep?"]


@pytest.mark.parametrize("backend", ["hooks", "nnsight"])
def test_they_are_the_models_own_logits_row_by_row(backend: str) -> None:
    model = tiny_lm("llama", backend=backend)
    found = steerlab.next_token_logits(model, PROMPTS, batch_size=2)
    for prompt, row in zip(PROMPTS, found, strict=True):
        ids = torch.tensor([model.encode(prompt).ids])
        torch.testing.assert_close(row, model.hf(ids).logits[0, -1], rtol=1e-4, atol=1e-4)
    assert torch.equal(steerlab.next_token_logits(model, PROMPTS, [7, 3], batch_size=2), found[:, [7, 3]])


def test_they_feel_the_vector_and_agree_with_the_first_generated_token() -> None:
    model = tiny_lm("llama", backend="hooks")
    vector = SteeringVector({1: 3 * torch.randn(32, generator=torch.Generator().manual_seed(0))})
    plain = steerlab.next_token_logits(model, PROMPTS)
    steered = steerlab.next_token_logits(model, PROMPTS, steer=vector, positions="last")
    assert (plain - steered).abs().max() > 0.1
    new = steerlab.generate(model, PROMPTS, steer=vector, positions="last", max_new_tokens=1).ids
    assert [row[0] for row in new] == steered.argmax(-1).tolist()
    with steerlab.steer(model, vector, positions="last"):
        assert torch.equal(steerlab.next_token_logits(model, PROMPTS), steered)
    assert torch.equal(steerlab.next_token_logits(model, PROMPTS, steer=vector, alpha=0.0), plain)


def test_steering_without_effect_and_invalid_requests_are_refused() -> None:
    model = tiny_lm("llama", backend="hooks")
    vector = SteeringVector({1: torch.ones(32)})
    with pytest.raises(SteeringError, match=r"last\+generated"):
        steerlab.next_token_logits(model, PROMPTS, steer=vector, positions="generated")
    with pytest.raises(DataError, match="token ids"):
        steerlab.next_token_logits(model, PROMPTS, [])
