"""The tiny model of most tests of capture."""

import pytest


@pytest.fixture
def model(lm):
    return lm("llama", "hooks")
