"""The client of a model server: retries, JSON requests, versions and models."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import chain, cycle, pairwise, repeat
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import httpx
import pytest
import tenacity
from hypothesis import given
from hypothesis import strategies as st

from steerlab._support import progress
from steerlab.errors import RemoteError
from steerlab.models._nnsight import client
from steerlab.models._nnsight.client import MAX_STARTS, ServerClient

HOST = "http://server:5001"


@dataclass
class Clock:
    """Time that passes only while somebody sleeps or works."""

    now: float = 0.0
    slept: list[float] = field(default_factory=list)

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@contextmanager
def clock(*draws: float) -> Iterator[Clock]:
    """A clock for the retries, whose random factors are drawn at these fractions of their range, over and over."""
    made, fractions = Clock(), cycle(draws or (0.5,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tenacity, "time", made)
        patch.setattr(tenacity.nap, "time", made)
        uniform = lambda low, high: low + (high - low) * next(fractions)  # noqa: E731
        patch.setattr(client, "random", SimpleNamespace(uniform=uniform))
        yield made


def failing(*errors: Exception) -> Callable[[], str]:
    """Raises one error after the other, and succeeds from then on."""
    return Mock(side_effect=chain(errors, repeat("done")))


def retryable(kind: str = "busy") -> RemoteError:
    return RemoteError(f"failed with {kind}. Try again", kind, retryable=True)


@cache
def pauses() -> list[float]:
    """The first pauses, without their random factor."""
    with clock() as time:
        ServerClient(HOST, retry_timeout=1e6).with_retries(failing(*[retryable()] * 20))
    return time.slept


KINDS = st.sampled_from(["busy", "worker", "connection", "unreachable", "model"])
FAILURES = st.lists(st.builds(RemoteError, st.just("x"), KINDS, retryable=st.booleans() | st.just(True)), max_size=14)


@given(FAILURES, st.just(0.0) | st.floats(0, 200), st.lists(st.floats(0, 1), min_size=1, max_size=5), st.floats(0, 5))
def test_retries_end_at_the_timeout(errors: list[RemoteError], timeout: float, draws: list[float], work: float) -> None:
    server, fail, calls = ServerClient(HOST, retry_timeout=timeout), failing(*errors), list[float]()
    with clock(*draws) as time:

        def attempt() -> str:
            calls.append(time.now)
            time.now += work
            return fail()

        try:
            outcome: str | RemoteError = server.with_retries(attempt)
        except RemoteError as error:
            outcome = error
    assert server.traffic.retries == len(time.slept) == len(calls) - 1
    assert calls[-1] <= timeout or len(calls) == 1, "no request after the timeout"
    for pause, usual in zip(time.slept, pauses(), strict=False):
        assert 0.7 * usual - 1e-9 <= pause <= 1.3 * usual + 1e-9
    raised = errors[: len(calls)]
    starts = sum(error.kind == "model" for error in raised)
    assert all(error.retryable for error in raised[:-1])
    if outcome == "done":
        assert len(calls) == len(errors) + 1 and starts < MAX_STARTS
        return
    assert outcome is raised[-1], "the last error is the one that is raised"
    longest = 1.3 * pauses()[len(calls) - 1] + 1e-9
    gave_up = starts == MAX_STARTS or time.now + longest > timeout
    assert not raised[-1].retryable or gave_up, "given up too early"


def test_other_errors_are_not_retried() -> None:
    with clock() as time, pytest.raises(ZeroDivisionError):
        ServerClient(HOST).with_retries(failing(ZeroDivisionError()))
    assert not time.slept


def test_a_model_that_fails_to_start_five_times_is_not_retried_whatever_the_timeout() -> None:
    server = ServerClient(HOST, retry_timeout=1e6)
    mixed = [retryable(kind) for kind in ["busy", "model", "worker"] * (MAX_STARTS - 1)]
    with clock() as time:
        assert server.with_retries(failing(*mixed)) == "done", "other failures do not count as starts"
        time.slept.clear()
        with pytest.raises(RemoteError) as caught:
            server.with_retries(failing(*[retryable("model")] * MAX_STARTS))
    assert caught.value.kind == "model" and len(time.slept) == MAX_STARTS - 1


def test_pauses_grow_up_to_15_seconds() -> None:
    assert pauses()[0] == pytest.approx(0.25) and pauses()[-1] == pytest.approx(15.0)
    for short, long in pairwise(pauses()):
        assert short < long <= 2 * short or short == long == pauses()[-1]
    with clock():
        assert ServerClient(HOST, retry_timeout=1e6).with_retries(failing(*[retryable()] * 5000)) == "done"


def test_every_retry_is_reported_and_counted() -> None:
    heard: list[str] = []
    server = ServerClient(HOST, retry_timeout=100.0)
    with clock() as time, progress.status_listener(heard.append):
        assert server.with_retries(failing(retryable("connection"), retryable("busy"))) == "done"
    first, second = time.slept
    assert heard == [
        f"connection, retrying in {first:.0f} s", f"{HOST}: failed with connection; retrying in {first:.1f} s",
        f"busy, retrying in {second:.0f} s", f"{HOST}: failed with busy; retrying in {second:.1f} s",
    ]  # fmt: skip
    assert server.traffic.retries == 2


# --- versions and models

HERE = {"nnsight": "0.8.1", "transformers": "5.20.0", "torch": "2.11.0+cpu"}
BUILDS = st.sampled_from(["", "+cpu", "+cu128", "+local.1"])


class FakeServer(ServerClient):
    """A client whose server gives these answers, or errors, one after the other."""

    def __init__(self, *answers: Any) -> None:
        super().__init__(HOST, retry_timeout=60.0)
        self.answers, self.paths = list(answers), list[str]()

    def get_json(self, path: str, timeout: float = 60.0) -> Any:
        self.paths.append(path)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def server_with(**versions: str) -> FakeServer:
    return FakeServer("pong", {"packages": HERE | versions})


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client has the versions in `HERE`."""
    monkeypatch.setattr(client, "version", HERE.__getitem__)


