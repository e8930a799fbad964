"""Failures between a client and a real server: their errors, and `steerlab doctor`."""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import hypothesis.internal.compat
import pytest
import torch
from fitted import Fixed
from remote_fits import PAIRS, PROMPTS
from servers.keys import Keys
from servers.ndif import Ndif
from servers.venvs import CannotInstall
from torch import Tensor

import steerlab
from steerlab.errors import RemoteError
from steerlab.methods.base import Intervention
from steerlab.models._nnsight import client
from steerlab.models.model import Model

pytestmark = pytest.mark.remote
Get = Callable[[str], Model]
Models = dict[str, Path]
TINY = "tiny-llama"


def in_model(function: Callable[[Tensor], Tensor]) -> Fixed:
    """A user's method that computes its vector in the model by a function."""
    return Fixed(Intervention(steerlab.Site(1), vector_fn=function))


def slow(h: Tensor) -> Tensor:
    begun = time.monotonic()
    while time.monotonic() - begun < 120:
        h = h + 0
    return h


def uses_missing_package(h: Tensor) -> Tensor:
    import hypothesis

    return h * len(hypothesis.__version__)


def prints(h: Tensor) -> Tensor:
    print(f"steering {len(h)} rows")
    return h


def out_of_memory(h: Tensor) -> Tensor:
    if len(h) > 1:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    return h * 0


