"""The two models of the scenes world, untrained: a small one from scratch, and SmolLM2 with LoRA."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import CLIPImageProcessor as ImageProcessor
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

import steerlab

IMAGE, USER, ASSISTANT, END, PAD = "<image>", "<|user|>", "<|assistant|>", "<|end|>", "<|pad|>"
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|user|>' }}{% elif m['role'] == 'assistant' %}"
    "{{ '<|assistant|>' }}{% endif %}{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for p in m['content'] %}{{ '<image>' if p['type'] == 'image' else p['text'] }}{% endfor %}{% endif %}"
    "{% if m['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

# the chat template of SmolLM2, with images; an unused special token stands for an image, since the embedding table has
# no free row
STAND_IN = "<filename>"
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}{% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for p in m['content'] %}{{ '<filename>' if p['type'] == 'image' else p['text'] }}{% endfor %}"
    "{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Shape:
    """Sizes of the vision tower, and of the language model if it is trained from scratch."""

    side: int = 64
    patch: int = 8
    vision_layers: int = 6
    vision_width: int = 128
    layers: int = 6
    width: int = 160
    heads: int = 5
    vocabulary: int = 640


SMALL = Shape()
FULL = Shape(vision_width=256)


def train_tokenizer(texts: Iterable[str], size: int) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer trained on the questions and answers of the scenes."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[PAD, USER, ASSISTANT, END, IMAGE], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token=PAD, eos_token=END, additional_special_tokens=[USER, ASSISTANT, IMAGE],
        chat_template=TEMPLATE, clean_up_tokenization_spaces=False,
    )  # fmt: skip


def make_processor(tokenizer: Any, shape: Shape, image_token: str = IMAGE) -> LlavaProcessor:
    """LLaVA's processor for images of the size of a scene."""
    size = {"height": shape.side, "width": shape.side}
    images = ImageProcessor(
        size={"shortest_edge": shape.side}, crop_size=size, image_mean=[0.5] * 3, image_std=[0.25] * 3
    )
    return LlavaProcessor(
        images, tokenizer, patch_size=shape.patch, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=tokenizer.chat_template, image_token=image_token,
    )  # fmt: skip


def _vision(shape: Shape) -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=shape.vision_width, intermediate_size=4 * shape.vision_width, image_size=shape.side,
        num_hidden_layers=shape.vision_layers, num_attention_heads=shape.vision_width // 32, patch_size=shape.patch,
        projection_dim=shape.vision_width,
    )  # fmt: skip


def small_model(tokenizer: Any, shape: Shape, seed: int) -> LlavaForConditionalGeneration:
    """A LLaVA model with random weights."""
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    text = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=shape.width, intermediate_size=shape.width * 8 // 3,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.heads,
        max_position_embeddings=512, tie_word_embeddings=True, **ids,
    )  # fmt: skip
    image = tokenizer.convert_tokens_to_ids(IMAGE)
    config = LlavaConfig(
        vision_config=_vision(shape), text_config=text, image_token_index=image,
        vision_feature_layer=-1, vision_feature_select_strategy="default", image_seq_length=64,
        tie_word_embeddings=True,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = LlavaForConditionalGeneration(config)
    model.generation_config = GenerationConfig(do_sample=False, **ids)
    return model


def full_model(shape: Shape, seed: int) -> tuple[LlavaForConditionalGeneration, Any]:
    """SmolLM2-135M-Instruct behind a new vision tower and projector, with LoRA on all its linear maps."""
    from peft import LoraConfig, get_peft_model

    language = steerlab.load("smollm2", device="cpu")
    tokenizer = language.tokenizer
    tokenizer.chat_template = CHATML
    image, text = int(tokenizer.convert_tokens_to_ids(STAND_IN)), language.hf.config  # type: ignore[arg-type]
    assert 0 < image < text.vocab_size, f"the tokenizer has no {STAND_IN}"
    config = LlavaConfig(
        vision_config=_vision(shape), text_config=text, image_token_index=image,
        vision_feature_layer=-1, vision_feature_select_strategy="default", image_seq_length=64,
        tie_word_embeddings=True,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = LlavaForConditionalGeneration(config)
        model.model.language_model.load_state_dict(language.hf.model.state_dict())
        model.tie_weights()
        lora = LoraConfig(r=16, lora_alpha=32, target_modules=_linears(model.model.language_model))
        model.model.language_model = get_peft_model(model.model.language_model, lora)
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    model.generation_config = GenerationConfig(do_sample=False, **ids)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name or "vision_tower" in name or "projector" in name)
    return model, tokenizer


def _linears(module: nn.Module) -> list[str]:
    return sorted({name.rpartition(".")[2] for name, m in module.named_modules() if isinstance(m, nn.Linear)})


def describe(model: nn.Module, shape: Shape) -> dict[str, Any]:
    """Sizes for the model card."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {"shape": asdict(shape), "parameters": sum(p.numel() for p in model.parameters()), "trained": trained}
