"""Fixtures of this folder, from `fitted`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fitted import make_lm, make_steerers

from steerlab import Model
from steerlab.methods.base import Steerer


@pytest.fixture(scope="session")
def lm() -> Callable[..., Model]:
    """`lm(family, backend)`: the same tiny model every time."""
    return make_lm


@pytest.fixture(scope="session")
def steerers() -> Callable[[str], dict[str, Steerer]]:
    """`steerers(family)`: one fitted steerer of every kind, by name."""
    return make_steerers
