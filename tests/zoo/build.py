"""Every causal and image-text architecture of the installed transformers, made tiny and random, without network."""

import copy
import inspect
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from torch import nn
from transformers import CONFIG_MAPPING, GenerationConfig
from transformers.models.auto import modeling_auto

from steerlab.testing import tiny_tokenizer

VOCABULARY = 320  # that of the tokenizer (273), and ids for images, audio and so on, which no prompt holds
LAYERS, HIDDEN, HEADS, WINDOW = 4, 32, 4, 16
FORBIDDEN = (*range(4), *range(len(tiny_tokenizer()), VOCABULARY))  # special tokens, which are never generated

_LAYERS = ["num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "num_decoder_layers", "layers"]
# fields of configurations by the size that they get
_SIZES = {
    "hidden": """
        hidden_size d_model n_embd dim embed_dim emb_dim out_hidden_size embedding_size word_embed_proj_dim input_size
        projection_dim text_hidden_size encoder_hidden_size output_dim d_embed lru_width embedding_dim mm_embed_dim
        hidden_size_global input_embedding_size output_embedding_size attention_hidden_size output_proj_dims
        audio_embed_dim image_text_hidden_size projector_hidden_size backbone_hidden_size patch_embed_hidden_size
        image_size resolution router_hidden_size feature_size moe_intermediate_size expert_ffn_hidden_size
        moe_shared_expert_intermediate_size""",
    "inner": """
        intermediate_size ffn_dim n_inner d_inner decoder_ffn_dim encoder_ffn_dim ffn_hidden_size d_ff dff dim_ff
        mlp_dim shared_expert_intermediate_size shared_intermediate_size intermediate_size_mlp feed_forward_size
        mamba_d_ssm dense_intermediate_size prefix_dense_intermediate_size block_multiple_of
        alignment_intermediate_size""",
    "layers": f"{' '.join(_LAYERS)} encoder_layers num_encoder_layers",
    "heads": """
        num_attention_heads n_head n_heads num_heads attention_heads decoder_attention_heads encoder_attention_heads
        num_encoder_attention_heads num_decoder_attention_heads swa_num_attention_heads conf_num_attention_heads
        linear_num_heads mamba_n_heads num_experts num_local_experts moe_num_experts""",
    "head": """
        head_dim swa_head_dim attention_head_size dim_head d_head v_head_dim kv_channels patch_size d_kv rotary_dim
        linear_key_head_dim linear_value_head_dim linear_head_dim mamba_d_state state_size ssm_state_size
        qk_rope_head_dim qk_nope_head_dim index_head_dim n_routed_experts""",
    "two": """
        depth num_blocks num_global_layers conf_num_hidden_layers num_key_value_heads swa_num_key_value_heads
        num_kv_heads num_experts_per_tok moe_topk moe_k moe_top_k top_k_experts topk_group n_group n_groups
        mamba_n_groups mamba_ngroups linear_num_key_heads linear_num_value_heads resampler_depth
        temporal_patch_size hc_mult hc_count o_groups""",
    # prompts are longer than these; an indexer of few heads gives many tokens the same score, so that any may win
    "window": """
        sliding_window sliding_window_size attention_window_size attention_chunk_size local_attention index_topk
        index_n_heads kv_lora_rank q_lora_rank o_lora_rank mamba_chunk_size chunk_size laurel_rank num_query_tokens""",
    "positions": "max_position_embeddings n_positions n_ctx max_seq_len context_length max_target_positions",
    "vocabulary": "vocab_size decoder_vocab_size vocab_size_per_layer_input unpadded_vocab_size",
}
_SIZE = {"hidden": HIDDEN, "inner": 2 * HIDDEN, "layers": LAYERS, "heads": HEADS, "head": HIDDEN // HEADS, "two": 2}
_SIZE |= {"window": WINDOW, "positions": 512, "vocabulary": VOCABULARY}
_BY_NAME = {name: _SIZE[kind] for kind, names in _SIZES.items() for name in names.split()}
_BESIDE_TEXT = ("vision", "audio", "sam", "vq", "vit", "speech", "qformer", "perceiver", "encoder", "image", "protein")


def _of_text(fields: dict[str, Any]) -> dict[str, Any]:
    return {f"text_config.{name}": value for name, value in fields.items()}


# what the names don't tell, by model type; a dotted name is a field of a part
_ATTENTION = ("sliding_attention", "full_attention")
_MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}
_TEXT_MROPE = _of_text(_MROPE)
_UNTIED = {"tie_word_embeddings": False}  # where scaled embeddings drown four random blocks
_COMPASS = {"rope_parameters": {kind: {"rope_type": "default", "rope_theta": 1e4} for kind in _ATTENTION}}
_GEMMA3N = {"num_kv_shared_layers": 2, "layer_types": [*_ATTENTION] * 2}
_QWEN4 = {"indexer_n_heads": 16, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": WINDOW}
_QWEN4 |= {"indexer_compress_ratio": 4, "ple_layer_ids": [1], "ngram_vocab_size_base": 97, "heads_per_ngram": 2}
_QWEN4 |= {"split_ngram_parts": 1, "make_ngram_vocab_size_divisible_by": 8}
_IMAGE_MAP = {"<image>": 300, "IMGIMGAZ": 301, "IMGIMGBZ": 302}
_LIKE_QWEN2_VL = ("cosmos3_edge", "glm46v", "glm4v", "glm_ocr", "glmga", "paddleocr_vl", "qwen2_5_vl", "qwen2_vl")
OVERRIDES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(_LIKE_QWEN2_VL, _TEXT_MROPE),
    **{name: {"head_dim": 8} for name in ("hunyuan_v1_dense", "hunyuan_v1_moe", "ministral")},
    **dict.fromkeys(("gemma3", "shieldgemma2"), _UNTIED | _of_text(_UNTIED)),
    "bamba": {"attn_layer_indices": [1, 3]},
    "blt": {"num_hidden_layers": LAYERS, "encoder_hash_byte_group_vocab": 64},
    "chameleon": {"vocabulary_map": _IMAGE_MAP, "vq_config.base_channels": 32},
    "cohere_compass": _of_text(_COMPASS),
    "cohere_compass_text": _COMPASS,
    "dbrx": {"attn_config.rope_theta": 1e4, "attn_config.kv_n_heads": 2, "attn_config.clip_qkv": 8.0},
    "deepseek_ocr2": {"text_config.mlp_layer_types": ["dense", "sparse"] * 2, "text_config.num_experts_per_tok": 2},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "diffusion_gemma": _of_text({"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": HIDDEN}),
    "dots1": {"n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "emu3": {"vocabulary_map": _IMAGE_MAP, "vq_config.base_channels": 32, "vq_config.codebook_size": 64},
    "ernie4_5_vl_moe": {"text_config.rope_parameters": _MROPE["rope_parameters"] | {"mrope_section": [1, 1, 2]}},
    "gemma3n": _of_text(_GEMMA3N),
    "gemma3n_text": _GEMMA3N,
    "glm4v_moe": _TEXT_MROPE | {"text_config.head_dim": 16},
    "glm5_next": {"text_config.qk_rope_head_dim": 0, "text_config.head_dim": 0},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": WINDOW},
    "granite4_vision": {"vision_config.hidden_size": 64, "downsample_rate": "1/2"}
    | {"spatial_target_layers": [0, 1, 2, 3], "deepstack_layer_map": [[0, 1], [1, 2]]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},
    "hunyuan_vl": {"text_config.head_dim": 8} | _TEXT_MROPE,
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "janus": {"vq_config.base_channels": 32},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "minicpm3": _UNTIED,
    "molmo2": {"adapter_config.vision_feature_layer": [1, 0]},
    "nemotron": {"num_key_value_heads": 2},
    "nemotron_h_omni": {"vision_config.video_temporal_patch_size": 2},
    "qwen2_5_omni_thinker": _TEXT_MROPE | {"vision_start_token_id": 300},
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 300},
    "qwen4_exp": _of_text(_QWEN4),
    "qwen4_exp_text": _QWEN4,
    "reformer": {"axial_pos_embds": False, "hash_seed": 1, "attn_layers": ["local", "lsh"] * 2, "num_buckets": 4}
    | {f"{kind}_attn_chunk_length": WINDOW for kind in ("local", "lsh")},
    "step3p7": {"text_config.sliding_window": WINDOW},
    "xlstm": {"num_blocks": LAYERS, "hidden_size": 128, "embedding_dim": 128},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"attention_hidden_size": 2 * HIDDEN, "attention_head_dim": 16},
    "zaya": {"num_experts_per_tok": 1},
}
_NEED_TIMM = ("fast_vlm", "gemma3n", "perception_lm")  # their vision tower gives way to one of transformers' own
# BERT's kin are built as decoders; these two are tried as the encoders that they are by default, too
_ENCODER, _ENCODERS = "+encoder", ("bert/BertLMHeadModel", "roberta/RobertaForCausalLM")


