"""Copies from the device to the host, counted in PyTorch's own function calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

import steerlab
from steerlab import Model

TO_HOST = ("cpu", "item", "tolist", "numpy")


class HostCopies(TorchFunctionMode):
    """Records every tensor as wide as the residual stream that is copied to the host."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.seen = width, list[tuple[str, int]]()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name, given = getattr(func, "__name__", ""), [*args[1:], *(kwargs or {}).values()]
        # on the CPU, where these tests run, `x.to(y.device)` says nothing of the host: only its name does
        to_host = name in TO_HOST or (
            name == "to" and any(isinstance(value, str) and value == "cpu" for value in given)
        )
        if to_host and args[0].ndim and args[0].shape[-1] == self.width:
            self.seen.append((name, args[0].nbytes))
        return func(*args, **(kwargs or {}))


def test_host_copies_are_recorded_and_other_calls_are_not() -> None:
    x = torch.zeros(3, 8)
    with HostCopies(8) as copies:
        x.cpu(), x.to("cpu"), x.to("cpu", torch.float64), x.to(device="cpu"), x.numpy(), x.tolist()
    assert [size for _, size in copies.seen] == [3 * 8 * 4] * 6
    with HostCopies(8) as copies:
        x.to(torch.float64), x.to(torch.zeros(1)), x[:, :4].to("cpu")
    assert copies.seen == []


@pytest.mark.parametrize("backend", ["nnsight", "hooks"])
def test_one_copy_per_batch_of_exactly_the_returned_bytes(lm: Callable[..., Model], backend: str) -> None:
    model = lm("llama", backend)
    prompts = [f"prompt number {i} " + "and on " * i for i in range(7)]
    with HostCopies(model.hidden_size) as copies:
        acts = steerlab.capture(model, prompts, layers="all", positions=["last", "user"], batch_size=3, progress=False)
    assert [name for name, _ in copies.seen] == ["cpu"] * 3
    assert sum(size for _, size in copies.seen) == acts.values.nbytes == acts.info["bytes_copied"]
    assert acts.values.shape == (14, model.n_layers, model.hidden_size) and acts.values.dtype == torch.float32
