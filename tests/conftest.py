"""What all tests share: tiny models, each built once."""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings

from steerlab.models.model import Model
from steerlab.testing import tiny_lm

# `make test` looks at a few examples of each property, `make nightly` at many; a busy machine is no failure
settings.register_profile("test", deadline=None, max_examples=25)
settings.register_profile("nightly", deadline=None, max_examples=300)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "test"))


@cache
def _lm(family: str, backend: str) -> Model:
    return tiny_lm(family, backend=backend)


@pytest.fixture(scope="session")
def lm() -> Callable[..., Model]:
    """`lm(family, backend)`: a tiny model shared by the whole session; a test that changes one builds its own."""
    return lambda family="llama", backend="hooks": _lm(family, backend)


@pytest.fixture(scope="session")
def _converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("smollm2")


@pytest.fixture
def smollm2_cache(_converted: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the session's own: the first test that loads "smollm2" converts it, others find it there."""
    monkeypatch.setenv("STEERLAB_CACHE", str(_converted))
    return _converted
