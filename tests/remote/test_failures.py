"""What goes wrong between a client and a real server: each says what happened, and what to do."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import hypothesis.internal.compat
import pytest
import torch
from fits import PAIRS, PROMPTS
from servers.keys import Keys
from servers.ndif import Ndif
from servers.venvs import CannotInstall

import steerlab
from steerlab import Model, RemoteError
from steerlab.methods.base import Context, Intervention, Steerer
from steerlab.models._nnsight import client
from steerlab.models._nnsight.ndif import NdifEngine

pytestmark = pytest.mark.remote
Get = Callable[[str], Model]
NOBODY = "http://127.0.0.1:9"


class InFlight(Steerer):
    """A method of a user's own that computes its vector inside the model by a function."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.function, self.site = function, steerlab.Site(1)

    def fit(self, acts: steerlab.Activations) -> Steerer:
        return self

    def vectors(self, context: Context) -> torch.Tensor:
        raise NotImplementedError

    def interventions(self, context: Context) -> tuple[Intervention, ...]:
        return (Intervention(self.site, vector_fn=self.function),)


def takes_too_long(h: torch.Tensor) -> torch.Tensor:
    begun = time.monotonic()
    while time.monotonic() - begun < 120:
        h = h + 0
    return h


def of_a_package_that_is_not_there(h: torch.Tensor) -> torch.Tensor:
    import hypothesis

    return h * len(hypothesis.__version__)


def says_something(h: torch.Tensor) -> torch.Tensor:
    print(f"met {len(h)} rows")
    return h


def needs_memory(h: torch.Tensor) -> torch.Tensor:
    if len(h) > 1:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    return h * 0


