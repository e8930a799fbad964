"""Where a model keeps its decoder blocks, final norm and head, and an image-text model its vision tower."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from steerlab.errors import LayoutError
from steerlab.models.families import NOT_TEXT, Family, family_of
from steerlab.models.sites import POINTS


@dataclass(frozen=True)
class Layout:
    """Dotted paths of modules inside a Hugging Face model.

    Example:
        >>> Layout("model.layers", "model.norm", "lm_head", "self_attn", "mlp")

    Args:
        blocks_path: path of the list of decoder blocks, from the model as loaded.
        final_norm_path: path of the norm between the last block and the head, or None.
        head_path: path of the unembedding, or None.
        attention_name: name of the attention module inside every block, or None where blocks differ.
        mlp_name: name, inside every block, of the module whose output is the MLP's, or None.
        heads_name: path, inside every block, of the output projection of its attention, or None.
        vision_path: path of the list of blocks of the vision tower, or None.
        projector_path: path of the module between the vision tower and the text, or None.
    """

    blocks_path: str
    final_norm_path: str | None
    head_path: str | None
    attention_name: str | None
    mlp_name: str | None
    vision_path: str | None = None
    projector_path: str | None = None
    heads_name: str | None = None

    @property
    def points(self) -> tuple[str, ...]:
        """The points of a block that are read and written, in the order of a forward."""
        names = {"heads": self.heads_name, "attn_out": self.attention_name, "mlp_out": self.mlp_name}
        absent = {point: name is None for point, name in names.items()}
        return tuple(point for point in POINTS if not absent.get(point))


def find_layout(hf: nn.Module, blocks: str | None = None) -> Layout:
    """Find the decoder blocks, the final norm, the head and the vision tower of a model.

    Example:
        >>> find_layout(tiny_hf("gpt2")).blocks_path
        'transformer.h'

    Args:
        hf: a language model; multimodal wrappers are looked through.
        blocks: dotted path of the list of blocks, for a model that is not recognized.

    Raises:
        LayoutError: no list of blocks was found, or there is none at `blocks`.
    """
    path = _find_blocks(hf) if blocks is None else blocks
    members = _block_lists(hf).get(path) if path is not None else None
    if path is None or members is None:
        raise LayoutError(_not_found(hf, blocks))
    family = family_of(getattr(hf, "config", None))
    vision, projector = _find_vision(hf, path, family)
    attention = _shared_name(members, family.attention)
    return Layout(
        blocks_path=path,
        final_norm_path=_final_norm(hf, path, family),
        head_path=_head(hf, family),
        attention_name=attention,
        mlp_name=_shared_name(members, family.mlp),
        vision_path=vision,
        projector_path=projector,
        heads_name=attention and _find_projection(members, attention, family),
    )


def blocks(hf: nn.Module, layout: Layout) -> list[nn.Module]:
    """The decoder blocks, bottom first.

    Example:
        >>> len(blocks(hf, find_layout(hf)))

    Raises:
        LayoutError: the layout is not that of this model.
    """
    return list(module_at(hf, layout.blocks_path).children())


def module_at(hf: nn.Module, path: str) -> nn.Module:
    """The submodule at a dotted path; the empty path is the model itself.

    Example:
        >>> module_at(hf, "model.norm")

    Raises:
        LayoutError: there is no such submodule; the message names the part of the path that exists.
    """
    module, seen = hf, ""
    for name in path.split(".") if path else ():
        children = dict(module.named_children())
        if name not in children:
            found = ", ".join(children) or "no children"
            raise LayoutError(
                f"no module {path!r} in {type(hf).__name__}: {seen or 'its root'} has {found}, not {name!r}"
            )
        module, seen = children[name], f"{seen}.{name}".lstrip(".")
    return module


def normalized_width(block: nn.Module) -> int | None:
    """The width of the states that a block normalizes, or None if it has no norm; norms deeper in are of heads."""
    modules = sorted(block.named_modules(), key=lambda named: named[0].count("."))
    weights = (getattr(m, "weight", None) for _, m in modules if type(m).__name__.endswith("Norm"))
    return next((int(weight.shape[0]) for weight in weights if isinstance(weight, nn.Parameter)), None)


def heads_width(hf: nn.Module, layout: Layout, layer: int) -> int:
    """The width of the heads' results of a block together: what its output projection takes."""
    projection: Any = module_at(hf, f"{layout.blocks_path}.{layer}.{layout.heads_name}")
    return int(getattr(projection, "in_features", 0) or projection.weight.shape[0])  # GPT-2 has a transposed weight


