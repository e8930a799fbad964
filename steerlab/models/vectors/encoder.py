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


class Attention(nn.Module):
    """Attention from one set of states to another, which returns its weights too."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_kv = nn.Linear(width, width, bias=False), nn.Linear(width, 2 * width, bias=False)
        self.to_out = nn.Linear(width, width)

    def forward(
        self, x: Float[Tensor, "batch to width"], context: Float[Tensor, "batch of width"],
        used: Bool[Tensor, "batch of"] | None = None,
    ) -> tuple[Float[Tensor, "batch to width"], Float[Tensor, "batch heads to of"]]:  # fmt: skip
        """What each state reads, and from where; states that are not `used` are not read."""
        q, k, v = (
            rearrange(part, "b n (h d) -> b h n d", h=self.heads)
            for part in (self.to_q(x), *self.to_kv(context).chunk(2, -1))
        )
        scores = q @ k.transpose(-1, -2) / sqrt(q.shape[-1])
        if used is not None:
            scores = scores.masked_fill(~used[:, None, None], -torch.inf)
        weights = scores.float().softmax(-1).to(v.dtype)
        return self.to_out(rearrange(weights @ v, "b h n d -> b n (h d)")), weights


def feed_forward(width: int) -> nn.Sequential:
    """Two linear layers without bias."""
    return nn.Sequential(nn.Linear(width, 4 * width, bias=False), nn.GELU(), nn.Linear(4 * width, width, bias=False))


class Block(nn.Module):
    """Attention and a feed-forward layer, each after a norm; `reads`: from other states, with a norm of its own."""

    def __init__(self, width: int, heads: int, reads: bool = False) -> None:
        super().__init__()
        self.attention, self.ff = Attention(width, heads), feed_forward(width)
        self.norm_attention, self.norm_ff = nn.LayerNorm(width), nn.LayerNorm(width)
        self.norm_context = nn.LayerNorm(width) if reads else None

    def forward(self, x: Tensor, context: Tensor | None = None, used: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The states after the block, and its attention weights."""
        normed = self.norm_attention(x)
        read = normed if self.norm_context is None else self.norm_context(context)
        change, weights = self.attention(normed, read, used)
        x = x + change
        return x + self.ff(self.norm_ff(x)), weights


class ObjectTokens(nn.Module):
    """A state for each object: a small network per kind, and an embedding of the place where a kind is ordered."""

    def __init__(self, kinds: Sequence[ObjectKind], width: int) -> None:
        super().__init__()
        self.kinds = list(kinds)
        self.networks = nn.ModuleDict({kind.name: small_network(kind.width, width) for kind in kinds})
        self.places = nn.ParameterDict(
            {kind.name: nn.Parameter(torch.randn(kind.slots, width) / sqrt(width)) for kind in kinds if kind.ordered}
        )

    def forward(self, objects: Mapping[str, Tensor]) -> Float[Tensor, "batch object width"]:
        """The objects of all kinds, one kind after the other."""
        found = []
        for kind in self.kinds:
            states = self.networks[kind.name](objects[kind.name])
            found.append(states + self.places[kind.name] if kind.ordered else states)
        return torch.cat(found, 1)

    def used(self, objects: Mapping[str, Tensor]) -> Bool[Tensor, "batch object"]:
        """Which objects there are."""
        flags = [
            torch.ones_like(objects[kind.name][..., 0], dtype=torch.bool)
            if kind.ordered
            else objects[kind.name][..., 0] != 0
            for kind in self.kinds
        ]
        return torch.cat(flags, 1)


def small_network(n_in: int, width: int) -> nn.Sequential:
    """One hidden layer."""
    return nn.Sequential(nn.Linear(n_in, width), nn.ReLU(), nn.Linear(width, width))


class VectorEncoder(nn.Module):
    """A perceiver over objects: latents, to which the reader's own state is added, read them; queries read the latents.

    The order of unordered objects does not matter, and unused slots are not read. At the published size (two kinds of
    objects, a route, width 256, 32 latents, seven blocks, 64 queries) it has 8,000,768 parameters.

    Attributes:
        blocks: what can be read and steered: the object tokens (0), the latents after they have read them (1) and after
            each further block, and the queries (last).

    Source: arXiv 2310.01957, section 4; Perceiver IO, arXiv 2107.14795.
    """

    def __init__(
        self, kinds: Sequence[ObjectKind], state_width: int, *, width: int = 256, latents: int = 32, depth: int = 7,
        heads: int = 8, queries: int = 64,
    ) -> None:  # fmt: skip
        super().__init__()
        self.state_network, self.state_to_latents = (
            small_network(state_width, width),
            nn.Linear(width, width, bias=False),
        )
        self.latents = nn.Parameter(torch.empty(latents, width).normal_(std=0.02))
        self.queries = nn.Parameter(torch.empty(queries, width).normal_(std=0.02))
        self.latents_ff = nn.Sequential(nn.LayerNorm(width), feed_forward(width))
        further = [Block(width, heads) for _ in range(depth)]
        self.blocks = nn.ModuleList(
            [ObjectTokens(kinds, width), Block(width, 1, reads=True), *further, Block(width, 1, reads=True)]
        )
        self.norm = nn.LayerNorm(width)

    def forward(
        self, objects: Mapping[str, Tensor], state: Float[Tensor, "batch state"]
    ) -> tuple[Float[Tensor, "batch query width"], Float[Tensor, "batch object"]]:
        """The embeddings, and how much each object is attended to: attention rolled out over the blocks."""
        tokens, reading, *further, writing = self.blocks
        context: Any = tokens(objects)
        latent = self.latents + self.state_to_latents(self.state_network(state))[:, None]
        latent = latent + self.latents_ff(latent)
        latent, read = reading(latent, context, tokens.used(objects))  # type: ignore[operator]
        rollout = context.new_zeros(context.shape[:2])
        for block in further:
            latent, weights = block(latent)
            rollout = rollout + (weights @ read).sum((1, 2))
        queries, _ = writing(self.queries.expand(len(latent), -1, -1), latent)
        return self.norm(queries), rollout
