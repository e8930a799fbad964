"""vLLM on this machine, shared by the whole session; the tests are skipped with a reason where it is not installed.

Run by `make vllm` in an environment of its own (`requirements-vllm.txt`), not by `make test`.
"""

import importlib.util
import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from saved import tiny_folder
from server import Server

import steerlab
from steerlab.models.interventions import apply_edits
from steerlab.models.model import Model
from steerlab.models.smollm2 import smollm2_folder

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # gigabytes; read by vLLM's worker
KEY = "open-sesame"
Folders = Callable[[str], Path]
# a tiny engine has room for three rows at a time, so that rows wait, and begin when others have ended
LIMITS: dict[str, dict[str, Any]] = {
    "tiny": {"max_model_len": 512, "max_num_seqs": 3},
    "smollm2": {"max_model_len": 512, "max_num_seqs": 64},
}


@pytest.fixture(scope="session")
def with_vllm() -> None:
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed here: `make vllm` builds an environment that has it")
    if hasattr(apply_edits, "__wrapped__"):  # a function that nothing else wraps
        pytest.skip("runtime type checks wrap functions, and wrapped functions cannot be pickled: run `make vllm`")


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """`folders(name)`: "tiny" (heads 64 wide: the CPU kernels refuse 16), "other" of its shape, "deeper", "smollm2"."""

    @cache
    def get(name: str) -> Path:
        if name == "smollm2":
            return smollm2_folder()
        folder = tmp_path_factory.mktemp("models") / name
        return tiny_folder(folder, hidden_size=256, n_layers=6 if name == "deeper" else 4)

    return get


@pytest.fixture(scope="session")
def remote(with_vllm: None, folders: Folders) -> Iterator[Callable[[str], Model]]:
    """`remote(name)`: the model in vLLM, one engine each."""
    made: dict[str, Model] = {}

    def get(name: str = "tiny") -> Model:
        if name not in made:
            made[name] = steerlab.load(folders(name), engine="vllm", **LIMITS[name])
        return made[name]

    yield get
    for model in made.values():
        model.engine.client.close()  # type: ignore[attr-defined]


@pytest.fixture(scope="session")
def near(folders: Folders) -> Callable[[str], Model]:
    """`near(name)`: the same model here, under plain hooks and with every row run whole, as it is in vLLM."""
    return cache(lambda name="tiny": steerlab.load(folders(name), backend="hooks", prefix_caching=False))


@pytest.fixture(scope="session")
def server(with_vllm: None, folders: Folders, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An nnsight-serve with the tiny model."""
    log = tmp_path_factory.mktemp("serve") / "serve.log"
    made = Server(folders("tiny"), log, KEY, "--dtype", "float32", "--max-model-len", "512")
    try:
        yield made.wait()
    finally:
        made.stop()