@given(st.tuples(*[BUILDS] * 6))
def test_equal_versions_pass_whatever_their_builds(builds: tuple[str, ...]) -> None:
    numbers = [number.partition("+")[0] + build for number, build in zip([*HERE.values()] * 2, builds, strict=True)]
    here, there = (dict(zip(HERE, some, strict=True)) for some in (numbers[:3], numbers[3:]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client, "version", here.__getitem__)
        server = server_with(**there)
        server.check_versions()  # a warning would be an error
    assert server.paths == ["/ping", "/env"]


@pytest.mark.parametrize(
    ("name", "there"),
    [("nnsight", "0.7.9"), ("nnsight", "1.8.1"), ("transformers", "5.21.0"), ("transformers", "4.20.0+cpu")],
)
def test_another_minor_version_is_refused_and_both_are_named(versions: None, name: str, there: str) -> None:
    with pytest.raises(RemoteError) as caught:
        server_with(**{name: there}).check_versions()
    assert caught.value.kind == "version" and not caught.value.retryable
    assert f"{name} {HERE[name]} here and {there} there ({HOST})" in str(caught.value)
    assert "torch" not in str(caught.value) and "check=False" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "there"), [("torch", "2.12.0"), ("torch", "3.0.0"), ("nnsight", "0.8.2"), ("transformers", "5.20.1")]
)
def test_a_smaller_version_difference_is_a_warning(versions: None, name: str, there: str) -> None:
    with pytest.warns(UserWarning, match="last digits") as caught:
        server_with(**{name: there}).check_versions()
    assert f"{HOST} has other versions: {name} {HERE[name]} here and {there} there." in str(caught[0].message)


def test_all_version_differences_are_named(versions: None) -> None:
    with pytest.raises(RemoteError, match=r"nnsight 0\.8\.1 here and 0\.9\.0.*torch 2\.11\.0\+cpu here and 2\.12\.0"):
        server_with(nnsight="0.9.0", torch="2.12.0").check_versions()
    with pytest.raises(RemoteError, match=r"nnsight 0\.8\.1 here and none there"):
        FakeServer("pong", {"packages": {k: v for k, v in HERE.items() if k != "nnsight"}}).check_versions()


def test_ping_is_sent_once_and_versions_are_retried(versions: None) -> None:
    with clock() as time, pytest.raises(RemoteError):
        FakeServer(retryable(), "pong").check_versions()
    assert not time.slept
    with clock() as time:
        server = FakeServer("pong", retryable(), retryable(), {"packages": HERE})
        server.check_versions()
    assert server.paths == ["/ping", *["/env"] * 3] and len(time.slept) == 2


def test_deployed_models_are_those_in_memory() -> None:
    found = {
        "key-1": {"repo_id": "b/hot", "deployment_level": "HOT"},
        "key-2": {"repo_id": "a/warm", "deployment_level": "WARM"},
        "key-3": {"repo_id": "c/cold", "deployment_level": "COLD"},
        "unnamed": {"deployment_level": "HOT"},
    }
    assert FakeServer({"deployments": found}).deployed() == ["a/warm", "b/hot", "unnamed"]
    assert FakeServer({"deployments": {}}).deployed() == []


@pytest.mark.parametrize("answer", [{}, {"packages": None, "deployments": []}, [], "hello", None])
def test_answers_of_another_kind_of_server_are_refused(answer: Any) -> None:
    for request, missing in ((FakeServer(answer).packages, "packages"), (FakeServer(answer).deployed, "deployments")):
        with pytest.raises(RemoteError, match=f"is no NDIF server, or an old one: .*{missing!r}"):
            request()


@contextmanager
def http(answer: Callable[[httpx.Request], httpx.Response]) -> Iterator[None]:
    """Every HTTP request gets this answer."""
    true = httpx.Client
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(httpx, "Client", lambda **options: true(transport=httpx.MockTransport(answer), **options))
        yield


@pytest.mark.parametrize("key", [None, "a key"])
def test_requests_carry_the_key(key: str | None) -> None:
    answer = Mock(return_value=httpx.Response(200, json={"a": 1}))
    with http(answer):
        assert ServerClient(HOST, key).get_json("/env") == {"a": 1}
    ((request,), _) = answer.call_args
    assert str(request.url) == f"{HOST}/env" and request.headers.get("ndif-api-key") == key


def test_a_rejected_request_names_the_versions_of_the_client() -> None:
    response = httpx.Response(400, json={"detail": "Version too old"})
    with http(lambda _: response), pytest.raises(RemoteError, match=f"nnsight {client.version('nnsight')}") as caught:
        ServerClient(HOST).get_json("/env")
    assert caught.value.kind == "version" and f"{HOST} answered 400: Version too old" in str(caught.value)


@pytest.mark.parametrize("error", [httpx.ConnectError, httpx.ReadTimeout, httpx.RemoteProtocolError])
def test_a_server_that_does_not_answer_is_unreachable(error: type[httpx.HTTPError]) -> None:
    answer = Mock(side_effect=error("not today"))
    with http(answer), pytest.raises(RemoteError, match=f"no server answers at {HOST}.*not today") as caught:
        ServerClient(HOST).get_json("/env")
    assert caught.value.kind == "unreachable" and caught.value.retryable
