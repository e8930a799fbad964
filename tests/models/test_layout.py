"""Finding the decoder blocks, the final norm and the head."""

import pytest
from torch import nn
from transformers import LlamaConfig, PaliGemmaConfig

from steerlab.errors import LayoutError
from steerlab.models.families import Family, family_of, has_rope_index
from steerlab.models.layout import Layout, blocks, find_layout, module_at
from steerlab.testing import FAMILIES, tiny_hf, tiny_vlm_hf

LLAMA_LIKE = Layout("model.layers", "model.norm", "lm_head", "self_attn", "mlp", heads_name="self_attn.o_proj")
EXPECTED = {
    "gpt2": Layout("transformer.h", "transformer.ln_f", "lm_head", "attn", "mlp", heads_name="attn.c_proj"),
    "gpt_neox": Layout(
        "gpt_neox.layers", "gpt_neox.final_layer_norm", "lm_head", "attention", "mlp", heads_name="attention.dense"
    ),
    "opt": Layout(
        "model.decoder.layers", "model.decoder.final_layer_norm", "lm_head", "self_attn", "fc2",
        heads_name="self_attn.out_proj",
    ),
}  # fmt: skip
BLOCK_CLASS = {"gpt2": "GPT2Block", "gpt_neox": "GPTNeoXLayer", "opt": "OPTDecoderLayer"}


@pytest.mark.parametrize("family", FAMILIES)
def test_layout_of_every_family(family: str) -> None:
    hf = tiny_hf(family, n_layers=3)
    layout = find_layout(hf)
    assert layout == EXPECTED.get(family, LLAMA_LIKE)
    found = blocks(hf, layout)
    assert len(found) == 3
    (name,) = {type(block).__name__ for block in found}
    assert name == BLOCK_CLASS.get(family, name)
    assert name.endswith(("DecoderLayer", "Block", "Layer"))
    assert layout.final_norm_path and type(module_at(hf, layout.final_norm_path)).__name__.endswith("Norm")
    assert layout.head_path and module_at(hf, layout.head_path) is hf.get_output_embeddings()


def test_blocks_of_a_multimodal_model_are_those_of_the_text() -> None:
    layout = find_layout(tiny_vlm_hf("gemma3", n_layers=1))  # fewer than in the vision tower
    assert layout.blocks_path == "model.language_model.layers"
    assert layout.final_norm_path == "model.language_model.norm"
    assert layout.head_path == "lm_head"


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.Linear(4, 4)
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(9))


class Unknown(nn.Module):
    """A decoder of no known family, with a deeper vision tower and longer lists of experts."""

    def __init__(self) -> None:
        super().__init__()
        self.vision_tower = nn.ModuleList(Block() for _ in range(8))
        self.stages = nn.ModuleList([nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU()])
        self.trunk = nn.ModuleList(Block() for _ in range(3))
        self.closing = nn.LayerNorm(4)
        self.output = nn.Linear(4, 7)


def test_layout_of_an_unknown_decoder() -> None:
    model = Unknown()
    assert find_layout(model) == Layout("trunk", "closing", "output", "attention", None, "vision_tower")
    assert find_layout(model, "vision_tower").blocks_path == "vision_tower"
    model.trunk.append(nn.Linear(4, 4))
    assert find_layout(model, "trunk").attention_name is None, "it must exist in every block"


@pytest.mark.parametrize("path", ["model.blocks", "model.norm", ""])
def test_wrong_blocks_argument_error_lists_the_paths(path: str) -> None:
    with pytest.raises(LayoutError) as caught:
        find_layout(tiny_hf("llama", n_layers=5), blocks=path)
    message = str(caught.value)
    assert repr(path) in message and "model.layers (5 x LlamaDecoderLayer)" in message and "blocks=" in message
    with pytest.raises(LayoutError, match="no ModuleList at all"):
        find_layout(nn.Linear(2, 2))


def test_module_at() -> None:
    hf = tiny_hf("llama")
    assert module_at(hf, "") is hf
    assert module_at(hf, "model.layers.1.mlp") is hf.model.layers[1].mlp
    with pytest.raises(LayoutError, match=r"model has embed_tokens, layers, norm, rotary_emb, not 'h'"):
        module_at(hf, "model.h.0")


def test_families_that_differ() -> None:
    assert family_of(None) == family_of(LlamaConfig()) == Family()
    assert has_rope_index(tiny_vlm_hf("qwen2_vl")) and not has_rope_index(tiny_vlm_hf("llava"))
    assert family_of(PaliGemmaConfig()) == Family(first_position=1, prefix_lm=True)
