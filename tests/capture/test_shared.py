"""States of answers after shared prompts equal those of whole rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from steerlab.capture.capture import capture
from steerlab.capture.rows import as_examples, as_sites, plan_rows
from steerlab.capture.shared import share_prompts
from steerlab.data.example import Contrast, Example
from steerlab.models.kv_prefix import can_prefill
from steerlab.models.model import Model
from steerlab.testing import FAMILIES

LM = Callable[..., Model]
SYSTEM = "You weigh every word before you say it, and you say it once only."
ASKED = {
    "Is it so?": Contrast(" (A)", " (B)"),
    "Why is it, and for whom?": Contrast("Of course.", "No"),
    "Go.": Contrast("yes", "not now"),
}
PAIRS = [Example(f"p{i}", text, "ask", pair, system=SYSTEM) for i, (text, pair) in enumerate(ASKED.items())]


@pytest.mark.parametrize("backend", ["nnsight", "hooks"])
@pytest.mark.parametrize("family", FAMILIES)
def test_shared_prompt_states_match_hugging_faces_whole_rows(lm: LM, family: str, backend: str) -> None:
    model = lm(family, backend)
    rows = plan_rows(model, PAIRS, ["answer", -1], ["last"], "mean")
    assert (share_prompts(model, rows, as_sites("all", model)) is not None) == can_prefill(model.hf)
    acts = capture(model, PAIRS, positions=["answer", -1], progress=False)
    for pair in PAIRS:
        assert pair.contrast is not None
        for side in ("positive", "negative"):
            row = model.encode(pair.prompt, answer=getattr(pair.contrast, side), system=pair.system)
            with torch.no_grad():
                ids = torch.tensor([row.ids])
                states = model.hf(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
            for layer in range(model.n_layers - 1):  # the last of these tuples is normalized
                answer = acts.select(example_id=pair.id, side=side, position="answer").at(layer)[0]
                expected = states[layer + 1][0, row.n_prompt :].mean(0)
                torch.testing.assert_close(answer, expected, atol=2e-5, rtol=1e-4)
                if side == "positive":
                    last = acts.select(example_id=pair.id, side="prompt").at(layer)[0]
                    torch.testing.assert_close(last, states[layer + 1][0, row.n_prompt - 1], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("position", ["user", "all", -6])
def test_positions_in_the_prompt_prevent_sharing(lm: LM, position: Any) -> None:
    model = lm("llama", "hooks")
    assert share_prompts(model, plan_rows(model, PAIRS, [position], [], "mean"), as_sites("all", model)) is None


def test_prompts_are_not_shared_for_shallow_sites(lm: LM) -> None:
    model = lm("llama", "hooks")
    rows = plan_rows(model, PAIRS, ["answer"], [], "mean")
    assert share_prompts(model, rows, as_sites([3], model)) is not None
    assert share_prompts(model, rows, as_sites([0], model)) is None


def test_different_prompts_are_not_shared(lm: LM) -> None:
    model = lm("llama", "hooks")
    examples = as_examples(["hello there", "how are you today, my very dear friend?"])
    assert share_prompts(model, plan_rows(model, examples, ["last"], [], "mean"), as_sites("all", model)) is None