class Unbuildable(Exception):
    """This class can't be made tiny here; the message says why."""


def architectures() -> list[str]:
    """All distinct `model_type/Class` of the two mappings, and two of them as encoders."""
    both = (modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
    return sorted({pair for mapping in both for pair in _pairs(mapping)} | {f"{name}{_ENCODER}" for name in _ENCODERS})


def reads_images(name: str) -> bool:
    """Whether an architecture is one of the image-text mapping."""
    return name in set(_pairs(modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES))


def build(name: str, seed: int = 0) -> Any:
    """A tiny random model: float32, eval mode, and special tokens are never generated.

    Raises:
        Unbuildable: with the reason.
    """
    model_type, _, cls = name.removesuffix(_ENCODER).partition("/")
    decoder = model_type in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not name.endswith(_ENCODER)
    try:
        kind, config = getattr(transformers, cls), tiny_config(model_type, decoder=decoder)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            hf = kind._from_config(_part_of(kind, config), dtype=torch.float32)
            _randomize(hf)
    except Exception as error:
        raise Unbuildable(f"{type(error).__name__}: {error}") from error
    tokens = tiny_tokenizer()
    ids = {name: getattr(tokens, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    hf.generation_config = GenerationConfig(do_sample=False, suppress_tokens=list(FORBIDDEN), **ids)
    return hf.float().eval().requires_grad_(False)


def tiny_config(model_type: str, *, decoder: bool) -> Any:
    """The configuration of a model type with small sizes."""
    kind = CONFIG_MAPPING[model_type]
    given = {"is_decoder": True} if decoder and "is_decoder" in inspect.signature(kind.__init__).parameters else {}
    config = kind(**_shrink(kind, kind(), given | copy.deepcopy(OVERRIDES.get(model_type, {}))))
    if model_type in _NEED_TIMM:  # past the check of its type
        sizes = dict.fromkeys(("hidden_size", "intermediate_size", "image_size"), HIDDEN)
        sizes |= {"num_attention_heads": HEADS, "num_hidden_layers": 2, "patch_size": 8}
        fields = {"model_args": {"embed_dim": HIDDEN}, "rms_norm_eps": 1e-6, "vocab_size": 2, "vocab_offset": 318}
        vars(config)["vision_config"] = transformers.SiglipVisionConfig(**sizes, **fields)
    return config


def _pairs(mapping: Any) -> Iterator[str]:
    for model_type, classes in mapping.items():
        for cls in [classes] if isinstance(classes, str) else classes:
            yield f"{model_type}/{cls}"


def _part_of(kind: Any, config: Any) -> Any:
    """The configuration itself, or the part of it that the class takes."""
    wanted = kind.config_class
    if wanted is None or isinstance(config, wanted):
        return config
    parts = (getattr(config, name) for name in config.sub_configs)
    return next((part for part in parts if isinstance(part, wanted)), config)


def _shrink(kind: Any, default: Any, overrides: dict[str, Any], beside: bool = False) -> dict[str, Any]:
    """The arguments of a configuration class for a tiny model.

    Args:
        kind: the class.
        default: its default instance.
        overrides: values by name; for a part, with its name and a dot before.
        beside: whether it is a part beside the text.
    """
    found: dict[str, Any] = {}
    depth = next((_value(default, n) for n in _LAYERS if isinstance(_value(default, n), int)), 0)
    for name in inspect.signature(kind.__init__).parameters:
        value = _value(default, name)
        if hasattr(value, "to_dict"):
            inner = {k.partition(".")[2]: v for k, v in overrides.items() if k.startswith(f"{name}.")}
            other = beside or any(word in name for word in _BESIDE_TEXT)
            found[name] = type(value)(**_shrink(type(value), value, inner, other))
        elif isinstance(value, bool) or value is None:
            continue
        elif name in _BY_NAME and isinstance(value, int | float):
            found[name] = 2 if beside and name in _LAYERS else _BY_NAME[name]
        elif isinstance(value, list | tuple) and len(value) == depth > 0:
            kinds = list(dict.fromkeys(value)) if isinstance(value[0], str) else value
            kinds = [_BY_NAME[name]] if name in _BY_NAME else kinds
            found[name] = [kinds[i % len(kinds)] for i in range(2 if beside else LAYERS)]
    if "kv_lora_rank" in found and "num_key_value_heads" in found:
        found["num_key_value_heads"] = HEADS  # latent attention expands to all heads
    found |= {k: v for k, v in _tokens(kind, default).items() if not beside}
    return found | {k: v for k, v in overrides.items() if "." not in k}


def _value(config: Any, name: str) -> Any:
    """A field of a configuration, or None; a property of it may raise where layers differ."""
    fields = vars(config)
    return fields.get(name, fields.get(config.attribute_map.get(name, name)))


def _tokens(kind: Any, default: Any) -> dict[str, int]:
    """Ids of special tokens: those of the tokenizer, and others above its vocabulary for images and the like."""
    tokens, found = tiny_tokenizer(), {}
    for name in inspect.signature(kind.__init__).parameters:
        if name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            found[name] = int(getattr(tokens, name))
        elif name.endswith(("_token_id", "_token_index")) and isinstance(_value(default, name), int):
            found[name] = len(tokens) + len(found)
    return found


@torch.no_grad()
def _randomize(hf: nn.Module) -> None:
    """Random weights of a size at which every layer counts; norms, biases and decays keep their scale and get noise."""
    for name, parameter in hf.named_parameters():
        if not parameter.requires_grad or not parameter.is_floating_point():
            continue
        if parameter.ndim == 1 or any(part in name for part in ("A_log", "decay", "dt_")):
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
        else:
            parameter.normal_(0, 0.2)
