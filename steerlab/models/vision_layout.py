"""Where an image-text model keeps what comes before its text: the blocks of its vision tower, and the projector."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import nn

_VISION = re.compile(r"vision|visual|image|^vit$")
_PROJECTOR = re.compile(r"projector|connector|^merger$")


def find_tower(hf: nn.Module, text: str) -> tuple[str | None, str | None]:
    """The paths of the vision blocks and of the projector, each None where there is none.

    Example:
        >>> find_tower(tiny_vlm_hf("qwen2_vl"), "model.language_model.layers")
        ('model.visual.blocks', 'model.visual.merger')

    Args:
        hf: a model.
        text: path of the decoder blocks; nothing beside them is looked at.

    Source: own.
    """
    decoder = text.rpartition(".")[0]
    named = [(path, module) for path, module in hf.named_modules() if not path.startswith(f"{decoder}.")]
    lists = {path: len(module) for path, module in named if isinstance(module, nn.ModuleList) and _in_tower(path)}
    outer = {path: n for path, n in lists.items() if not any(path.startswith(f"{other}.") for other in lists)}
    blocks = max(outer, key=outer.__getitem__) if any(outer.values()) else None
    return blocks, next(_projectors(named), None) if blocks else None


def _in_tower(path: str) -> bool:
    return any(_VISION.search(part) for part in path.split("."))


def _projectors(named: list[tuple[str, nn.Module]]) -> Iterator[str]:
    return (path for path, _ in named if _PROJECTOR.search(path.rpartition(".")[2]))


def deepest_used_block(config: Any, n_blocks: int) -> int:
    """The last block of the vision tower whose output reaches the text.

    LLaVA's projectors read `hidden_states[config.vision_feature_layer]`, in released models the last but one; what
    the blocks above it hold is thrown away.

    Example:
        >>> deepest_used_block(LlavaConfig(vision_feature_layer=-2), 24)
        22

    Args:
        config: the model's configuration; without the field, every block counts.
        n_blocks: blocks of the tower; `hidden_states` has one entry more, the first being the embeddings.
    """
    read = getattr(config, "vision_feature_layer", None)
    if read is None:
        return n_blocks - 1
    return max(i % (n_blocks + 1) for i in ([read] if isinstance(read, int) else read)) - 1


def normalized_width(block: nn.Module) -> int | None:
    """The width of the states that a block normalizes, or None if it has no norm."""
    norms = (m for m in block.modules() if type(m).__name__.endswith("Norm"))
    return next((int(m.weight.shape[0]) for m in norms if isinstance(m.weight, nn.Parameter)), None)
