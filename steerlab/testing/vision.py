"""Small random image-text models of every family with their processors: real classes, made-up sizes."""

from __future__ import annotations

from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText, GenerationConfig

from steerlab._support.errors import LoadError
from steerlab.models.layout import find_layout
from steerlab.models.model import Model
from steerlab.testing.processors import MARKS, PATCH, SIDE, VLM_FAMILIES, image_tokenizer, tiny_processor
from steerlab.testing.text import roughen, text_config


def tiny_vlm(family: str = "llava", *, backend: str = "nnsight", **hf: Any) -> Model:
    """A tiny random image-text model with its processor, ready for every verb.

    Example:
        >>> model = tiny_vlm("qwen2_vl")
        >>> row = model.encode("What is this?", images=[image])

    Args:
        family: one of `VLM_FAMILIES`.
        backend: "nnsight" or "hooks".
        hf: passed to `tiny_vlm_hf`.

    Raises:
        LoadError: unknown family, or torchvision (and for SmolVLM num2words) are missing.

    Source: own.
    """
    processor = tiny_processor(family)
    model = tiny_vlm_hf(family, **hf)
    tokenizer = processor.tokenizer
    return Model(model, tokenizer, find_layout(model), id=f"tiny-{family}", backend=backend, processor=processor)


def tiny_vlm_hf(family: str = "llava", *, seed: int = 0, n_layers: int = 3, **text: Any) -> Any:
    """A random image-text model of a family: float32, eval mode, eager attention, 32 wide.

    Example:
        >>> tiny_vlm_hf("gemma3").config.text_config.num_hidden_layers
        3

    Args:
        family: one of `VLM_FAMILIES`.
        seed: seed of the weights; the global random state is left as it was.
        n_layers: decoder blocks.
        text: anything else for the configuration of the language model.

    Raises:
        LoadError: unknown family.

    Source: own.
    """
    if family not in VLM_FAMILIES:
        raise LoadError(f"unknown family {family!r}; expected one of {', '.join(VLM_FAMILIES)}")
    tokenizer = image_tokenizer(family)
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in MARKS[family][0]}
    settings = _config(family, n_layers, len(tokenizer), ids, text)
    config = CONFIG_MAPPING[family](**settings)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        hf = AutoModelForImageTextToText.from_config(config, attn_implementation="eager", dtype=torch.float32)
        with torch.no_grad():
            for parameter in hf.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=0.2)
        roughen(hf)
    known = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    never = [hf.config.image_token_id]  # a trained model does not say it, and without a cache it would want a picture
    hf.generation_config = GenerationConfig(do_sample=False, suppress_tokens=never, **known)
    return hf.eval().requires_grad_(False)


def _config(family: str, n_layers: int, vocabulary: int, ids: dict[str, int], text: dict[str, Any]) -> dict[str, Any]:
    tower = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    tower |= {"image_size": SIDE, "patch_size": PATCH}
    kind = {"qwen2_vl": "qwen2", "qwen2_5_vl": "qwen2", "gemma3": "gemma3", "paligemma": "gemma"}.get(family, "llama")
    words = text_config(kind, n_layers, 32) | {"vocab_size": vocabulary} | text
    first = next(iter(ids.values()))
    if family in ("llava", "llava_next"):
        vision = {"model_type": "clip_vision_model", "projection_dim": 24, **tower}
        settings = {"vision_config": vision, "image_token_index": first, "image_token_id": first}
        settings |= {"image_seq_length": 9, "vision_feature_layer": -2, "vision_feature_select_strategy": "default"}
        if family == "llava_next":
            settings["image_grid_pinpoints"] = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]
        return settings | {"text_config": {"model_type": "llama", **words}}
    if family in ("qwen2_vl", "qwen2_5_vl"):
        return _qwen_config(family, words, ids)
    if family in ("idefics3", "smolvlm"):
        vision = {**tower, "patch_size": 4}
        return {
            "vision_config": vision, "text_config": {"model_type": "llama", **words}, "scale_factor": 2,
            "image_token_id": first, "pad_token_id": words["pad_token_id"],
        }  # fmt: skip
    vision = {"model_type": "siglip_vision_model", "vision_use_head": False, **tower}
    if family == "gemma3":
        vision["patch_size"] = 4
        kinds = ("full_attention", "sliding_attention")  # in a window alone the last token would see no picture
        words["layer_types"] = [kinds[i % 2] for i in range(n_layers)]
        marks = dict(zip(("image_token_index", "boi_token_index", "eoi_token_index"), ids.values(), strict=True))
        sizes = {
            "mm_tokens_per_image": 9,
            "tie_word_embeddings": False,
        }  # see text_config: tied, it only repeats itself
        return {"vision_config": vision, "text_config": words, **sizes, **marks}
    vision |= {"projection_dim": 32, "num_image_tokens": 9}
    words = {"model_type": "gemma", **words}
    sizes = {"projection_dim": 32, "tie_word_embeddings": False}
    return {"vision_config": vision, "text_config": words, "image_token_index": first, **sizes}


def _qwen_config(family: str, words: dict[str, Any], ids: dict[str, int]) -> dict[str, Any]:
    vision: dict[str, Any] = {"depth": 2, "num_heads": 2, "patch_size": 4}
    vision |= {"spatial_merge_size": 2, "temporal_patch_size": 2}
    if family == "qwen2_vl":
        vision |= {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2}
    else:
        vision |= {"hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 32}
        vision |= {"window_size": 16, "fullatt_block_indexes": [1]}
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    words = words | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}
    return {"vision_config": vision, "text_config": words, **dict(zip(names, ids.values(), strict=True))}
