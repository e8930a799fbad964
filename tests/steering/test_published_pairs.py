"""The published one-word pairs: both sides are read at a token after the word, the context before the header."""

from collections.abc import Sequence
from typing import Any

import plain
import pytest
import torch
from fitted import CONTEXT_LAYER, LAYER, PROMPTS, QUICK, backends, make_lm
from torch import Tensor

from steerlab import L2S, Example, Request, capture
from steerlab.data.contrasts import PUBLISHED_PAIRS
from steerlab.data.inputs import as_examples
from steerlab.methods import P2S
from steerlab.models.model import Model
from steerlab.steering.requests import resolve_interventions

# the classes of the three inputs, and the token that each of them is read at
CLASSES = {
    "llava": (("harmful", -1), ("expert", -1), ("health", -1)),
    "qwen": (("harmful", -1), ("expert", -2), ("health", -2)),
}


def state(model: Model, turns: Sequence[tuple[str, str]], layer: int, token: int) -> Tensor:
    """One state of a conversation as the chat template renders it, with no opened turn after it."""
    rendered: Any = model.tokenizer.apply_chat_template(
        [{"role": role, "content": text} for role, text in turns], tokenize=False, add_generation_prompt=False
    )
    return plain.hidden(model, model.tokenizer(rendered, add_special_tokens=False).input_ids)[layer][token]


@backends
@pytest.mark.parametrize("kind", ["llava", "qwen"])
def test_pairs_are_read_at_the_published_token_and_l2s_before_the_header(backend: str, kind: str) -> None:
    model = make_lm("llama", backend)
    pairs = [PUBLISHED_PAIRS[kind][name] for name, _ in CLASSES[kind]]
    rows = [Example(p, pair, id=str(i), behavior="b") for i, (p, pair) in enumerate(zip(PROMPTS, pairs, strict=True))]
    acts = capture(model, rows, layers=[LAYER, CONTEXT_LAYER], context="last_user", progress=False)
    z, contexts = [], []
    for prompt, pair, (_, token) in zip(PROMPTS, pairs, CLASSES[kind], strict=True):
        user = ("user", f"{prompt} {pair.suffix}")
        sides = [state(model, [user, ("assistant", word)], LAYER, token) for word in (pair.positive, pair.negative)]
        z.append(sides[0] - sides[1])
        contexts.append(state(model, [("user", prompt)], CONTEXT_LAYER, -1))
    torch.testing.assert_close(P2S(LAYER).fit(acts).table_, torch.stack(z), rtol=1e-4, atol=1e-5)
    options = {"context_layer": CONTEXT_LAYER, "context_position": "last_user", "hidden_units": 3, "progress": False}
    l2s = L2S(LAYER, config=QUICK, **options).fit(acts)
    read = acts.by_example(CONTEXT_LAYER, side="prompt", position="last_user")[1]
    torch.testing.assert_close(read, torch.stack(contexts), rtol=1e-4, atol=1e-5)
    (setting,) = resolve_interventions(model, [Request(l2s)], as_examples(PROMPTS), 16)
    (shift,) = setting.interventions
    torch.testing.assert_close(shift.vectors, l2s.predict(torch.stack(contexts)), rtol=1e-3, atol=1e-5)
    assert not torch.allclose(shift.vectors[0], shift.vectors[1], atol=1e-3), "each input has its own vector"