def divides_by_zero(h: Tensor) -> Tensor:
    return h * (1 // 0)


class WithLock:
    """A function that cannot be pickled."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __call__(self, h: Tensor) -> Tensor:
        return h


def error_of(model: Model, function: Callable[[Tensor], Tensor]) -> RemoteError:
    with pytest.raises(RemoteError) as caught:
        steerlab.generate(model, PROMPTS, steer=in_model(function), max_new_tokens=3)
    return caught.value


def still_works(model: Model) -> bool:
    return len(steerlab.generate(model, PROMPTS, max_new_tokens=2)) == len(PROMPTS)


def api_only(server: Ndif) -> None:
    if server.sandboxed:
        pytest.skip("the API answers, whichever the worker")


# --- models, time and memory


def test_a_missing_model_has_a_suggestion(remote: Get, server: Ndif, models: Models, tmp_path: Path) -> None:
    remote(TINY)  # so that one is deployed
    misspelt = shutil.copytree(models[TINY], tmp_path / "tiny-lama")
    # a model may fail to start by chance
    model = steerlab.load(misspelt, remote=server.host, check=False, retry_timeout=5.0)
    shutil.rmtree(misspelt)
    with pytest.raises(RemoteError) as caught:
        steerlab.capture(model, PROMPTS, progress=False)
    assert caught.value.kind == "model", caught.value
    assert "Did you mean" in str(caught.value) and TINY in str(caught.value)


def test_a_job_over_the_time_limit_is_ended_and_the_next_one_runs(remote: Get) -> None:
    error = error_of(remote(TINY), slow)
    assert error.kind == "timeout" and "fewer new tokens" in str(error) and still_works(remote(TINY))


def test_a_running_job_without_messages_is_given_up(remote: Get, server: Ndif, models: Models) -> None:
    error = error_of(steerlab.load(models[TINY], remote=server.host, check=False, retry_timeout=2.0), slow)
    assert error.kind == "timeout" and "no message about a running job for 2 s" in str(error)
    assert still_works(remote(TINY))


def test_a_batch_that_exceeds_the_servers_memory_needs_a_smaller_one(remote: Get, near: Get) -> None:
    error = error_of(remote(TINY), out_of_memory)
    assert error.kind == "size" and "Use a smaller batch_size" in str(error), error
    options = {"max_new_tokens": 2, "batch_size": 1}
    alone = steerlab.generate(remote(TINY), PROMPTS, steer=in_model(out_of_memory), **options)
    assert alone.ids == steerlab.generate(near(TINY), PROMPTS, **options).ids


def test_a_result_above_8_mib_is_streamed(remote: Get, near: Get) -> None:
    prompts = [f"{i} {'the heron sleeps by the river ' * 12}" for i in range(128)]
    options = {"layers": "all", "positions": "all", "reduce": "none", "batch_size": 128, "progress": False}
    there, here = (steerlab.capture(get(TINY), prompts, **options) for get in (remote, near))
    assert there.values.nbytes > 8 * 2**20 and torch.equal(there.values, here.values)


# --- the code of a method


def test_an_error_in_a_method_has_the_servers_traceback(remote: Get) -> None:
    error = error_of(remote(TINY), divides_by_zero)
    assert error.kind == "execution" and "ZeroDivisionError" in str(error).splitlines()[0]
    assert "divides_by_zero" in str(error)


@pytest.mark.parametrize("function", [WithLock(), uses_missing_package, hypothesis.internal.compat.int_to_bytes])
def test_code_that_cannot_run_on_the_server_is_named(remote: Get, function: Callable[[Tensor], Tensor]) -> None:
    error = error_of(remote(TINY), function)
    assert error.kind == "serialization" and "ship_packages=" in str(error), error


def test_a_job_has_the_servers_messages_and_errors(remote: Get) -> None:
    options = {"max_new_tokens": 3, "blocking": False}
    job = steerlab.generate(remote(TINY), PROMPTS, steer=in_model(prints), **options)
    assert len(job.result(120)) == len(PROMPTS) and job.done()
    assert any("steering 3 rows" in line for line in job.log), job.log
    assert any("queued" in line for line in job.log) and job.state.startswith("completed"), job.log
    job = steerlab.generate(remote(TINY), PROMPTS, steer=in_model(divides_by_zero), **options)
    with pytest.raises(RemoteError, match="ZeroDivisionError"):
        job.result(120)


# --- versions and keys


def test_doctor_reports_models_and_equal_versions(doctor_on, remote: Get, server: Ndif, monkeypatch) -> None:
    remote(TINY)  # so that it is deployed
    time.sleep(2.0)  # the server keeps its status for a second
    monkeypatch.setenv("NDIF_API_KEY", "not-to-be-seen")
    status, text = doctor_on("--remote", server.host)
    assert status == 0 and f"ok {server.host} an NDIF server answers" in text
    versions = ", ".join(f"{name} {version(name)}" for name in client.COMPARED)
    assert f"ok versions {versions} here and there" in text
    assert re.search(r"ok models deployed: .*/tiny-llama", text)
    assert "the server does not know it, or requires no key" in text and "not-to-be-seen" not in text


def test_load_and_doctor_name_other_versions(doctor_on, server: Ndif, models: Models, monkeypatch) -> None:
    monkeypatch.delenv("NDIF_API_KEY", raising=False)
    true, there = client.version, version("transformers")
    monkeypatch.setattr(client, "version", lambda name: "4.1.0" if name == "transformers" else true(name))
    with pytest.raises(RemoteError, match=r"transformers 4\.1\.0 here and 5\.") as caught:
        steerlab.load(models[TINY], remote=server.host)
    assert caught.value.kind == "version"
    status, text = doctor_on("--remote", server.host)
    assert status == 1 and f"wrong versions transformers 4.1.0 here and {there} there" in text
    assert f'-> pip install "transformers=={there}"' in text


@pytest.mark.nightly
def test_a_server_that_needs_a_newer_client_names_both_versions(server: Ndif, models: Models) -> None:
    api_only(server)
    error = pytest.raises(RemoteError, match=r"(?s)nnsight 0\.8.*9\.0")
    with server.restarted(NDIF_MIN_NNSIGHT_VERSION="9.0"), error as caught:
        steerlab.load(models[TINY], remote=server.host)
    assert caught.value.kind == "version"


def test_keys_are_checked_and_busy_server_retried(server: Ndif, models: Models, tmp_path: Path, monkeypatch) -> None:
    api_only(server)
    try:
        keys = Keys(tmp_path / "keys")
    except CannotInstall as error:
        pytest.skip(str(error))
    with keys, server.restarted(NDIF_POSTGRES_URL=keys.url):
        monkeypatch.delenv("NDIF_API_KEY", raising=False)
        for bad in (None, "not-a-key", "00000000-0000-0000-0000-000000000000"):
            if bad is not None:
                monkeypatch.setenv("NDIF_API_KEY", bad)
            with pytest.raises(RemoteError, match="NDIF_API_KEY") as caught:
                steerlab.load(models[TINY], remote=server.host)
            assert caught.value.kind == "key"
        monkeypatch.setenv("NDIF_API_KEY", keys.valid)
        model = steerlab.load(models[TINY], remote=server.host, retry_timeout=3.0)
        assert still_works(model)
        keys.stop()
        begun = time.monotonic()
        with pytest.raises(RemoteError, match="accepts no requests at the moment") as caught:
            steerlab.generate(model, PAIRS, max_new_tokens=2)
        assert caught.value.kind == "busy" and time.monotonic() - begun > 1.0
