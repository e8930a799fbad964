"""What crosses from the device to the host, seen from PyTorch's own function calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

import steerlab
from steerlab import Model

TO_HOST = ("cpu", "item", "tolist", "numpy")


class Copies(TorchFunctionMode):
    """Notes every tensor as wide as the residual stream that is brought to the host."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.seen = width, list[tuple[str, int]]()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name, given = getattr(func, "__name__", ""), [*args[1:], *(kwargs or {}).values()]
        # on the CPU, where these tests run, `x.to(y.device)` says nothing of the host: only its name does
        asked = name in TO_HOST or (name == "to" and any(isinstance(value, str) and value == "cpu" for value in given))
        if asked and args[0].ndim and args[0].shape[-1] == self.width:
            self.seen.append((name, args[0].nbytes))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("bring", "noticed"),
    [
        (lambda x: x.cpu(), True),
        (lambda x: x.to("cpu"), True),
        (lambda x: x.to("cpu", torch.float64), True),
        (lambda x: x.to(device="cpu"), True),
        (lambda x: x.numpy(), True),
        (lambda x: x.tolist(), True),
        (lambda x: x.to(torch.float64), False),
        (lambda x: x.to(torch.zeros(1)), False),
        (lambda x: x[:, :4].to("cpu"), False),
    ],
)
def test_every_way_to_the_host_is_noticed(bring: Callable[[torch.Tensor], Any], noticed: bool) -> None:
    with Copies(8) as copies:
        bring(torch.zeros(3, 8))
    assert [size for _, size in copies.seen] == [3 * 8 * 4] * noticed


@pytest.mark.parametrize("backend", ["nnsight", "hooks"])
def test_one_copy_a_batch_and_not_a_byte_more_than_is_returned(lm: Callable[..., Model], backend: str) -> None:
    model = lm("llama", backend)
    prompts = [f"prompt number {i} " + "and on " * i for i in range(7)]
    with Copies(model.hidden_size) as copies:
        acts = steerlab.capture(model, prompts, layers="all", positions=["last", "user"], batch_size=3, progress=False)
    assert [name for name, _ in copies.seen] == ["cpu"] * 3
    assert sum(size for _, size in copies.seen) == acts.values.nbytes == acts.info["bytes_copied"]
    assert acts.values.shape == (14, model.n_layers, model.hidden_size) and acts.values.dtype == torch.float32
