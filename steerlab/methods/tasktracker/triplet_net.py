"""The triplet probe's net: from a prompt's states at several layers to a point on a sphere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steerlab._support.errors import DataError, MismatchError
from steerlab.methods.serialization import savable

KERNELS = (70, 50, 30, 20, 5)
NARROWEST = 3072  # of the models that the published kernels were used on
WIDEST = 8192  # from here on the first pool is larger


@savable
@dataclass(frozen=True)
class TripletShape:
    """How the net of a triplet probe is built; every layer has convolutions of its own over the hidden coordinates.

    Example:
        >>> TripletShape().features(4096), TripletShape().features(3072), TripletShape().features(8192)
        (275, 175, 350)
        >>> TripletShape().features(576)       # the kernels are scaled down
        25

    Args:
        channels: of the convolutions, one after the other.
        kernels: their widths; None: the published 70, 50, 30, 20, 5 where they fit (from width 1557 on), below that the
            same scaled by the width over 3072.
        pools: widths of the max pooling after each; None: 3 throughout, first 5 from width 8192 on; and 2 throughout
            where 3 would leave nothing (below width 480 or so).
        embedding: dimensions of the sphere's space.
        dropout: after each pooling, in training.

    Raises:
        DataError: unlike lengths, or sizes below 1.

    Source: TaskTracker, arXiv 2406.00799, released code; scaling to narrower models is own.
    """

    channels: Sequence[int] = (7, 10, 15, 20, 25)
    kernels: Sequence[int] | None = None
    pools: Sequence[int] | None = None
    embedding: int = 1024
    dropout: float = 0.5

    def __post_init__(self) -> None:
        given = [some for some in (self.channels, self.kernels, self.pools) if some is not None]
        least = min((number for some in given for number in some), default=0)
        if len({len(some) for some in given}) > 1 or min(self.embedding, least) < 1:
            raise DataError(f"{self}: channels, kernels and pools need one number of at least 1 for each convolution")
        if self.kernels is None and len(self.channels) != len(KERNELS):
            raise DataError(f"{self}: there are {len(KERNELS)} published kernels; give kernels of your own")

    def sized(self, hidden: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Kernels and pools for a hidden size.

        Raises:
            DataError: they leave nothing of so few coordinates; says how many are needed.
        """
        n, first = len(self.channels), 5 if hidden >= WIDEST else 3
        scaled = tuple(max(1, round(k * hidden / NARROWEST)) for k in KERNELS)
        kernels: list[Sequence[int]] = [self.kernels] if self.kernels else [KERNELS, scaled]
        pools: list[Sequence[int]] = [self.pools] if self.pools else [(first, *(3,) * (n - 1)), (2,) * n]
        for p in pools:
            for k in kernels:
                if hidden >= least_width(k, p):
                    return tuple(k), tuple(p)
        least = min(least_width(k, p) for k in kernels for p in pools)
        raise DataError(
            f"the states have width {hidden}; kernels {list(kernels[-1])} with pools {list(pools[-1])} need at least "
            f"{least} (the published ones {least_width(KERNELS, (3,) * 5)}): give smaller kernels and pools, or fewer"
        )

    def features(self, hidden: int) -> int:
        """How many numbers the convolutions of one layer end in."""
        width = hidden
        for kernel, pool in zip(*self.sized(hidden), strict=True):
            width = (width - kernel + 1) // pool
        return width * self.channels[-1]


SMALL_SHAPE = TripletShape(channels=(7, 10), kernels=(3, 3), pools=(2, 2), embedding=256, dropout=0.2)
"""Own, for a few hundred inputs, of which the published depth and dropout learn nothing: two short convolutions."""


class TripletNet(nn.Module):
    """Unshared convolutions over each layer's coordinates, then one linear map to a point of norm 1.

    Example:
        >>> net = TripletNet(6, 3072, TripletShape())
        >>> net(torch.randn(8, 6, 3072)).shape
        torch.Size([8, 1024])

    Args:
        n_layers: how many layers are read.
        hidden: width of the residual stream.
        shape: kernels, channels and the rest.

    Attributes:
        offset, factor: `(layers, hidden)`, subtracted and multiplied first; 0 and 1 where states are taken as they are.

    Raises:
        DataError: the kernels do not fit the width.

    Source: TaskTracker, arXiv 2406.00799, released code.
    """

    offset: Tensor
    factor: Tensor

    def __init__(self, n_layers: int, hidden: int, shape: TripletShape) -> None:
        super().__init__()
        steps: list[nn.Module] = []
        before = 1
        for channels, kernel, pool in zip(shape.channels, *shape.sized(hidden), strict=True):
            # one group a layer: convolutions side by side that share nothing, in one call
            conv = nn.Conv1d(n_layers * before, n_layers * channels, kernel, groups=n_layers)
            steps += [conv, nn.ReLU(), nn.MaxPool1d(pool), nn.Dropout(shape.dropout)]
            before = channels
        self.convolutions = nn.Sequential(*steps)
        self.linear = nn.Linear(n_layers * shape.features(hidden), shape.embedding)
        self.register_buffer("offset", torch.zeros(n_layers, hidden))
        self.register_buffer("factor", torch.ones(n_layers, hidden))

    def forward(self, states: Float[Tensor, "batch layers hidden"]) -> Float[Tensor, "batch embedding"]:
        """One point per row."""
        convolved = self.convolutions((states - self.offset) * self.factor)
        return nn.functional.normalize(self.linear(convolved.flatten(1)), dim=-1)

    def standardize(self, states: Float[Tensor, "row layers hidden"]) -> None:
        """Have every coordinate of these states at mean 0 and deviation 1 before the convolutions."""
        deviation = states.std(dim=0, correction=0)
        self.offset.copy_(states.mean(dim=0))
        self.factor.copy_(torch.where(deviation > 0, 1 / deviation.clamp(min=1e-12), 0.0))


def least_width(kernels: Sequence[int], pools: Sequence[int]) -> int:
    """The fewest coordinates of which these convolutions and pools leave one.

    Example:
        >>> least_width((70, 50, 30, 20, 5), (3, 3, 3, 3, 3))
        1557
    """
    width = 1
    for kernel, pool in zip(reversed(kernels), reversed(pools), strict=True):
        width = width * pool + kernel - 1
    return width


def seeded_triplet_net(n_layers: int, hidden: int, shape: TripletShape, seed: int) -> TripletNet:
    """A net whose initialization depends on `seed` and leaves the global generator alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return TripletNet(n_layers, hidden, shape)


def triplet_net_from_state(state: Mapping[str, Tensor], shape: TripletShape) -> TripletNet:
    """A net from its stored weights.

    Raises:
        MismatchError: they are those of another shape.
    """
    n_layers, hidden = state["offset"].shape
    net = seeded_triplet_net(n_layers, hidden, shape, seed=0)
    ours = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    theirs = {key: tuple(value.shape) for key, value in state.items()}
    if ours != theirs:
        raise MismatchError(f"the weights have shapes {theirs}, a net of {shape} has {ours}")
    net.load_state_dict(dict(state))
    return net.eval()
