"""Several answers to one row: does Hugging Face give every copy of a row the row's own pictures?

Beams and return sequences repeat rows. Older transformers repeat the pictures' tensors along their first axis by
themselves, A A B B for a row with the pictures A and B where A B A B is meant, without a word; newer ones count image
tokens. A row whose tensors are of length one (one picture, or all of the row's in one) is right either way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import GenerationMixin

from steerlab._support.errors import EncodingError
from steerlab.models.encoded_prompt import EncodedPrompt
from steerlab.models.model import Model


def check_beam_images(model: Model, rows: Sequence[EncodedPrompt], options: Mapping[str, Any]) -> None:
    """Refuse copies of rows that would be paired with other rows' pictures.

    Example:
        >>> check_beam_images(model, rows, {"num_beams": 4})

    Args:
        model: the model that generates.
        rows: the encoded rows.
        options: what Hugging Face's `generate` is given.

    Raises:
        EncodingError: naming the first such row.

    Source: own; tests/vision/test_vision_steering.py shows the defect in transformers 5.15.
    """
    config = options.get("generation_config") or model.hf.generation_config
    asked = [options.get(name, getattr(config, name, None)) or 1 for name in ("num_beams", "num_return_sequences")]
    if model.vision is None or max(asked) == 1 or _counts_tokens(model):
        return
    for row in rows:
        if any(len(tensor) != 1 for tensor in model.vision.expand(row.images).tensors.values()):
            raise EncodingError(
                f"the row {row.example_id!r} has {len(row.images)} pictures, and this version of transformers "
                f"pairs copies "
                f"of {type(model.hf).__name__}'s rows with the wrong ones: give num_beams=1 and num_return_sequences=1 "
                "(the same example several times does what the latter does), or upgrade transformers to 5.22"
            )


def _counts_tokens(model: Model) -> bool:
    counts = hasattr(model.hf, "_expand_multimodal_outputs") and "mm_encoder_outputs" in model.accepted_inputs
    name = "_expand_inputs_for_generation"  # Qwen once had its own, which sorted pictures by row
    return counts or getattr(type(model.hf), name) is not getattr(GenerationMixin, name)