def divides_by_zero(h: torch.Tensor) -> torch.Tensor:
    return h * (1 // 0)


class WithLock:
    """A function that holds what can't be sent."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __call__(self, h: torch.Tensor) -> torch.Tensor:
        return h


def failing(model: Model, function: Callable[[torch.Tensor], torch.Tensor]) -> RemoteError:
    with pytest.raises(RemoteError) as caught:
        steerlab.generate(model, PROMPTS, steer=InFlight(function), max_new_tokens=3)
    return caught.value


def test_nobody_there(models: dict[str, Path]) -> None:
    with pytest.raises(RemoteError, match=r"no server answers at http://127\.0\.0\.1:9") as caught:
        steerlab.load(models["tiny-llama"], remote=NOBODY)
    assert caught.value.kind == "unreachable" and "steerlab doctor" in str(caught.value)


def test_a_model_that_is_not_there_is_told_with_the_nearest_names(
    far: Get, server: Ndif, models: dict[str, Path], tmp_path: Path
) -> None:
    far("tiny-llama")  # so that one is deployed
    misspelt = shutil.copytree(models["tiny-llama"], tmp_path / "tiny-lama")
    model = steerlab.load(
        misspelt, remote=server.host, check=False, retry_timeout=5.0
    )  # a model may fail to start by chance
    shutil.rmtree(misspelt)  # it is here and not there
    with pytest.raises(RemoteError) as caught:
        steerlab.capture(model, PROMPTS, progress=False)
    assert caught.value.kind == "model", caught.value
    assert "Did you mean" in str(caught.value) and "tiny-llama" in str(caught.value)


def test_a_job_that_takes_too_long_is_ended_and_the_next_one_runs(far: Get, server: Ndif) -> None:
    error = failing(far("tiny-llama"), takes_too_long)
    assert error.kind == "timeout" and "fewer new tokens" in str(error)
    assert len(steerlab.generate(far("tiny-llama"), PROMPTS, max_new_tokens=2)) == len(PROMPTS)


def test_a_server_that_says_nothing_of_a_running_job_is_given_up(
    far: Get, server: Ndif, models: dict[str, Path]
) -> None:
    hasty = steerlab.load(models["tiny-llama"], remote=server.host, check=False, retry_timeout=2.0)
    error = failing(hasty, takes_too_long)
    assert error.kind == "timeout" and "no message about a running job for 2 s" in str(error)
    assert len(steerlab.generate(far("tiny-llama"), PROMPTS, max_new_tokens=2)) == len(PROMPTS)


def test_a_batch_that_is_too_large_for_the_servers_memory_is_told_to_be_smaller(far: Get, near: Get) -> None:
    error = failing(far("tiny-llama"), needs_memory)
    assert error.kind == "size" and "Use a smaller batch_size" in str(error), error
    options = {"max_new_tokens": 2, "batch_size": 1}
    alone = steerlab.generate(far("tiny-llama"), PROMPTS, steer=InFlight(needs_memory), **options)
    assert alone.ids == steerlab.generate(near("tiny-llama"), PROMPTS, **options).ids


def test_an_error_in_a_methods_own_code_comes_back_in_the_servers_words(far: Get) -> None:
    error = failing(far("tiny-llama"), divides_by_zero)
    assert error.kind == "execution" and "ZeroDivisionError" in str(error).splitlines()[0]
    assert "divides_by_zero" in str(error)


@pytest.mark.parametrize(
    "function", [WithLock(), of_a_package_that_is_not_there, hypothesis.internal.compat.int_to_bytes]
)
def test_code_that_can_not_travel_is_told_so(far: Get, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    error = failing(far("tiny-llama"), function)
    assert error.kind == "serialization" and "ship_packages=" in str(error), error


def test_what_a_block_prints_and_where_a_job_stands_are_heard(far: Get, server: Ndif) -> None:
    job = steerlab.generate(
        far("tiny-llama"), PROMPTS, steer=InFlight(says_something), max_new_tokens=3, blocking=False
    )
    assert len(job.result(120)) == len(PROMPTS) and job.done()
    assert any("met 3 rows" in client for client in job.log), job.log
    assert any("queued" in client for client in job.log) and job.state.startswith("completed"), job.log


def test_a_job_gives_its_error_to_the_one_who_asks(far: Get) -> None:
    job = steerlab.generate(
        far("tiny-llama"), PROMPTS, steer=InFlight(divides_by_zero), max_new_tokens=3, blocking=False
    )
    with pytest.raises(RemoteError, match="ZeroDivisionError"):
        job.result(120)


def test_training_is_refused_beforehand(far: Get, near: Get) -> None:
    model = far("tiny-llama")
    assert isinstance(model.engine, NdifEngine)
    sent = model.engine.client.traffic.requests
    learning = steerlab.MeanDifference.from_tensor(1, torch.zeros(model.hidden_size))
    learning.vector_ = torch.ones(model.hidden_size, requires_grad=True)
    with pytest.raises(RemoteError, match="requires gradients") as caught:
        steerlab.generate(model, PROMPTS, steer=learning, max_new_tokens=2)
    assert caught.value.kind == "unsupported" and model.engine.client.traffic.requests == sent


def test_a_forward_of_the_skeleton_is_refused(far: Get) -> None:
    with pytest.raises(RemoteError, match="would give shapes and no numbers"):
        far("tiny-llama").hf(torch.tensor([[1, 2]]))


def test_a_big_result_is_streamed(far: Get, near: Get) -> None:
    prompts = [f"{i} {'the heron sleeps by the river ' * 12}" for i in range(128)]
    wanted = {"layers": "all", "positions": "all", "reduce": "none", "batch_size": 128, "progress": False}
    there, here = (steerlab.capture(m, prompts, **wanted) for m in (far("tiny-llama"), near("tiny-llama")))
    assert there.values.nbytes > 8 * 2**20, "above what NDIF sends by itself"
    assert torch.equal(there.values, here.values)


def test_versions_that_are_apart_are_both_named(
    far: Get, server: Ndif, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    true = client.version
    monkeypatch.setattr(client, "version", lambda name: "4.1.0" if name == "transformers" else true(name))
    with pytest.raises(RemoteError, match=r"transformers 4\.1\.0 here and 5\.") as caught:
        steerlab.load(models["tiny-llama"], remote=server.host)
    assert caught.value.kind == "version"


def test_a_server_that_wants_a_newer_client_names_both_versions(server: Ndif, models: dict[str, Path]) -> None:
    if server.sandboxed:
        pytest.skip("it is the API that says so, whichever the worker")
    apart = pytest.raises(RemoteError, match=r"(?s)nnsight 0\.8.*9\.0")
    with server.restarted(NDIF_MIN_NNSIGHT_VERSION="9.0"), apart as caught:
        steerlab.load(models["tiny-llama"], remote=server.host)
    assert caught.value.kind == "version"


def test_a_key_is_taken_or_refused_and_a_server_that_takes_nothing_is_waited_for(
    server: Ndif, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if server.sandboxed:
        pytest.skip("it is the API that says so, whichever the worker")
    try:
        keys = Keys(tmp_path / "keys")
    except CannotInstall as error:
        pytest.skip(str(error))
    with keys, server.restarted(NDIF_POSTGRES_URL=keys.url):
        for bad in (None, "not-a-key", "00000000-0000-0000-0000-000000000000"):
            if bad is None:
                monkeypatch.delenv("NDIF_API_KEY", raising=False)
            else:
                monkeypatch.setenv("NDIF_API_KEY", bad)
            with pytest.raises(RemoteError, match="NDIF_API_KEY") as caught:
                steerlab.load(models["tiny-llama"], remote=server.host)
            assert caught.value.kind == "key"
        monkeypatch.setenv("NDIF_API_KEY", keys.valid)
        model = steerlab.load(models["tiny-llama"], remote=server.host, retry_timeout=3.0)
        assert len(steerlab.generate(model, PAIRS, max_new_tokens=2)) == len(PAIRS)
        keys.stop()
        begun = time.monotonic()
        with pytest.raises(RemoteError, match="accepts no requests at the moment") as caught:
            steerlab.generate(model, PAIRS, max_new_tokens=2)
        assert caught.value.kind == "busy" and time.monotonic() - begun > 1.0
