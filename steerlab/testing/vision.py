"""Small random image-text models of every family with their processors: real classes, images of a few pixels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText, GenerationConfig

from steerlab.errors import LoadError
from steerlab.models.layout import find_layout
from steerlab.models.model import Model
from steerlab.testing.text import randomize_vectors, seeded, text_config, tiny_tokenizer

_SIDE = 24  # pixels of an image as the vision tower sees it
_PATCH = 8
_SQUARE = {"height": _SIDE, "width": _SIDE}
_PINPOINTS = [[_SIDE, 2 * _SIDE], [2 * _SIDE, _SIDE], [2 * _SIDE, 2 * _SIDE]]
_TOWER = {
    "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": _SIDE,
    "patch_size": _PATCH,
}  # fmt: skip


@dataclass(frozen=True)
class _Family:
    """How to build a tiny model of one family.

    Attributes:
        tokens: special tokens by the name that the configuration has for their ids; the first stands for one feature.
        placeholder: what the user's turn shows for an image.
        processor: names of the classes of processor and image processor, and of the parts for video and audio, if any.
        images: options of image and video processor.
        vision: configuration of the vision tower.
        options: options of the processor.
        text_family: family of the language model; see `text_config`.
        text: more of its configuration.
        more: more of the whole configuration.
        more_tokens: special tokens without a name in the configuration.
    """

    tokens: dict[str, str]
    placeholder: str
    processor: tuple[str, ...]
    images: dict[str, Any]
    vision: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    text_family: str = "llama"
    text: dict[str, Any] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)
    more_tokens: tuple[str, ...] = ()

    def build_processor(self, tokenizer: Any) -> Any:
        """The processor around a tokenizer."""
        processor, *kinds = (getattr(transformers, kind) for kind in self.processor)
        names = ("image_processor", "video_processor", "feature_extractor")
        parts = {name: kind(**self.images) for name, kind in zip(names, kinds, strict=False)}
        parts["image_processor"].image_seq_length = 9  # PaliGemma's processor reads it
        return processor(**parts, tokenizer=tokenizer, chat_template=tokenizer.chat_template, **self.options)


_LLAVA: dict[str, Any] = {
    "tokens": {"image_token_index": "<image>", "image_token_id": "<image>"},
    "placeholder": "<image>",
    "options": {"patch_size": _PATCH, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
    "vision": {"model_type": "clip_vision_model", "projection_dim": 24, **_TOWER},
    "text": {"model_type": "llama"},
}
_CLIP = {"size": {"shortest_edge": _SIDE}, "crop_size": _SQUARE}
_LLAVA_MORE = {"image_seq_length": 9, "vision_feature_layer": -2, "vision_feature_select_strategy": "default"}
_QWEN: dict[str, Any] = {
    "tokens": {
        "image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>",
    },
    "placeholder": "<|vision_start|><|image_pad|><|vision_end|>",
    "images": {
        "size": {"shortest_edge": 16 * 16, "longest_edge": 32 * 32}, "patch_size": 4, "merge_size": 2,
        "temporal_patch_size": 2,
    },
    "text_family": "qwen2",
    "text": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}},
}  # fmt: skip
_QWEN_TOWER = {
    "depth": 2, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2, "hidden_size": 32
}  # fmt: skip
_IDEFICS: dict[str, Any] = {
    "tokens": {"image_token_id": "<image>"},
    "more_tokens": (
        *("<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<video>"),
        *(f"<row_{r}_col_{c}>" for r in range(1, 4) for c in range(1, 4)),
    ),
    "placeholder": "<image>",
    "images": {"size": {"longest_edge": 2 * _SIDE}, "max_image_size": {"longest_edge": _SIDE}},
    "options": {"image_seq_len": 9},
    "vision": {**_TOWER, "patch_size": 4},
    "text": {"model_type": "llama"},
    "more": {"scale_factor": 2, "pad_token_id": 0},
}
_SIGLIP = {"model_type": "siglip_vision_model", "vision_use_head": False, **_TOWER}
_FAMILIES = {
    "llava": _Family(**_LLAVA, processor=("LlavaProcessor", "CLIPImageProcessor"), images=_CLIP, more=_LLAVA_MORE),
    "llava_next": _Family(
        **_LLAVA, processor=("LlavaNextProcessor", "LlavaNextImageProcessor"),
        images=_CLIP | {"image_grid_pinpoints": _PINPOINTS}, more=_LLAVA_MORE | {"image_grid_pinpoints": _PINPOINTS},
    ),
    "qwen2_vl": _Family(
        **_QWEN, processor=("Qwen2VLProcessor", "Qwen2VLImageProcessor", "Qwen2VLVideoProcessor"),
        vision={**_QWEN_TOWER, "embed_dim": 32, "mlp_ratio": 2},
    ),
    "qwen2_5_vl": _Family(
        **_QWEN, processor=("Qwen2_5_VLProcessor", "Qwen2VLImageProcessor", "Qwen2VLVideoProcessor"),
        vision={
            **_QWEN_TOWER, "intermediate_size": 48, "out_hidden_size": 32, "window_size": 16,
            "fullatt_block_indexes": [1],
        },
    ),
    "qwen3_vl": _Family(  # without an M-RoPE section: the sizes that the class has then
        **_QWEN | {"text": {"head_dim": 128, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}},
        processor=("Qwen3VLProcessor", "Qwen2VLImageProcessor", "Qwen3VLVideoProcessor"),
        vision={
            **_QWEN_TOWER, "intermediate_size": 64, "out_hidden_size": 32, "deepstack_visual_indexes": [0],
            "num_position_embeddings": 64,
        },
    ),
    "idefics3": _Family(**_IDEFICS, processor=("Idefics3Processor", "Idefics3ImageProcessor")),
    "smolvlm": _Family(**_IDEFICS, processor=("SmolVLMProcessor", "SmolVLMImageProcessor", "SmolVLMVideoProcessor")),
    "gemma3": _Family(
        tokens={
            "image_token_index": "<image_soft_token>", "boi_token_index": "<start_of_image>",
            "eoi_token_index": "<end_of_image>",
        },
        placeholder="<start_of_image>", processor=("Gemma3Processor", "Gemma3ImageProcessor"),
        images={"size": _SQUARE}, options={"image_seq_length": 9}, vision={**_SIGLIP, "patch_size": 4},
        text_family="gemma3", more={"mm_tokens_per_image": 9, "tie_word_embeddings": False},  # tied: see `text_config`
    ),
    "gemma4": _Family(
        tokens={
            "image_token_id": "<|image|>", "boi_token_id": "<|image>", "eoi_token_id": "<image|>",
            "audio_token_id": "<|audio|>", "boa_token_id": "<|audio>", "eoa_token_index": "<audio|>",
            "video_token_id": "<|video|>",
        },
        placeholder="<|image|>",
        processor=("Gemma4Processor", "Gemma4ImageProcessor", "Gemma4VideoProcessor", "Gemma4AudioFeatureExtractor"),
        images={"patch_size": _PATCH, "pooling_kernel_size": 2, "max_soft_tokens": 70},
        vision={**_TOWER, "hidden_size": 32, "num_key_value_heads": 2, "head_dim": 16, "pooling_kernel_size": 2},
        text_family="gemma3",
        text={"hidden_size_per_layer_input": 8, "global_head_dim": 8, "num_global_key_value_heads": 2},
        more={"tie_word_embeddings": False, "audio_config": None},
    ),
    "paligemma": _Family(
        tokens={"image_token_index": "<image>"}, placeholder="<image>",
        processor=("PaliGemmaProcessor", "SiglipImageProcessor"), images={"size": _SQUARE},
        vision={**_SIGLIP, "projection_dim": 32, "num_image_tokens": 9}, text_family="gemma",
        text={"model_type": "gemma"}, more={"projection_dim": 32, "tie_word_embeddings": False},
    ),
}  # fmt: skip
# the families of tiny image-text models, by `model_type`
VLM_FAMILIES: tuple[str, ...] = tuple(_FAMILIES)


def tiny_processor(family: str = "llava") -> Any:
    """The processor class of a family around `tiny_tokenizer`, for images of 24 pixels.

    Example:
        >>> tiny_processor("llava")(text=["<image>hi"], images=[image]).input_ids

    Raises:
        LoadError: unknown family, or a package that the processor needs is missing.
    """
    row, tokenizer = _find(family)
    try:
        return row.build_processor(tokenizer)
    except ImportError as error:
        raise LoadError(
            f"the {family} processor needs a package that is not here ({error}): pip install 'steerlab[vision]'"
        ) from error


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
    """
    row, tokenizer = _find(family)
    settings = text_config(row.text_family, n_layers, 32) | {"vocab_size": len(tokenizer)} | text | row.text
    if family in ("gemma3", "gemma4"):  # full attention in the last block: in a window alone, it would see no image
        settings["layer_types"] = [("full_attention", "sliding_attention")[i % 2] for i in range(n_layers)]
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in row.tokens.items()}
    config_class: Any = CONFIG_MAPPING[family]
    config = config_class(vision_config=dict(row.vision), text_config=settings, **row.more, **ids)
    with seeded(seed), torch.no_grad():
        hf = AutoModelForImageTextToText.from_config(config, attn_implementation="eager", dtype=torch.float32)
        for parameter in hf.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
        randomize_vectors(hf)
    known = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    never = [hf.config.image_token_id]  # no trained model generates it, and without a cache it would require an image
    hf.generation_config = GenerationConfig(do_sample=False, suppress_tokens=never, **known)
    return hf.eval().requires_grad_(False)


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
    """
    processor = tiny_processor(family)
    model = tiny_vlm_hf(family, **hf)
    layout = find_layout(model)
    return Model(model, processor.tokenizer, layout, id=f"tiny-{family}", backend=backend, processor=processor)


def _find(family: str) -> tuple[_Family, Any]:
    """A family, and `tiny_tokenizer` with its special tokens and a template that places its images."""
    if family not in _FAMILIES:
        raise LoadError(f"unknown family {family!r}; expected one of {', '.join(VLM_FAMILIES)}")
    row, tokenizer = _FAMILIES[family], tiny_tokenizer()
    tokens = dict.fromkeys((*row.tokens.values(), *row.more_tokens))
    tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)})
    template = tokenizer.chat_template.replace("IMAGE", row.placeholder)
    tokenizer.chat_template = None if family == "paligemma" else template
    if family in ("gemma3", "gemma4"):  # their processors take the names of the tokens from the tokenizer
        names: dict[str, Any] = {name.rpartition("_")[0]: token for name, token in row.tokens.items()}
        tokenizer._set_model_specific_special_tokens(names)
    return row, tokenizer
