"""The folder of published tensors, where there is one."""

import os
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor


@pytest.fixture(scope="session")
def tensors() -> Path:
    """The folder of published tensors."""
    return Path(os.environ["STEERLAB_DATA"]) / "tensors"


@pytest.fixture(scope="session")
def qwen(tensors: Path) -> dict[str, Tensor]:
    """The states of complied (`class_a`) and rejected prompts (`class_b`) published with AdaSteer."""
    return {k: v.float() for k, v in load_file(tensors / "adasteer_qwen25_7b_RD_activations.safetensors").items()}
