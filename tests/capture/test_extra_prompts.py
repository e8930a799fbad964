"""Extra prompts are captured beside the prompt, and detectors on them agree with Hugging Face's hidden states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from steerlab._support.errors import DataError
from steerlab.capture.capture import capture
from steerlab.data.example import Contrast, Example
from steerlab.data.injections import injection_examples
from steerlab.methods.base import Context
from steerlab.methods.tasktracker.detector import TaskTracker
from steerlab.methods.tasktracker.triplet import TripletProbe
from steerlab.methods.tasktracker.triplet_train import TripletConfig
from steerlab.models.model import Model
from steerlab.models.sites import Site

LM = Callable[..., Model]
TEXTS = {"a": [f"It rains for day {i}. Nobody is out." + " It goes on." * (i % 4) for i in range(8)]}
ROWS = injection_examples(
    TEXTS, ["Name a metal.", "Who is he?"], tasks={"qa": ["Sum up:", "What is it?"]}, template="[{content}] go"
)


def plain_states(model: Model, text: str) -> tuple[Tensor, ...]:
    """Hugging Face's hidden states at the last token of a prompt, run alone and unpadded."""
    row = model.encode(text)
    with torch.no_grad():
        states = model.hf(input_ids=torch.tensor([row.ids]), output_hidden_states=True, use_cache=False).hidden_states
    return tuple(h[0, -1].float() for h in states)


def plain_delta(model: Model, example: Example, k: int) -> Tensor:
    """Of `hidden_states[k]`: task and text, less the task alone."""
    return plain_states(model, example.prompt)[k] - plain_states(model, example.extra_prompts["task"])[k]


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize(
    ("family", "backend"), [("llama", "hooks"), ("llama", "nnsight"), ("gemma2", "hooks"), ("gpt2", "hooks")]
)
def test_extra_prompt_states_match_hugging_face(lm: LM, family: str, backend: str, padding: Any) -> None:
    model = lm(family, backend)
    acts = capture(model, ROWS, layers=[0, 2], padding=padding, batch_size=5, progress=False)
    assert sorted(acts.index["side"]) == ["prompt"] * 8 + ["task"] * 8
    for example in ROWS:
        for side, text in {"prompt": example.prompt, "task": example.extra_prompts["task"]}.items():
            mine = acts.select(example_id=example.id, side=side)
            assert mine.index["behavior"].tolist() == [example.behavior] and len(mine) == 1
            for layer in (0, 2):
                torch.testing.assert_close(
                    mine.at(layer)[0], plain_states(model, text)[layer + 1], atol=2e-5, rtol=1e-4
                )


@pytest.mark.parametrize("padding", ["left", "right"])
def test_tasktracker_scores_match_plain_hidden_states(lm: LM, padding: Any) -> None:
    model = lm("llama", "hooks")
    probe = TaskTracker([0, 2]).fit(capture(model, ROWS, layers=[0, 2], progress=False))
    context = Context.of(capture(model, ROWS, layers=[0, 2], padding=padding, batch_size=3, progress=False))
    deltas = torch.stack([torch.stack([plain_delta(model, row, k + 1) for k in (0, 2)]) for row in ROWS])
    torch.testing.assert_close(probe.delta(context), deltas, atol=4e-5, rtol=1e-4)
    expected = (deltas.double() * probe.coef_).sum(-1) + probe.intercept_
    torch.testing.assert_close(probe.score(context), expected.mean(1).float(), atol=1e-2, rtol=1e-3)
    torch.testing.assert_close(probe.probabilities(context), expected.sigmoid().float(), atol=1e-2, rtol=1e-3)


@pytest.mark.parametrize("padding", ["left", "right"])
def test_triplet_scores_match_plain_hidden_states(lm: LM, padding: Any) -> None:
    model = lm("llama", "hooks")
    config = TripletConfig(epochs=1)
    acts = capture(model, ROWS, layers=[0, 2], padding=padding, progress=False)
    probe = TripletProbe([0, 2], config=config, progress=False).fit(acts)
    full, primary = (
        torch.stack([torch.stack([plain_states(model, text)[k + 1] for k in (0, 2)]) for text in texts])
        for texts in ([row.prompt for row in ROWS], [row.extra_prompts["task"] for row in ROWS])
    )
    expected = (probe.embed(full) - probe.embed(primary)).norm(dim=1)
    torch.testing.assert_close(probe.score(Context.of(acts)), expected, atol=1e-3, rtol=1e-3)


