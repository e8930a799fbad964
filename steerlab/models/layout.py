"""Where a model keeps its decoder blocks, its final norm and its head."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from steerlab._support.errors import LayoutError
from steerlab.models.vision_layout import find_tower

_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "final_norm", "norm_f")
_HEADS = ("lm_head", "embed_out", "output", "head")
_ATTENTION = ("self_attn", "attn", "attention", "self_attention")
_MLP = ("mlp", "feed_forward", "ffn", "block_sparse_moe", "fc2")  # fc2: OPT's blocks hold no MLP module
_NOT_TEXT = re.compile(r"vision|visual|image|audio|speech|^vit$")


@dataclass(frozen=True)
class Layout:
    """The dotted paths, inside a Hugging Face model, that the hooks need.

    Example:
        >>> Layout("model.layers", "model.norm", "lm_head", "self_attn", "mlp")

    Args:
        blocks_path: path of the list of decoder blocks, from the model as loaded.
        final_norm_path: path of the norm between the last block and the head, or None.
        head_path: path of the unembedding, or None.
        attention_name: name of the attention module inside every block, or None where blocks differ.
        mlp_name: name, inside every block, of the module whose output is the MLP's, or None.
        vision_path: path of the list of the vision tower's blocks, or None.
        projector_path: path of the module between the vision tower and the text, or None.

    Source: own.
    """

    blocks_path: str
    final_norm_path: str | None
    head_path: str | None
    attention_name: str | None
    mlp_name: str | None
    vision_path: str | None = None
    projector_path: str | None = None


def find_layout(hf: nn.Module, blocks: str | None = None) -> Layout:
    """Find the decoder blocks, the final norm and the head of a model.

    Example:
        >>> find_layout(tiny_hf("gpt2")).blocks_path
        'transformer.h'

    Args:
        hf: a model with a language-modeling head; multimodal wrappers are looked through.
        blocks: dotted path of the list of blocks, for a model that is not recognized; it always wins.

    Raises:
        LayoutError: no list of blocks was found, or there is none at `blocks`.

    Source: own.
    """
    path = _find_blocks(hf) if blocks is None else blocks
    found = dict(_block_lists(hf)).get(path) if path is not None else None
    if path is None or found is None:
        raise LayoutError(_not_found(hf, blocks))
    vision, projector = find_tower(hf, path)
    return Layout(
        blocks_path=path,
        final_norm_path=_final_norm(hf, path),
        head_path=_head(hf),
        attention_name=_shared_name(list(found), _ATTENTION),
        mlp_name=_shared_name(list(found), _MLP),
        vision_path=vision,
        projector_path=projector,
    )


def blocks(hf: nn.Module, layout: Layout) -> list[nn.Module]:
    """The decoder blocks, bottom first.

    Example:
        >>> len(blocks(hf, find_layout(hf)))

    Raises:
        LayoutError: this layout does not fit this model.

    Source: own.
    """
    return list(module_at(hf, layout.blocks_path).children())


def module_at(hf: nn.Module, path: str) -> nn.Module:
    """The submodule at a dotted path; the empty path is the model itself.

    Example:
        >>> module_at(hf, "model.norm")

    Raises:
        LayoutError: there is no such submodule; the message names the part of the path that does exist.

    Source: own.
    """
    module, seen = hf, ""
    for name in path.split(".") if path else ():
        children = dict(module.named_children())
        if name not in children:
            raise LayoutError(
                f"no module {path!r} in {type(hf).__name__}: {seen or 'its root'} has "
                f"{', '.join(children) or 'no children'}, not {name!r}"
            )
        module, seen = children[name], f"{seen}.{name}".lstrip(".")
    return module


def _block_lists(hf: nn.Module) -> Iterator[tuple[str, Sequence[nn.Module]]]:
    for path, module in hf.named_modules():
        if isinstance(module, nn.ModuleList | nn.Sequential) and len(module):
            yield path, list(module)


def _ask(hf: nn.Module, method: str) -> object:
    answer: Callable[[], object] | None = getattr(hf, method, None)
    return answer() if callable(answer) else None


def _find_blocks(hf: nn.Module) -> str | None:
    decoder = _ask(hf, "get_decoder")
    if isinstance(decoder, nn.Module):
        lists = [m for m in decoder.children() if isinstance(m, nn.ModuleList) and len(m)]
        if lists:
            longest = max(lists, key=len)
            return next((path for path, module in hf.named_modules() if module is longest), None)
    return _longest_uniform_list(hf)


def _longest_uniform_list(hf: nn.Module) -> str | None:
    """Fallback for decoders that do not tell: outermost lists only, or a block's experts could win."""
    candidates: dict[str, int] = {}
    for path, members in _block_lists(hf):
        if any(_NOT_TEXT.search(part) for part in path.split(".")):
            continue
        if isinstance(hf.get_submodule(path), nn.Sequential):
            continue
        nested = any(path.startswith(f"{outer}.") for outer in candidates)
        if not nested and len({type(member) for member in members}) == 1:
            candidates[path] = len(members)
    return max(candidates, key=candidates.__getitem__) if candidates else None


def _final_norm(hf: nn.Module, path: str) -> str | None:
    parent_path, _, _ = path.rpartition(".")
    children = dict(module_at(hf, parent_path).named_children())
    unknown = [name for name, module in children.items() if type(module).__name__.endswith("Norm")]
    name = next((name for name in _NORMS if name in children), unknown[-1] if unknown else None)
    return f"{parent_path}.{name}".lstrip(".") if name else None


def _head(hf: nn.Module) -> str | None:
    head = _ask(hf, "get_output_embeddings")
    if isinstance(head, nn.Module):
        return next((path for path, module in hf.named_modules() if module is head), None)
    return next((name for name, _ in hf.named_children() if name in _HEADS), None)


def _shared_name(members: Sequence[nn.Module], names: Sequence[str]) -> str | None:
    return next((n for n in names if all(isinstance(getattr(b, n, None), nn.Module) for b in members)), None)


def _not_found(hf: nn.Module, asked: str | None) -> str:
    lists = [f"{path} ({len(members)} x {type(members[0]).__name__})" for path, members in _block_lists(hf)]
    what = f"no list of blocks at {asked!r}" if asked is not None else "no list of decoder blocks found"
    there = f"the lists in it are: {', '.join(lists)}" if lists else "it holds no ModuleList at all"
    return f'{what} in {type(hf).__name__}; {there}. Give one of these paths: load(..., blocks="path")'
