"""Changed weights of a model: which models can be changed, and a `Model` around what became of one."""

from __future__ import annotations

from typing import Any

from steerlab.errors import SteeringError
from steerlab.models.loading import load
from steerlab.models.model import Model


def check_changeable(model: Model) -> None:
    """Refuse a model whose weights can't be copied and changed.

    Raises:
        SteeringError: they are on a server, or quantized.
    """
    if model.is_remote or getattr(model.hf, "is_quantized", False):
        raise SteeringError(f"{model.id} is on a server or quantized: load it in float32 or bfloat16 in this process")


def check_no_adapter(model: Model) -> None:
    """Refuse a model with a LoRA adapter, whose layers are not those of the checkpoint.

    Raises:
        SteeringError: says how to merge it.
    """
    if any("lora_" in name for name, _ in model.hf.named_parameters()):
        raise SteeringError(f"{model.id} has an adapter already: merge it first, prepare(model, merge=True)")


def with_weights(model: Model, hf: Any, name: str) -> Model:
    """A `Model` around changed weights of another, checked as `load` does, with all else the same."""
    processor = model.vision.processor if model.vision else None
    found = load(
        hf, tokenizer=model.tokenizer, processor=processor, chat=model.chat, blocks=model.layout.blocks_path,
        backend=model.backend, task=None if processor else "text", prefix_caching=model.prefix_caching,
    )  # fmt: skip
    found.id = name
    return found