@pytest.fixture
def numbered(lm: LM, tmp_path: Any) -> Any:
    """Probes numbered 1 and n - 1, as another library stores them."""
    model = lm("llama", "hooks")
    generator = torch.Generator().manual_seed(0)
    stored = {n: torch.randn(model.hidden_size, generator=generator) for n in (1, model.n_layers - 1)}
    tensors = {f"layer{n}.coef": w for n, w in stored.items()}
    save_file(tensors | {f"layer{n}.intercept": torch.zeros(1) for n in stored}, tmp_path / "p.safetensors")
    return model, tmp_path / "p.safetensors", stored


@pytest.mark.parametrize(("convention", "k"), [("block", 2), ("hidden_states", 1)])
def test_published_layer_numbers_follow_the_convention(numbered: Any, convention: str, k: int) -> None:
    model, path, stored = numbered
    probe = TaskTracker.from_published(path, model.n_layers, layers=[1], convention=convention)
    acts = capture(model, ROWS, layers=[read.site for read in probe.required_activations], progress=False)
    expected = torch.stack([plain_delta(model, row, k) @ stored[1] for row in ROWS])
    torch.testing.assert_close(probe.score(Context.of(acts)), expected, atol=1e-3, rtol=1e-3)
    other = torch.stack([plain_delta(model, row, 3 - k) @ stored[1] for row in ROWS])
    assert not torch.allclose(probe.score(Context.of(acts)), other, atol=1e-2)


def test_final_norm_is_applied_for_the_last_layer(numbered: Any) -> None:
    model, path, stored = numbered
    norm, top = model.hf.model.norm, model.n_layers - 1
    assert TaskTracker.from_published(path, model.n_layers).sites == (Site(1),)
    probe = TaskTracker.from_published(
        path, model.n_layers, layers=[top], final_norm=(norm.weight, norm.variance_epsilon)
    )
    acts = capture(model, ROWS, layers=top, progress=False)
    expected = torch.stack([plain_delta(model, row, model.n_layers) @ stored[top] for row in ROWS])
    torch.testing.assert_close(probe.score(Context.of(acts)), expected, atol=1e-3, rtol=1e-3)


def test_extra_prompts_are_selected_by_name(lm: LM) -> None:
    model = lm("llama", "hooks")
    two = [Example("x", "one two", extra_prompts={"task": "one", "other": "two"})]
    assert set(capture(model, two, layers=0, progress=False).index["side"]) == {"prompt", "task", "other"}
    assert set(capture(model, two, layers=0, extra_prompts=["task"], progress=False).index["side"]) == {
        "prompt",
        "task",
    }
    assert set(capture(model, two, layers=0, extra_prompts=[], progress=False).index["side"]) == {"prompt"}
    with pytest.raises(DataError, match=r"'x' has no extra prompt 'primary', it has \['other', 'task'\]"):
        capture(model, two, layers=0, extra_prompts=["primary"], progress=False)
    with pytest.raises(DataError, match="rename"):
        Example("x", "one", extra_prompts={"prompt": "two"})


def test_extra_prompts_of_contrasts_are_captured_at_the_context(lm: LM) -> None:
    model = lm("llama", "hooks")
    pair = Example("x", "one two", contrast=Contrast("yes", "no"), extra_prompts={"task": "one"})
    acts = capture(model, [pair], layers=1, positions="answer", context="last", progress=False)
    assert sorted(acts.index["side"]) == ["negative", "positive", "prompt", "task"]
    torch.testing.assert_close(acts.select(side="task").at(1)[0], plain_states(model, "one")[2], atol=2e-5, rtol=1e-4)
    alone = capture(model, [pair], layers=1, context=None, progress=False)
    assert sorted(alone.index["side"]) == ["negative", "positive"]


def test_extra_prompts_in_a_store(lm: LM, tmp_path: Any) -> None:
    model = lm("llama", "hooks")
    direct = capture(model, ROWS, layers=[0, 2], progress=False)
    stored = capture(model, ROWS, folder=tmp_path / "acts", layers=[0, 2], progress=False).load()
    assert stored.index.equals(direct.index)
    assert torch.equal(stored.values, direct.values)
