"""Whether a model is to see pictures, and the processor that lets it."""

from __future__ import annotations

import copy
import os
from typing import Any

from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoProcessor

from steerlab._support.errors import LoadError


def accepts_images(config: Any) -> bool:
    """Whether a configuration is that of an image-text model, and not of the language model inside one."""
    text_only = any(name.endswith("ForCausalLM") for name in getattr(config, "architectures", None) or ())
    return type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and not text_only


def find_processor(
    given: Any, config: Any, task: str | None, place: str, options: dict[str, Any], tokenizer: Any = None
) -> Any:
    """The processor a model is used with, a copy with a tokenizer of its own, or None for text alone.

    Example:
        >>> find_processor(None, hf.config, None, "llava-hf/llava-1.5-7b-hf", {})

    Args:
        given: a processor, or where to load one from.
        config: the model's configuration.
        task: "text", "image-text", or None for whatever the model and what lies beside it allow.
        place: where the model came from; "" for an object.
        options: for `from_pretrained`.
        tokenizer: one to use instead of the processor's own.

    Raises:
        LoadError: pictures are asked of a text model, or the processor, or a package that it needs, is missing.

    Source: own.
    """
    if task not in (None, "text", "image-text"):
        raise LoadError(f"unknown task {task!r}; expected None, 'text' or 'image-text'")
    if task == "text":
        if given is not None:
            raise LoadError("task='text' reads no pictures, but processor= was given: leave one of them out")
        return None
    if not accepts_images(config):
        if task is None and given is None:
            return None
        asked = "a processor was given" if task is None else "task='image-text' was asked"
        raise LoadError(f"{asked}, but {type(config).__name__} is that of a text-only model: use task='text'")
    if given is None and not place:
        if task is None:
            return None
        raise LoadError("a model object comes without a processor; give load(model, processor=...)")
    wanted = task == "image-text" or given is not None
    found = _read(os.fspath(given) if isinstance(given, str | os.PathLike) else given, place, options, wanted)
    return None if found is None else _copied(found, tokenizer)


def _read(given: Any, place: str, options: dict[str, Any], wanted: bool) -> Any:
    """The processor; where none was asked for, None if the model's place holds none."""
    found = given
    if given is None or isinstance(given, str):
        place = given or place
        try:
            found = AutoProcessor.from_pretrained(place, **options)
        except ImportError as error:
            reason = str(error).strip().partition("\n")[0]
            raise LoadError(
                f"the processor of {place!r} needs a package that is not installed ({reason}): "
                "pip install 'steerlab[vision]', or give load(..., task='text') to use the model without pictures"
            ) from error
        except (OSError, ValueError, KeyError, AttributeError) as error:
            if not wanted:
                return None
            raise LoadError(
                f"no processor could be read from {place!r}: {error}. Expected its files beside the model's; save them "
                "there with processor.save_pretrained, or give load(..., processor=...)"
            ) from error
    missing = [name for name in ("image_processor", "tokenizer", "image_token") if not hasattr(found, name)]
    if missing and wanted:
        raise LoadError(
            f"{type(found).__name__} is no processor of an image-text model: it has no {', '.join(missing)}. Expected "
            "one such as LlavaProcessor, with the image processor's files beside the model's; or use task='text'"
        )
    return None if missing else found  # a place without an image processor gives its tokenizer


def _copied(processor: Any, tokenizer: Any) -> Any:
    processor = copy.copy(processor)
    processor.tokenizer = copy.deepcopy(tokenizer or processor.tokenizer)
    if getattr(processor, "chat_template", None):
        processor.tokenizer.chat_template = processor.chat_template  # the tokenizer's may know of no pictures
    return processor
