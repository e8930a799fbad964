"""What steerlab has to know about a family of models, in one table.

Most facts are read off the model itself: transformers returns the decoder, modules are found by their usual names, and
configuration and tensors show how images are cut into tiles. `FAMILIES` holds what cannot be read off. A text family
with unusual module names costs one more name in `Family`; an image family costs at most one row.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import Module

NOT_TEXT = re.compile(r"vision|visual|image|audio|speech|^vit$")


@dataclass(frozen=True)
class Family:
    """One family of models. The defaults fit most families.

    Attributes:
        final_norm: names of the norm between the last block and the head, most common first.
        head: names of the unembedding.
        attention: names of the attention module inside a block.
        mlp: names of the module inside a block whose output is the MLP's (OPT's blocks have no MLP module: "fc2").
        projection: names, inside the attention module, of the one that maps the heads' results to its output.
        vision: pattern of the module names of a vision tower.
        projector: pattern of the name of the module between vision tower and text.
        first_position: position id of a row's first token.
        prefix_lm: whether prompt tokens attend to later prompt tokens. `token_type_ids` then mark the answer;
            in other families they mark image tokens.
    """

    final_norm: tuple[str, ...] = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "final_norm", "norm_f")
    head: tuple[str, ...] = ("lm_head", "embed_out", "output", "head")
    attention: tuple[str, ...] = ("self_attn", "attn", "attention", "self_attention")
    mlp: tuple[str, ...] = ("mlp", "feed_forward", "ffn", "block_sparse_moe", "fc2")
    projection: tuple[str, ...] = ("o_proj", "out_proj", "c_proj", "dense", "wo")
    vision: str = r"vision|visual|image|^vit$"
    projector: str = r"projector|connector|^merger$"
    first_position: int = 0
    prefix_lm: bool = False


FAMILIES: dict[str, Family] = {  # by `model_type`
    "diffllama": Family(projection=()),  # two heads of queries give one head of results
    "paligemma": Family(first_position=1, prefix_lm=True),
    "steerlab_vectors": Family(vision=r"^encoder$"),  # `VectorLM`
}


def family_of(config: Any) -> Family:
    """The family of a model configuration.

    Example:
        >>> family_of(PaliGemmaConfig()).first_position
        1

    Args:
        config: a Hugging Face configuration, or None for a module without one.
    """
    return FAMILIES.get(getattr(config, "model_type", ""), Family())


def has_rope_index(hf: Module) -> bool:
    """Whether a model computes the position ids of rows with images itself (M-RoPE has three per token)."""
    return any(hasattr(module, "get_rope_index") for module in hf.modules())


def image_token_id(config: Any) -> int:
    """The id of the token whose embedding one image feature replaces."""
    found = getattr(config, "image_token_id", None)
    return int(config.image_token_index if found is None else found)


def deepest_used_block(config: Any, n_blocks: int) -> int:
    """The last block of the vision tower whose output reaches the text.

    LLaVA's projector reads `hidden_states[config.vision_feature_layer]`, in released models the last but one; the
    output of the blocks above is discarded.

    Example:
        >>> deepest_used_block(LlavaConfig(vision_feature_layer=-2), 24)
        22

    Args:
        config: the model's configuration; without the field, every block counts.
        n_blocks: blocks of the tower; `hidden_states` has one entry more, the embeddings.
    """
    used = getattr(config, "vision_feature_layer", None)
    if used is None:
        return n_blocks - 1
    return max(i % (n_blocks + 1) for i in ([used] if isinstance(used, int) else used)) - 1


def count_units(tensors: Mapping[str, Tensor], config: Any) -> int:
    """How many tiles (Qwen: patches; `VectorLM`: scenes) of one row the tower receives, padding tiles not counted.

    Args:
        tensors: what the processor returns for the images of the row.
        config: the model's configuration.

    Source: the forward of each family in transformers.
    """
    pixels = tensors.get("pixel_values", tensors.get("vectors"))
    if pixels is None:
        return 0
    if pixels.ndim != 5:
        return len(pixels)
    sizes, pinpoints = tensors.get("image_sizes"), getattr(config, "image_grid_pinpoints", None)
    if sizes is None or pinpoints is None:  # Idefics3 and SmolVLM take a tile of zeros for padding, and so do we
        return int(pixels.flatten(2).any(-1).sum())
    from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

    return sum(image_size_to_num_patches(size, pinpoints, config.vision_config.image_size) for size in sizes)
