"""Tiny models in folders, as `save_pretrained` writes them."""

from pathlib import Path
from typing import Any

from steerlab.testing import tiny_hf, tiny_tokenizer


def tiny_folder(path: Path, family: str = "llama", **hf: Any) -> Path:
    """A random model with its tokenizer, saved; `hf` is passed to `tiny_hf`."""
    tiny_hf(family, **hf).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path
