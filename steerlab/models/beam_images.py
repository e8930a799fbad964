"""Beams and return sequences of image-text models: does `generate` give every copy of a row the images of that row?

`generate` repeats rows for beams and return sequences. Older transformers repeat image tensors along their first axis:
A A B B for a row with images A and B, where A B A B is needed. Newer ones count image tokens. A row whose tensors have
length one (one image, or all images in one tensor) is right either way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import GenerationMixin

from steerlab.errors import EncodingError
from steerlab.models.encoding import EncodedPrompt
from steerlab.models.model import Model


def check_beam_images(model: Model, rows: Sequence[EncodedPrompt], options: Mapping[str, Any]) -> None:
    """Check that beam search and multiple return sequences keep each row's images.

    Example:
        >>> check_beam_images(model, rows, {"num_beams": 4})

    Args:
        model: the model that generates.
        rows: the encoded rows.
        options: options of Hugging Face's `generate`.

    Raises:
        EncodingError: names the first row whose copies would get images of other rows.
    """
    config = options.get("generation_config") or model.hf.generation_config
    copies = [options.get(name, getattr(config, name, None)) or 1 for name in ("num_beams", "num_return_sequences")]
    if model.vision is None or max(copies) == 1 or _counts_tokens(model):
        return
    for row in rows:
        if any(len(tensor) != 1 for tensor in model.vision.expand(row.images).tensors.values()):
            raise EncodingError(
                f"the row {row.example_id!r} has {len(row.images)} images, and this version of transformers pairs its "
                "copies with wrong ones: upgrade to 5.22, or give num_beams=1 and num_return_sequences=1"
            )


def _counts_tokens(model: Model) -> bool:
    counts = hasattr(model.hf, "_expand_multimodal_outputs") and "mm_encoder_outputs" in model.accepted_inputs
    name = "_expand_inputs_for_generation"  # Qwen overrode it, and assigned images to rows correctly
    return counts or getattr(type(model.hf), name) is not getattr(GenerationMixin, name)
