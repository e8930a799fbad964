"""A real NDIF server for the tests, in a private network; the tests are skipped with a reason where it cannot run.

Run by `make remote`, not by `make test`: the server is installed and started. Nor under runtime type checks, which wrap
functions: wrapped functions cannot be pickled.
"""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from saved import tiny_folder
from servers.ndif import Ndif
from servers.network import NoNetwork, private_network
from servers.venvs import NDIF, NDIF_THEN, CannotInstall, environment, program

import steerlab
from steerlab.models.interventions import apply_edits
from steerlab.models.model import Model
from steerlab.models.smollm2 import smollm2_folder

LIMIT = 15.0  # seconds a job may take on the test server


@pytest.fixture(scope="session")
def venv() -> Path:
    """NDIF's virtual environment."""
    try:
        program("redis-server", "redis-server")
        return environment(NDIF, NDIF_THEN)
    except CannotInstall as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def network() -> Iterator[None]:
    try:
        with private_network():
            yield
    except NoNetwork as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session", params=["in-process", "sandboxed"])
def server(
    request: pytest.FixtureRequest, venv: Path, network: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Ndif]:
    """A server with each kind of worker: requests run in the process of the model, or each in a process of its own."""
    if hasattr(apply_edits, "__wrapped__"):  # a function that nothing else wraps
        pytest.skip("runtime type checks wrap functions, and wrapped functions cannot be pickled: run `make remote`")
    options = {"NDIF_DEFAULT_EXECUTION_TIMEOUT_SECONDS": str(LIMIT)}
    made = Ndif(venv, tmp_path_factory.mktemp("ndif"), request.param == "sandboxed", **options)
    try:
        yield made.start()
    finally:
        made.stop()


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Model folders that the server can read, too."""
    return {"tiny-llama": tiny_folder(tmp_path_factory.mktemp("models") / "tiny-llama"), "smollm2": smollm2_folder()}


@pytest.fixture(scope="session")
def remote(server: Ndif, models: dict[str, Path]) -> Callable[[str], Model]:
    """`remote(name)`: the model on the server, loaded once for each server."""
    return cache(lambda name: steerlab.load(models[name], remote=server.host))


@pytest.fixture(scope="session")
def near(models: dict[str, Path]) -> Callable[[str], Model]:
    """`near(name)`: the same model here, under plain hooks and with every row run whole, as it is on the server."""
    return cache(lambda name: steerlab.load(models[name], backend="hooks", prefix_caching=False))
