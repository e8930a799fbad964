"""What all tests share: tiny models, each built once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest

from steerlab.models.model import Model
from steerlab.testing import tiny_lm


@cache
def _lm(family: str, backend: str) -> Model:
    return tiny_lm(family, backend=backend)


@pytest.fixture(scope="session")
def lm() -> Callable[..., Model]:
    """`lm(family, backend)`: a tiny model shared by the whole session; a test that changes one builds its own."""
    return lambda family="llama", backend="hooks": _lm(family, backend)
