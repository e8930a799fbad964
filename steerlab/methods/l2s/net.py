"""The nets of L2S: one hidden layer without output bias, as published; or a linear map."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn

from steerlab._support.checks import as_whole
from steerlab._support.files import reading
from steerlab.errors import DataError, MismatchError
from steerlab.methods.regression import fit_ridge
from steerlab.methods.serialization import savable

ACTIVATIONS = {"tanh": torch.tanh, "relu": torch.relu}
KEYS = ("encoder.weight", "encoder.bias", "decoder.weight")


@savable
class SteeringNet(nn.Module):
    """z = W2 act(W1 c + b1): from the context of an input to its steering vector.

    Example:
        >>> net = SteeringNet(4096, 100)
        >>> net(torch.randn(8, 4096)).shape
        torch.Size([8, 4096])

    Args:
        hidden_size: width D of the residual stream.
        hidden_units: K; the net has 2DK + K parameters.
        activation: "tanh", or "relu" if some targets are the zero vector.
        context_size: width of the context, if it is not one state; None: `hidden_size`.

    Raises:
        DataError: unknown activation, or a size below 1.

    Source: arXiv 2508.12815, section 3 and appendix (two linear layers, tanh; relu for VLGuard).
    """

    def __init__(
        self, hidden_size: int, hidden_units: int, activation: str = "tanh", context_size: int | None = None
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise DataError(f"unknown activation {activation!r}; expected one of {', '.join(ACTIVATIONS)}")
        if as_whole("hidden_size", hidden_size, None) < 1 or as_whole("hidden_units", hidden_units, None) < 1:
            raise DataError(f"sizes must be at least 1, got hidden_size={hidden_size} and hidden_units={hidden_units}")
        self.hidden_size, self.hidden_units, self.activation = hidden_size, hidden_units, activation
        self.context_size = hidden_size if context_size is None else context_size
        self.encoder = nn.Linear(self.context_size, hidden_units)
        self.decoder = nn.Linear(hidden_units, hidden_size, bias=False)

    def forward(self, contexts: Float[Tensor, "batch context"]) -> Float[Tensor, "batch hidden"]:
        """One vector per context."""
        return self.decoder(ACTIVATIONS[self.activation](self.encoder(contexts)))


@savable
class LinearMap(nn.Module):
    """z = W c + b: the simplest predictor that depends on the input.

    Example:
        >>> LinearMap(576, 576)(torch.randn(8, 576)).shape
        torch.Size([8, 576])

    Args:
        hidden_size: width of the vectors.
        context_size: width of the context.
    """

    def __init__(self, hidden_size: int, context_size: int) -> None:
        super().__init__()
        self.hidden_size, self.context_size = hidden_size, context_size
        self.decoder = nn.utils.skip_init(nn.Linear, context_size, hidden_size)  # no draw from the global generator

    def forward(self, contexts: Float[Tensor, "batch context"]) -> Float[Tensor, "batch hidden"]:
        """One vector per context."""
        return self.decoder(contexts)

    @classmethod
    def fit(cls, contexts: Float[Tensor, "example context"], targets: Float[Tensor, "example hidden"]) -> LinearMap:
        """The ridge regression of the targets on the contexts, in closed form."""
        net = cls(targets.shape[1], contexts.shape[1])
        weights, intercept = fit_ridge(contexts, targets)
        net.load_state_dict({"decoder.weight": weights.T.contiguous(), "decoder.bias": intercept})
        return net.eval()


def seeded_net(
    hidden_size: int, hidden_units: int, activation: str, seed: int, context_size: int | None = None
) -> SteeringNet:
    """A net with PyTorch's default initialization from `seed`; the global generator is not touched."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return SteeringNet(hidden_size, hidden_units, activation, context_size)


def load_published_net(path: str | Path, activation: str = "tanh") -> SteeringNet:
    """Read a net published with L2S: a `.pt` state dict, plain or under `steering_model`, or safetensors.

    Example:
        >>> net = load_published_net("l2s_llava15_7b_mmsb_K100.safetensors")

    Args:
        path: the file; `.pt` files are read with PyTorch's tensors-only loader, nothing in them is executed.
        activation: not stored in these files; "tanh" for all published nets but VLGuard's.

    Raises:
        LoadError: there is no such file, or it cannot be read.
        MismatchError: the names or shapes of the weights are not those of a steering net.

    Source: the released code of arXiv 2508.12815 (file layout only).
    """
    path = Path(path)
    with reading(path, "Give the path of a published net"):
        loaded: Any = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
        state = loaded.get("steering_model", loaded) if isinstance(loaded, Mapping) else {}
        if set(state) != set(KEYS):
            raise MismatchError(f"the weights are named {sorted(state)}, a steering net has {sorted(KEYS)}")
        hidden_units, hidden_size = state["encoder.weight"].shape
        net = seeded_net(hidden_size, hidden_units, activation, seed=0)
        shapes, expected = ({key: tuple(one[key].shape) for key in KEYS} for one in (state, net.state_dict()))
        if shapes != expected:
            raise MismatchError(f"the weights have shapes {shapes}, a steering net of that width has {expected}")
        net.load_state_dict({key: value.to(torch.float32) for key, value in state.items()})
    return net.eval()
