"""The net of the triplet probe: from the states of a prompt at several layers to a point on the unit sphere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steerlab.errors import DataError
from steerlab.methods.regression import deviations
from steerlab.methods.serialization import savable

KERNELS = (70, 50, 30, 20, 5)
REFERENCE_WIDTH = 3072  # of the narrowest published model; kernels of narrower models are scaled by it
WIDE = 8192  # from this width on, the first pool is larger
CHUNK = 512  # rows embedded at a time where no gradient is needed


@savable
@dataclass(frozen=True)
class TripletShape:
    """The architecture of a triplet net; every layer has separate convolutions over the hidden coordinates.

    Example:
        >>> TripletShape().n_features(4096), TripletShape().n_features(3072), TripletShape().n_features(8192)
        (275, 175, 350)
        >>> TripletShape().n_features(576)     # the kernels are scaled down
        25

    Args:
        channels: of the successive convolutions.
        kernels: their widths; None: the published 70, 50, 30, 20, 5 where they fit (from width 1557 on), below that the
            same scaled by the width over 3072.
        pools: widths of the max pooling after each; None: 3 each, the first 5 from width 8192 on; and 2 each where 3
            would leave nothing (below width 480 or so).
        embedding: dimensions of the embedding space.
        dropout: after each pooling, in training.

    Raises:
        DataError: different numbers of channels, kernels and pools, or sizes below 1.

    Source: TaskTracker, arXiv 2406.00799, released code, without the scaling to narrower models.
    """

    channels: Sequence[int] = (7, 10, 15, 20, 25)
    kernels: Sequence[int] | None = None
    pools: Sequence[int] | None = None
    embedding: int = 1024
    dropout: float = 0.5

    def __post_init__(self) -> None:
        given = [sizes for sizes in (self.channels, self.kernels, self.pools) if sizes is not None]
        smallest = min((size for sizes in given for size in sizes), default=0)
        if len({len(sizes) for sizes in given}) > 1 or min(self.embedding, smallest) < 1:
            raise DataError(f"{self}: channels, kernels and pools need one number of at least 1 for each convolution")
        if self.kernels is None and len(self.channels) != len(KERNELS):
            raise DataError(f"{self}: there are {len(KERNELS)} published kernels; give other kernels")

    def fit_to(self, hidden: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Kernels and pools for a hidden size.

        Raises:
            DataError: they leave nothing of so few coordinates; says how many are needed.
        """
        n, first = len(self.channels), 5 if hidden >= WIDE else 3
        scaled = tuple(max(1, round(k * hidden / REFERENCE_WIDTH)) for k in KERNELS)
        kernels: list[Sequence[int]] = [self.kernels] if self.kernels else [KERNELS, scaled]
        pools: list[Sequence[int]] = [self.pools] if self.pools else [(first, *(3,) * (n - 1)), (2,) * n]
        pairs = [(tuple(k), tuple(p)) for p in pools for k in kernels]
        for k, p in pairs:
            if hidden >= min_width(k, p):
                return k, p
        raise DataError(
            f"the states have width {hidden}; kernels {list(kernels[-1])} with pools {list(pools[-1])} need at least "
            f"{min(min_width(*pair) for pair in pairs)} (the published ones {min_width(KERNELS, (3,) * 5)}): give "
            "smaller kernels and pools, or fewer"
        )

    def n_features(self, hidden: int) -> int:
        """Number of outputs of the convolutions of one layer."""
        width = hidden
        for kernel, pool in zip(*self.fit_to(hidden), strict=True):
            width = (width - kernel + 1) // pool
        return width * self.channels[-1]


SMALL_SHAPE = TripletShape(channels=(7, 10), kernels=(3, 3), pools=(2, 2), embedding=256, dropout=0.2)
"""Two short convolutions, for a few hundred inputs, from which the published depth and dropout learn nothing."""


@savable
class TripletNet(nn.Module):
    """Separate convolutions over each layer's coordinates, then one linear map to a point of norm 1.

    Example:
        >>> net = TripletNet(6, 3072, TripletShape())
        >>> net(torch.randn(8, 6, 3072)).shape
        torch.Size([8, 1024])

    Args:
        n_layers: number of layers that are read.
        hidden_size: width of the residual stream.
        shape: the architecture.

    Attributes:
        offset, factor: `(layers, hidden)`, subtracted and multiplied first; 0 and 1 for raw states.

    Raises:
        DataError: the kernels do not fit the width.

    Source: TaskTracker, arXiv 2406.00799, released code.
    """

    offset: Tensor
    factor: Tensor

    def __init__(self, n_layers: int, hidden_size: int, shape: TripletShape) -> None:
        super().__init__()
        self.n_layers, self.hidden_size, self.shape = n_layers, hidden_size, shape
        steps: list[nn.Module] = []
        before = 1
        for channels, kernel, pool in zip(shape.channels, *shape.fit_to(hidden_size), strict=True):
            # one group per layer: independent convolutions in one call
            conv = nn.Conv1d(n_layers * before, n_layers * channels, kernel, groups=n_layers)
            steps += [conv, nn.ReLU(), nn.MaxPool1d(pool), nn.Dropout(shape.dropout)]
            before = channels
        self.convolutions = nn.Sequential(*steps)
        self.linear = nn.Linear(n_layers * shape.n_features(hidden_size), shape.embedding)
        self.register_buffer("offset", torch.zeros(n_layers, hidden_size))
        self.register_buffer("factor", torch.ones(n_layers, hidden_size))

    def forward(self, states: Float[Tensor, "batch layers hidden"]) -> Float[Tensor, "batch embedding"]:
        """One point per row."""
        convolved = self.convolutions((states - self.offset) * self.factor)
        return nn.functional.normalize(self.linear(convolved.flatten(1)), dim=-1)

    def standardize(self, states: Float[Tensor, "row layers hidden"]) -> None:
        """Scale the coordinates of these states to mean 0 and deviation 1, or what `deviations` allows."""
        self.offset.copy_(states.mean(dim=0))
        self.factor.copy_(torch.stack([1 / deviations(one) for one in states.unbind(1)]))


def min_width(kernels: Sequence[int], pools: Sequence[int]) -> int:
    """The smallest number of coordinates of which these convolutions and pools leave one.

    Example:
        >>> min_width((70, 50, 30, 20, 5), (3, 3, 3, 3, 3))
        1557
    """
    width = 1
    for kernel, pool in zip(reversed(kernels), reversed(pools), strict=True):
        width = width * pool + kernel - 1
    return width


def make_net(n_layers: int, hidden: int, shape: TripletShape, seed: int) -> TripletNet:
    """A net initialized from `seed`, without using the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return TripletNet(n_layers, hidden, shape)


@torch.no_grad()
def embed_batches(net: TripletNet, states: Float[Tensor, "row layers hidden"]) -> Float[Tensor, "row embedding"]:
    """The points of many rows, computed in chunks."""
    return torch.cat([net(part) for part in states.split(CHUNK)])
