"""The folder of published tensors, where there is one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tensors() -> Path:
    """The folder of published tensors."""
    if "STEERLAB_DATA" not in os.environ:
        pytest.skip("STEERLAB_DATA does not name the data folder")
    return Path(os.environ["STEERLAB_DATA"]) / "tensors"
