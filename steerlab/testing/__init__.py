"""Small random models of many families, without a network and built in milliseconds: for our tests and for yours."""

from steerlab.testing.text import BOS, EOS, FAMILIES, PAD, START, SYSTEM, tiny_hf, tiny_lm, tiny_tokenizer
from steerlab.testing.vision import VLM_FAMILIES, tiny_processor, tiny_vlm, tiny_vlm_hf

__all__ = [
    "BOS", "EOS", "FAMILIES", "PAD", "START", "SYSTEM", "VLM_FAMILIES", "tiny_hf", "tiny_lm", "tiny_processor",
    "tiny_tokenizer", "tiny_vlm", "tiny_vlm_hf",
]  # fmt: skip
