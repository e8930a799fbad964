"""From sets of object vectors to a fixed number of embeddings: object tokens, latents that read them, queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from steerlab.errors import DataError


@dataclass(frozen=True)
class ObjectKind:
    """One kind of objects that a model reads.

    Attributes:
        name: of its tensor, `(batch, slots, width)`.
        slots: most objects of this kind.
        width: numbers that describe one.
        ordered: whether the slots are places in an order, all of them used; otherwise column 0 says which are used, and
            their order means nothing.
    """

    name: str
    slots: int
    width: int
    ordered: bool = False


#: of the scenes of Driving with LLMs (`steerlab.data.driving_scenes`), in the published order; the car has 31 numbers
DRIVING_KINDS = (
    ObjectKind("route", 30, 17, ordered=True),
    ObjectKind("pedestrians", 20, 9),
    ObjectKind("vehicles", 30, 33),
)


class Attention(nn.Module):
    """Attention from one set of states to another, which returns its weights too."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_kv = nn.Linear(width, width, bias=False), nn.Linear(width, 2 * width, bias=False)
        self.to_out = nn.Linear(width, width)

    def forward(
        self, x: Float[Tensor, "batch to width"], context: Float[Tensor, "batch of width"],
        key_mask: Bool[Tensor, "batch of"] | None = None,
    ) -> tuple[Float[Tensor, "batch to width"], Float[Tensor, "batch heads to of"]]:  # fmt: skip
        """What each state reads, and from where; states outside the mask are not read."""
        parts = (self.to_q(x), *self.to_kv(context).chunk(2, -1))
        q, k, v = (rearrange(part, "b n (h d) -> b h n d", h=self.heads) for part in parts)
        scores = q @ k.transpose(-1, -2) / sqrt(q.shape[-1])
        if key_mask is not None:
            scores = scores.masked_fill(~key_mask[:, None, None], -torch.inf)
        weights = scores.float().softmax(-1).to(v.dtype)
        if key_mask is not None:  # of a scene without objects nothing is read
            weights = weights.masked_fill(~key_mask[:, None, None], 0.0)
        return self.to_out(rearrange(weights @ v, "b h n d -> b n (h d)")), weights


def feed_forward(width: int) -> nn.Sequential:
    """Two linear layers without bias."""
    return nn.Sequential(nn.Linear(width, 4 * width, bias=False), nn.GELU(), nn.Linear(4 * width, width, bias=False))


class Block(nn.Module):
    """Attention and a feed-forward layer, each after a norm; `cross`: to other states, with a norm of their own."""

    def __init__(self, width: int, heads: int, cross: bool = False) -> None:
        super().__init__()
        self.attention, self.ff = Attention(width, heads), feed_forward(width)
        self.norm_attention, self.norm_ff = nn.LayerNorm(width), nn.LayerNorm(width)
        self.norm_context = nn.LayerNorm(width) if cross else None

    def forward(
        self, x: Tensor, context: Tensor | None = None, key_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The states after the block, and its attention weights."""
        normed = self.norm_attention(x)
        read = normed if self.norm_context is None else self.norm_context(context)
        change, weights = self.attention(normed, read, key_mask)
        x = x + change
        return x + self.ff(self.norm_ff(x)), weights


class ObjectTokens(nn.Module):
    """A state for each object: a small network per kind, and an embedding of the place where a kind is ordered."""

    def __init__(self, kinds: Sequence[ObjectKind], width: int) -> None:
        super().__init__()
        self.kinds = list(kinds)
        self.networks = nn.ModuleDict({kind.name: mlp(kind.width, width) for kind in kinds})
        self.index_embeddings = nn.ParameterDict(
            {kind.name: nn.Parameter(torch.randn(kind.slots, width) / sqrt(width)) for kind in kinds if kind.ordered}
        )

    def forward(self, objects: Mapping[str, Tensor]) -> Float[Tensor, "batch object width"]:
        """The objects of all kinds, one kind after the other."""
        found = []
        for kind in self.kinds:
            states = self.networks[kind.name](objects[kind.name])
            found.append(states + self.index_embeddings[kind.name] if kind.ordered else states)
        return torch.cat(found, 1)

    def key_mask(self, objects: Mapping[str, Tensor]) -> Bool[Tensor, "batch object"]:
        """Which objects there are."""
        return torch.cat([(objects[kind.name][..., 0] != 0) | bool(kind.ordered) for kind in self.kinds], 1)


def mlp(n_in: int, width: int) -> nn.Sequential:
    """One hidden layer."""
    return nn.Sequential(nn.Linear(n_in, width), nn.ReLU(), nn.Linear(width, width))


class VectorEncoder(nn.Module):
    """A perceiver over objects: latents read the objects, and queries read the latents.

    The numbers of the reader itself (`ego`) are added to all latents. The order of unordered objects does not matter,
    and unused slots are not read. At the published size (two kinds of objects, a route, width 256, 32 latents, seven
    blocks, 64 queries) it has 8,000,768 parameters.

    Attributes:
        blocks: what can be read and steered: the object tokens (0; unused slots too, in the order of the kinds), the
            latents after they have read them (1) and after each further block, and the queries (last).

    Raises:
        DataError: no kinds, two of one name, or a width that the heads do not divide.

    Source: arXiv 2310.01957, section 4; Perceiver IO, arXiv 2107.14795.
    """

    def __init__(
        self, kinds: Sequence[ObjectKind], ego_width: int, *, width: int = 256, latents: int = 32, depth: int = 7,
        heads: int = 8, queries: int = 64,
    ) -> None:  # fmt: skip
        names = [kind.name for kind in kinds]
        if not names or len(set(names)) < len(names) or any("." in name for name in names):
            raise DataError(f"the kinds of objects are called {names}: give at least one, with names of their own")
        if width % heads:
            raise DataError(f"width={width} is not divisible by heads={heads}")
        super().__init__()
        self.ego_network = mlp(ego_width, width)
        self.ego_to_latents = nn.Linear(width, width, bias=False)
        self.latents = nn.Parameter(torch.empty(latents, width).normal_(std=0.02))
        self.queries = nn.Parameter(torch.empty(queries, width).normal_(std=0.02))
        self.latents_ff = nn.Sequential(nn.LayerNorm(width), feed_forward(width))
        further = [Block(width, heads) for _ in range(depth)]
        blocks = [ObjectTokens(kinds, width), Block(width, 1, cross=True), *further, Block(width, 1, cross=True)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width)

    def forward(
        self, objects: Mapping[str, Tensor], ego: Float[Tensor, "batch ego"]
    ) -> tuple[Float[Tensor, "batch query width"], Float[Tensor, "batch object"]]:
        """The embeddings, and how much each object is attended to: attention rolled out over the blocks."""
        tokens, input_block, *further, output_block = self.blocks
        context: Any = tokens(objects)
        latent = self.latents + self.ego_to_latents(self.ego_network(ego))[:, None]
        latent = latent + self.latents_ff(latent)
        latent, read = input_block(latent, context, tokens.key_mask(objects))  # type: ignore[operator]
        rollout = context.new_zeros(context.shape[:2])
        for block in further:
            latent, weights = block(latent)
            rollout = rollout + (weights @ read).sum((1, 2))
        queries, _ = output_block(self.queries.expand(len(latent), -1, -1), latent)
        return self.norm(queries), rollout
