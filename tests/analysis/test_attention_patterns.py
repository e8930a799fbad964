"""Attention weights against the states of the heads: the weighted sum of what they look at."""

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import Lfm2Config, Lfm2ForCausalLM

from steerlab import Example, Site, capture
from steerlab.analysis.attention_patterns import attention_patterns
from steerlab.errors import LayoutError, SteerlabError
from steerlab.models.layout import blocks, find_layout
from steerlab.models.model import Model
from steerlab.testing import FAMILIES, tiny_hf, tiny_lm, tiny_vlm

PROMPTS = ["Tell me of the Nile.", "Hi"]


@pytest.mark.parametrize("attention", ["sdpa", pytest.param("eager", marks=pytest.mark.nightly)])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3", "phi3"])
def test_weighted_values_are_the_states_of_the_heads(family: str, attention: str) -> None:
    hf = tiny_hf(family, attn_implementation=attention)
    model = Model(hf, tiny_lm(family).tokenizer, find_layout(hf), id=family)
    layer, n_heads, n_shared = 2, hf.config.num_attention_heads, hf.config.num_key_value_heads
    for prompt in PROMPTS:
        frame = attention_patterns(model, [prompt], [layer])
        assert hf.config._attn_implementation == attention
        states = capture(model, [prompt], layers=[Site(layer, "heads")], positions="prompt", reduce="none").values[:, 0]
        attended, seen = blocks(hf, model.layout)[layer].self_attn, list[Tensor]()
        # one matrix gives queries, keys and values in phi3: the values are its last part
        with getattr(attended, "v_proj", getattr(attended, "qkv_proj", None)).register_forward_hook(
            lambda _m, _a, out, seen=seen: seen.append(out[0])
        ):
            hf(input_ids=torch.tensor([model.encode(prompt).ids]), use_cache=False)
        size = states.shape[1] // n_heads
        values = seen[0][:, -n_shared * size :].unflatten(-1, (-1, size)).repeat_interleave(n_heads // n_shared, 1)
        for head, of_head in frame.groupby("head"):
            weights = of_head.pivot_table(index="query", columns="key", values="weight", fill_value=0).to_numpy()
            assert weights.sum(1) == pytest.approx(1, abs=1e-4)
            found = torch.tensor(weights).float() @ values[:, head].detach()
            torch.testing.assert_close(found, states.unflatten(-1, (-1, size))[:, head], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_weights_of_the_past_alone(family: str) -> None:
    model = tiny_lm(family)
    frame = attention_patterns(model, PROMPTS[:1], [0], heads=[1])
    n = len(model.encode(PROMPTS[0]))
    assert len(frame) == n * (n + 1) // 2 and set(frame["head"]) == {1}
    assert frame.groupby("query")["weight"].sum().to_numpy() == pytest.approx(1, abs=1e-4)
    row = frame[(frame["query"] == 3) & (frame["key"] == 2)].iloc[0]
    ids = model.encode(PROMPTS[0]).ids
    assert (row["query_token"], row["key_token"]) == tuple(model.tokenizer.decode([ids[i]]) for i in (3, 2))


def test_tokens_that_look_ahead_keep_all_their_weights_and_settings_come_back() -> None:
    model = tiny_vlm("gemma3")
    picture = Example("What is it?", images=(Image.new("RGB", (40, 40), "red"),))
    before = [model.hf.config._attn_implementation, model.hf.config.text_config._attn_implementation]
    frame = attention_patterns(model, [picture], [0])
    assert frame.groupby(["head", "query"])["weight"].sum().to_numpy() == pytest.approx(1, abs=1e-4)
    assert (frame["key"] > frame["query"]).any(), "the tokens of an image see each other"
    assert [model.hf.config._attn_implementation, model.hf.config.text_config._attn_implementation] == before


def test_half_precision_is_read_and_blocks_without_attention_are_refused() -> None:
    model = tiny_lm("llama")
    half = Model(tiny_hf("llama", attn_implementation="sdpa").bfloat16(), model.tokenizer, model.layout, id="half")
    frame = attention_patterns(half, PROMPTS[1:], [0])
    assert frame.groupby(["head", "query"])["weight"].sum().to_numpy() == pytest.approx(1, abs=0.02)
    config = Lfm2Config(
        vocab_size=len(model.tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, layer_types=["conv", "full_attention"] * 2,
    )  # fmt: skip
    hf = Lfm2ForCausalLM(config).eval()
    hybrid = Model(hf, model.tokenizer, find_layout(hf), id="hybrid")
    with pytest.raises(SteerlabError, match="gives the weights of 2 of its 4 blocks"):
        attention_patterns(hybrid, PROMPTS, [0])


def test_heads_and_points_that_are_not_there_are_refused() -> None:
    model = tiny_lm("llama")
    with pytest.raises(LayoutError, match=r"heads=\[4\] .*: block 0 has heads from 0 to 3"):
        attention_patterns(model, PROMPTS, [0], heads=[4])
    with pytest.raises(LayoutError, match="attention belongs to whole blocks"):
        attention_patterns(model, PROMPTS, [Site(1, "attn_out")])
