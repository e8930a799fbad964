"""Workers and servers that are killed during a sweep or a capture: no result is lost, doubled or changed."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from remote_fits import PAIRS, PROMPTS
from servers.ndif import Ndif

import steerlab
from steerlab import SteeringVector
from steerlab.errors import RemoteError
from steerlab.models._nnsight.client import Traffic
from steerlab.models._nnsight.ndif import NdifEngine
from steerlab.models.model import Model

pytestmark = pytest.mark.remote
Get = Callable[[str], Model]
ALPHAS = [a / 10 for a in range(-25, 26) if a]  # 50 of them, at four layers: 200 settings


def traffic(model: Model) -> Traffic:
    assert isinstance(model.engine, NdifEngine)
    return model.engine.client.traffic


def swept(model: Model, batch_size: int = 8, **options: Any) -> pd.DataFrame:
    """200 settings of three inputs, in 76 requests."""
    vectors = {k: SteeringVector({k: torch.ones(model.hidden_size)}) for k in range(model.n_layers)}
    return steerlab.sweep(
        model, PAIRS, {"mean": vectors}, layers="all", alphas=ALPHAS, batch_size=batch_size, progress=False, **options
    )


class Killer(threading.Thread):
    """Kills the worker or the API at random moments, each time after one or two requests."""

    def __init__(self, server: Ndif, counted: Traffic, victims: list[str], draw: random.Random) -> None:
        super().__init__(daemon=True)
        self.server, self.counted, self.victims, self.draw = server, counted, victims, draw
        self.killed: list[str] = []
        self.over = threading.Event()

    def run(self) -> None:
        """Until all are killed, or the sweep is over."""
        for victim in self.victims:
            wanted = self.through + self.draw.randint(1, 2)
            while self.through < wanted and not self.over.is_set():
                time.sleep(0.005)
            self.over.wait(self.draw.uniform(0.0, 0.08))  # a request takes some fifty thousandths
            if self.over.is_set():
                return
            if victim == "api":
                self.server.kill_api()
                self.server.start_api()
            else:
                while not self.server.kill_worker():  # the one from before is still coming up
                    time.sleep(0.01)
            self.killed.append(victim)

    @property
    def through(self) -> int:
        return self.counted.requests - self.counted.retries


@contextmanager
def killing(server: Ndif, model: Model, victims: list[str], seed: int) -> Iterator[Killer]:
    killer = Killer(server, traffic(model), victims, random.Random(seed))
    killer.start()
    try:
        yield killer
    finally:
        killer.over.set()
        killer.join()


@pytest.mark.nightly
def test_kills_do_not_change_the_frame_of_a_sweep(remote: Get, server: Ndif, tmp_path: Path) -> None:
    """The sandboxed worker is killed less often, because its requests take longer."""
    model, victims, size = remote("tiny-llama"), ["worker"] * 16 + ["api"] * 4, 8
    if server.sandboxed:
        victims, size = ["worker", "api"], 80
    random.Random(0).shuffle(victims)
    quiet = swept(model, size)
    before = traffic(model).retries
    with killing(server, model, victims, seed=1) as killer:
        disturbed = swept(model, size, folder=tmp_path)
    assert len(killer.killed) == len(victims), killer.killed
    assert traffic(model).retries - before >= len(victims) // 2  # some are killed between two requests
    pd.testing.assert_frame_equal(disturbed, quiet, check_exact=True)
    assert not disturbed.duplicated(["layer", "alpha", "example_id", "metric"]).any()
    assert len(disturbed.groupby(["layer", "alpha"])) == 200


def test_sweep_continues_after_server_crash(server: Ndif, remote: Get, models: dict[str, Path], tmp_path: Path) -> None:
    if server.sandboxed:
        pytest.skip("the client continues, whichever the worker")
    before, size = traffic(remote("tiny-llama")).requests, 40
    whole = swept(remote("tiny-llama"), size)
    needed = traffic(remote("tiny-llama")).requests - before
    # beyond what a job is silent for
    model = steerlab.load(models["tiny-llama"], remote=server.host, retry_timeout=5.0)
    over = threading.Event()
    watch = threading.Thread(target=_kill_api_after, args=(server, traffic(model), needed // 3, over))
    watch.start()
    try:
        with pytest.raises(RemoteError) as caught:
            swept(model, size, folder=tmp_path)
    finally:
        over.set()
        watch.join()
        server.start_api()
    assert caught.value.kind in ("unreachable", "connection") and caught.value.retryable, caught.value
    model.engine.client.retry_timeout = 60.0  # type: ignore[attr-defined]
    begun, retried = traffic(model).requests, traffic(model).retries
    pd.testing.assert_frame_equal(swept(model, size, folder=tmp_path), whole, check_exact=True)
    again = traffic(model).requests - begun - (traffic(model).retries - retried)
    assert 0 < again <= needed - needed // 3 + 1, (again, needed)  # one was under way


def test_a_capture_continues_after_its_worker_was_killed(remote: Get, near: Get, server: Ndif, tmp_path: Path) -> None:
    times, victims = (3, ["worker"]) if server.sandboxed else (8, ["worker"] * 2)  # its requests take seconds
    prompts = [f"{i}: {prompt}" for i in range(times) for prompt in PROMPTS]
    wanted = {"layers": "all", "batch_size": 1, "progress": False}
    whole = steerlab.capture(near("tiny-llama"), prompts, **wanted)
    with killing(server, remote("tiny-llama"), victims, seed=3) as killer:
        store = steerlab.capture(remote("tiny-llama"), prompts, folder=tmp_path, **wanted)
    assert killer.killed == victims
    assert torch.equal(store.load().values, whole.values)


def _kill_api_after(server: Ndif, counted: Traffic, requests: int, over: threading.Event) -> None:
    begun = counted.requests
    while counted.requests < begun + requests and not over.is_set():
        time.sleep(0.005)
    server.kill_api()
