"""64 concurrent requests in a real model, each with its own vector, give the texts of single runs."""

from typing import Any

import pytest
import torch
from steerers import examples, fitted_l2s

from steerlab import L2S, capture, generate, next_token_logits
from steerlab.data.inputs import as_examples
from steerlab.methods import P2S
from steerlab.models.model import Model

pytestmark = [pytest.mark.vllm, pytest.mark.nightly]
N, STEPS, ALPHA, SOME = 64, 5, 1.5, 16
PROMPTS = [example.prompt for example in examples(N)]


@pytest.fixture(scope="module")
def model(remote) -> Model:
    return remote("smollm2")


@pytest.fixture(scope="module")
def l2s(model: Model) -> L2S:
    """Fitted to states that were captured in vLLM."""
    return fitted_l2s(model, N)


@pytest.fixture(scope="module")
def together(model: Model, l2s: L2S) -> Any:
    return generate(model, PROMPTS, steer=l2s, alpha=ALPHA, max_new_tokens=STEPS, batch_size=N)


def vectors_of(model: Model, l2s: L2S) -> torch.Tensor:
    options = {"layers": [l2s.required_activations[0].site], "positions": "last", "batch_size": N, "progress": False}
    return l2s.predict(capture(model, PROMPTS, **options).values[:, 0])


def test_64_concurrent_texts_match_their_single_runs(model: Model, l2s: L2S, together: Any) -> None:
    vectors = vectors_of(model, l2s)
    distances = (vectors[:, None] - vectors[None]).norm(dim=-1) / vectors.norm(dim=-1).mean()
    assert len(set(PROMPTS)) == N and float((distances + torch.eye(N)).min()) > 0.02  # 64 vectors, and no two alike
    options: dict[str, Any] = dict(steer=l2s, alpha=ALPHA, max_new_tokens=STEPS)
    alone = [generate(model, [prompt], **options) for prompt in PROMPTS]
    assert [i for i, one in enumerate(alone) if one.ids[0] != together.ids[i]] == []
    assert together.steered_tokens == sum(one.steered_tokens for one in alone)


def test_concurrent_texts_match_hugging_face_and_are_steered(model: Model, near, l2s: L2S, together: Any) -> None:
    options: dict[str, Any] = dict(max_new_tokens=STEPS, batch_size=N)
    assert generate(near("smollm2"), PROMPTS[::4], steer=l2s, alpha=ALPHA, **options).ids == together.ids[::4]
    plain = generate(model, PROMPTS, **options)
    assert sum(a != b for a, b in zip(plain.ids, together.ids, strict=True)) > N / 2


def test_vectors_of_other_rows_change_the_texts(model: Model, l2s: L2S, together: Any) -> None:
    """Shows that the comparisons above would notice swapped rows."""
    vectors = vectors_of(model, l2s)

    def ids(given: torch.Tensor) -> tuple[tuple[int, ...], ...]:
        table = P2S.from_table(l2s.site, {e.id: v for e, v in zip(as_examples(PROMPTS[:SOME]), given, strict=False)})
        return generate(model, PROMPTS[:SOME], steer=table, alpha=ALPHA, max_new_tokens=STEPS, batch_size=N).ids

    assert ids(vectors) == together.ids[:SOME]
    assert sum(a != b for a, b in zip(ids(vectors.roll(5, 0)), together.ids, strict=False)) > SOME / 4


def test_logits_match_hugging_face(model: Model, near) -> None:
    ours = next_token_logits(model, PROMPTS[::4], batch_size=N)
    assert float((ours - next_token_logits(near("smollm2"), PROMPTS[::4], batch_size=N)).abs().max()) < 1e-3