def _block_lists(hf: nn.Module) -> dict[str, list[nn.Module]]:
    lists = ((p, m) for p, m in hf.named_modules() if isinstance(m, nn.ModuleList | nn.Sequential))
    return {path: list(module) for path, module in lists if len(module)}


def _path_of(hf: nn.Module, module: nn.Module) -> str | None:
    return next((path for path, found in hf.named_modules() if found is module), None)


def _find_blocks(hf: nn.Module) -> str | None:
    """The longest list of the decoder, else of the model: outermost only, or a list of experts could be longer."""
    decoder: Any = getattr(hf, "get_decoder", nn.Module)()
    if lists := [m for m in decoder.children() if isinstance(m, nn.ModuleList) and len(m)]:
        return _path_of(hf, max(lists, key=len))
    candidates: dict[str, int] = {}
    for path, members in _block_lists(hf).items():
        text = not any(NOT_TEXT.search(part) for part in path.split("."))
        nested = any(path.startswith(f"{outer}.") for outer in candidates)
        uniform = isinstance(hf.get_submodule(path), nn.ModuleList) and len({type(m) for m in members}) == 1
        if text and uniform and not nested:
            candidates[path] = len(members)
    return max(candidates, key=candidates.__getitem__) if candidates else None


def _final_norm(hf: nn.Module, path: str, family: Family) -> str | None:
    """The norm beside the blocks, or else beside the module that holds them."""
    parent = path
    while parent:
        parent = parent.rpartition(".")[0]
        children = dict(module_at(hf, parent).named_children())
        norms = [name for name, module in children.items() if type(module).__name__.endswith("Norm")]
        if name := next((name for name in family.final_norm if name in children), norms[-1] if norms else None):
            return f"{parent}.{name}".lstrip(".")
    return None


def _head(hf: nn.Module, family: Family) -> str | None:
    head: Any = getattr(hf, "get_output_embeddings", lambda: None)()
    if head is not None:
        return _path_of(hf, head)
    return next((name for name, _ in hf.named_children() if name in family.head), None)


def _shared_name(members: Sequence[nn.Module], names: Sequence[str]) -> str | None:
    return next((n for n in names if all(isinstance(getattr(b, n, None), nn.Module) for b in members)), None)


def _find_projection(members: Sequence[nn.Module], attention: str, family: Family) -> str | None:
    """The path, the same in every block, of the module that maps the heads' results to the attention's output."""
    found = set()
    for block in members:
        paths = (path for path, _ in module_at(block, attention).named_modules())
        found.add(next((path for path in paths if path.rpartition(".")[2] in family.projection), None))
    path = found.pop() if len(found) == 1 else None
    return path and f"{attention}.{path}"


def _find_vision(hf: nn.Module, text: str, family: Family) -> tuple[str | None, str | None]:
    """The paths of the vision blocks and of the projector; modules beside the decoder blocks are not searched."""
    decoder = text.rpartition(".")[0]
    named = [(path, module) for path, module in hf.named_modules() if not path.startswith(f"{decoder}.")]
    lists = {path: len(module) for path, module in named if isinstance(module, nn.ModuleList)}
    lists = {p: n for p, n in lists.items() if any(re.search(family.vision, part) for part in p.split("."))}
    outer = {path: n for path, n in lists.items() if not any(path.startswith(f"{other}.") for other in lists)}
    if not any(outer.values()):
        return None, None
    projectors = (path for path, _ in named if re.search(family.projector, path.rpartition(".")[2]))
    return max(outer, key=outer.__getitem__), next(projectors, None)


def _not_found(hf: nn.Module, wanted: str | None) -> str:
    lists = [f"{path} ({len(members)} x {type(members[0]).__name__})" for path, members in _block_lists(hf).items()]
    what = f"no list of blocks at {wanted!r}" if wanted is not None else "no list of decoder blocks found"
    known = f"the lists in it are: {', '.join(lists)}" if lists else "it holds no ModuleList at all"
    return f'{what} in {type(hf).__name__}; {known}. Give one of these paths: load(..., blocks="path")'
