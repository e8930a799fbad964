"""Tokenizers and processors of every image-text family, for pictures of a few pixels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers

from steerlab._support.errors import LoadError
from steerlab.testing.text import SYSTEM, tiny_tokenizer

_classes: Any = transformers
SIDE = 24  # of a picture as the vision tower sees it
PATCH = 8
_TEMPLATE = (
    "{{ bos_token }}"
    "{% if not messages or messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\n" + SYSTEM + "<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ 'PICTURE' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# Special tokens, the first being what stands for one feature; then what a user's turn shows for a picture.
MARKS: dict[str, tuple[tuple[str, ...], str]] = {
    "llava": (("<image>",), "<image>"),
    "llava_next": (("<image>",), "<image>"),
    "qwen2_vl": (
        ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"),
        "<|vision_start|><|image_pad|><|vision_end|>",
    ),
    "idefics3": (
        (
            *("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<video>"),
            *(f"<row_{r}_col_{c}>" for r in range(1, 4) for c in range(1, 4)),
        ),
        "<image>",
    ),
    "gemma3": (("<image_soft_token>", "<start_of_image>", "<end_of_image>"), "<start_of_image>"),
    "paligemma": (("<image>",), "<image>"),
}
MARKS["qwen2_5_vl"], MARKS["smolvlm"] = MARKS["qwen2_vl"], MARKS["idefics3"]
VLM_FAMILIES = ("llava", "llava_next", "qwen2_vl", "qwen2_5_vl", "idefics3", "smolvlm", "gemma3", "paligemma")


def tiny_processor(family: str = "llava") -> Any:
    """The family's own processor class around `tiny_tokenizer`, for pictures of 24 pixels.

    Example:
        >>> tiny_processor("llava")(text=["<image>hi"], images=[image]).input_ids

    Raises:
        LoadError: unknown family, or a package that the processor needs is missing.

    Source: own.
    """
    if family not in VLM_FAMILIES:
        raise LoadError(f"unknown family {family!r}; expected one of {', '.join(VLM_FAMILIES)}")
    tokenizer = image_tokenizer(family)
    try:
        return _PROCESSORS[family](tokenizer)
    except ImportError as error:
        raise LoadError(
            f"the {family} processor needs a package that is not here ({error}): pip install 'steerlab[vision]'"
        ) from error


def image_tokenizer(family: str) -> Any:
    """`tiny_tokenizer` with a family's special tokens, and a template that knows where its pictures go."""
    tokens, image = MARKS[family]
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)})
    tokenizer.chat_template = None if family == "paligemma" else _TEMPLATE.replace("IMAGE", image)
    if family == "gemma3":  # its processor asks the tokenizer what the tokens are called
        tokenizer._set_model_specific_special_tokens(
            dict(zip(("image_token", "boi_token", "eoi_token"), tokens, strict=True))
        )
    return tokenizer


def _square(side: int = SIDE) -> dict[str, int]:
    return {"height": side, "width": side}


def _clip(kind: str, **more: Any) -> Any:
    return getattr(_classes, kind)(size={"shortest_edge": SIDE}, crop_size=_square(), **more)


def _llava(tokenizer: Any) -> Any:
    return _classes.LlavaProcessor(
        _clip("CLIPImageProcessor"), tokenizer, patch_size=PATCH, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=tokenizer.chat_template,
    )  # fmt: skip


def _llava_next(tokenizer: Any) -> Any:
    pinpoints = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]
    return _classes.LlavaNextProcessor(
        _clip("LlavaNextImageProcessor", image_grid_pinpoints=pinpoints), tokenizer, patch_size=PATCH,
        vision_feature_select_strategy="default", num_additional_image_tokens=1, chat_template=tokenizer.chat_template,
    )  # fmt: skip


def _qwen(kind: str) -> Callable[[Any], Any]:
    def make(tokenizer: Any) -> Any:
        sizes = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
        size = {"shortest_edge": 16 * 16, "longest_edge": 32 * 32}
        return getattr(_classes, kind)(
            _classes.Qwen2VLImageProcessor(size=size, **sizes), tokenizer,
            _classes.Qwen2VLVideoProcessor(size=size, **sizes), chat_template=tokenizer.chat_template,
        )  # fmt: skip

    return make


def _idefics3(tokenizer: Any) -> Any:
    sizes = {"size": {"longest_edge": 2 * SIDE}, "max_image_size": {"longest_edge": SIDE}}
    return _classes.Idefics3Processor(
        _classes.Idefics3ImageProcessor(**sizes), tokenizer, image_seq_len=9, chat_template=tokenizer.chat_template
    )


def _smolvlm(tokenizer: Any) -> Any:
    sizes = {"size": {"longest_edge": 2 * SIDE}, "max_image_size": {"longest_edge": SIDE}}
    return _classes.SmolVLMProcessor(
        _classes.SmolVLMImageProcessor(**sizes), tokenizer, _classes.SmolVLMVideoProcessor(**sizes),
        image_seq_len=9, chat_template=tokenizer.chat_template,
    )  # fmt: skip


def _gemma3(tokenizer: Any) -> Any:
    images = _classes.Gemma3ImageProcessor(size=_square())
    return _classes.Gemma3Processor(images, tokenizer, tokenizer.chat_template, image_seq_length=9)


def _paligemma(tokenizer: Any) -> Any:
    images = _classes.SiglipImageProcessor(size=_square())
    images.image_seq_length = 9
    return _classes.PaliGemmaProcessor(images, tokenizer)


_PROCESSORS: dict[str, Callable[[Any], Any]] = {
    "llava": _llava,
    "llava_next": _llava_next,
    "qwen2_vl": _qwen("Qwen2VLProcessor"),
    "qwen2_5_vl": _qwen("Qwen2_5_VLProcessor"),
    "idefics3": _idefics3,
    "smolvlm": _smolvlm,
    "gemma3": _gemma3,
    "paligemma": _paligemma,
}
