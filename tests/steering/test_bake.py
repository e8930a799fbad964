"""A baked checkpoint gives the logits of the steered model, in plain Hugging Face, or is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import steerlab
from steerlab import L2S, Contrast, Example, MeanDifference, Request, Site
from steerlab.errors import MismatchError, SteeringError
from steerlab.methods import Spherical
from steerlab.steering import bake
from steerlab.testing import FAMILIES, tiny_lm

PROMPTS = ["red cat", "a small house by the river", "no"]


BAKED = ("llama", "mistral", "qwen2", "gpt2", "gpt_neox", "opt")


def vectors(model: steerlab.models.model.Model) -> dict[int, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {layer: torch.randn(model.hidden_size, generator=draw) for layer in (0, 1)}


@pytest.mark.parametrize("family", BAKED)
def test_baked_logits_are_the_steered_ones_in_plain_hugging_face(family: str, tmp_path: Path) -> None:
    model = tiny_lm(family, backend="hooks")
    steer = Request(vectors(model), 0.7, "all")
    baked = bake(model, vectors(model), alpha=0.7)
    baked.hf.save_pretrained(tmp_path)
    baked.tokenizer.save_pretrained(tmp_path)
    hf = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    for prompt, logits in zip(PROMPTS, steerlab.next_token_logits(model, PROMPTS, steer=steer), strict=True):
        row = model.encode(prompt)
        assert tokenizer.convert_ids_to_tokens(row.ids) == model.tokenizer.convert_ids_to_tokens(row.ids)
        with torch.no_grad():
            found = hf(torch.tensor([row.ids])).logits[0, -1]
        assert (found - logits).norm() / logits.norm() < 1e-5
    texts = [steerlab.generate(m, PROMPTS, steer=by, max_new_tokens=6).texts for m, by in ((model, steer), (baked, ()))]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - set(BAKED)))
def test_families_without_a_place_for_the_vector_are_refused(family: str) -> None:
    model = tiny_lm(family, backend="hooks")
    with pytest.raises(SteeringError, match=r"has no bias in its MLP|does not end in a linear layer"):
        bake(model, vectors(model))


def test_blocks_that_change_what_the_mlp_gives_are_found_by_their_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_lm("gpt2", backend="hooks")
    original = type(model.hf.transformer.h[0].mlp).forward
    monkeypatch.setattr(type(model.hf.transformer.h[0].mlp), "forward", lambda mlp, x: original(mlp, x) / 2)
    with pytest.raises(SteeringError, match="of their norm off those of the steered model"):
        bake(model, vectors(model))


def test_a_vector_and_its_negative_cancel() -> None:
    model = tiny_lm("llama", backend="hooks")
    back = bake(bake(model, vectors(model), alpha=2.0), vectors(model), alpha=-2.0)
    batch = model.batch([model.encode(PROMPTS[1])])
    with torch.no_grad():
        wanted, found = (one.hf(**model.inputs(batch)).logits for one in (model, back))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    assert model.hf.model.layers[0].mlp.down_proj.bias is None  # the model itself stays as it was


def test_what_depends_on_the_input_or_has_no_bias_is_refused() -> None:
    model = tiny_lm("llama", backend="hooks")
    pairs = [Example(p, contrast=Contrast(" no", " yes"), behavior="refuse") for p in PROMPTS]
    with pytest.raises(SteeringError, match="no vector that is the same for every input"):
        bake(model, L2S(0, progress=False).fit(model, pairs))
    with pytest.raises(SteeringError, match="has no bias of its own"):
        bake(model, {Site(0, "attn_out"): torch.ones(model.hidden_size)})
    with pytest.raises(SteeringError, match="alpha"):
        bake(model, vectors(model), alpha=float("nan"))
    rows = [Example(p, contrast=Contrast(" no", " yes"), behavior="refuse", id=str(i)) for i, p in enumerate(PROMPTS)]
    with pytest.raises(SteeringError, match="something else than to add"):
        bake(model, Spherical(1).fit(model, rows))
    with pytest.raises(MismatchError, match="was fitted on a model called"):
        bake(tiny_lm("llama", backend="hooks", seed=1), MeanDifference(1).fit(model, rows))


def test_windows_generation_settings_and_half_precision_survive_or_are_refused() -> None:
    windowed = tiny_lm("mistral", backend="hooks", sliding_window=8)
    with pytest.raises(SteeringError, match="attends to a window"):
        bake(windowed, vectors(windowed))
    model = tiny_lm("llama", backend="hooks")
    model.hf.generation_config.eos_token_id = [2, 5]
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    baked = bake(model, vectors(model))
    assert baked.hf.generation_config.eos_token_id == [2, 5] and torch.rand(1) == expected
    half = steerlab.load(model.hf.bfloat16(), tokenizer=model.tokenizer, backend="hooks")
    found = bake(half, vectors(half), alpha=0.5)
    assert found.hf.model.rotary_emb.inv_freq.dtype == torch.float32 and found.hf.dtype == torch.bfloat16
