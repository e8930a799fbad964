"""The tiny models and their tokenizer: facts that other tests rely on."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from steerlab.errors import LoadError
from steerlab.testing import FAMILIES, tiny_hf, tiny_lm, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
IDS = torch.arange(40, 64)[None]


@given(st.text())
def test_tokenizer_round_trips_every_string(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER(text, add_special_tokens=False).input_ids) == text


def test_special_tokens_are_distinct_and_plain_text_gets_one_bos() -> None:
    assert len({TOKENIZER.pad_token_id, TOKENIZER.bos_token_id, TOKENIZER.eos_token_id}) == 3
    ids = TOKENIZER("hello").input_ids
    assert ids.count(TOKENIZER.bos_token_id) == 1 and ids[0] == TOKENIZER.bos_token_id
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == "hello"
    assert len(TOKENIZER(" the").input_ids) == 2, "merges are in use"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_block_of_every_family_changes_the_residual_stream(family: str) -> None:
    hf = tiny_hf(family)
    with torch.no_grad():
        out = hf(IDS, output_hidden_states=True)
    assert out.logits.shape == (1, 24, len(TOKENIZER)) and out.logits.dtype == torch.float32
    norms = torch.stack(out.hidden_states).norm(dim=-1).mean(dim=(1, 2))
    assert norms.min() > 0.5 and norms.max() < 50
    steps = [(b - a).norm() / a.norm() for a, b in zip(out.hidden_states, out.hidden_states[1:-1], strict=False)]
    assert min(steps) > 0.2, "every block changes the residual stream"
    assert not hf.training and not any(p.requires_grad for p in hf.parameters())
    tokens = hf.generate(IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=4)
    assert hf.generation_config.do_sample is False and tokens.shape[1] > IDS.shape[1]
    assert hf.generation_config.pad_token_id == TOKENIZER.pad_token_id
    if family in ("gemma2", "gemma3"):
        assert set(hf.config.layer_types) == {"sliding_attention", "full_attention"}
        assert hf.config.sliding_window < IDS.shape[1]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_row_equals_the_row_alone(family: str, side: str) -> None:
    hf = tiny_hf(family)
    pads = (6, 0) if side == "left" else (0, 6)
    padded = torch.nn.functional.pad(IDS, pads, value=99)
    mask = torch.nn.functional.pad(torch.ones_like(IDS), pads)
    batch = torch.cat([padded, torch.full_like(padded, 33)])
    inputs = {"input_ids": batch, "attention_mask": torch.cat([mask, torch.ones_like(mask)])}
    if family != "opt":  # OPT counts positions from the mask by itself
        inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        together, alone = hf(**inputs).logits[0][mask[0].bool()], hf(IDS).logits[0]
    # Exact on one machine; experts are multiplied in groups, whose size is the batch's.
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_seed_decides_all_weights_and_leaves_the_global_random_state() -> None:
    before = torch.get_rng_state()
    first, again, other = (tiny_hf("llama", seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first if first[name].numel() > 1)
    assert torch.equal(torch.get_rng_state(), before)


def test_options_reach_the_configuration() -> None:
    model = tiny_lm("qwen2", backend="hooks", n_layers=2, hidden_size=64, attn_implementation="sdpa")
    assert (model.id, model.n_layers, model.hidden_size, model.backend) == ("tiny-qwen2", 2, 64, "hooks")
    assert model.hf.config._attn_implementation == "sdpa" and model.context_length >= 256
    with pytest.raises(LoadError, match="'bert'; expected one of llama"):
        tiny_hf("bert")
