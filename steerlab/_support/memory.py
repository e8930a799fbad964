"""After memory ran out."""

from __future__ import annotations

import gc

import torch


def free_memory() -> None:
    """Give back what nothing holds any more, so that a smaller batch finds room."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
