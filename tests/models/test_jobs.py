"""Waiting for a server, with patience or in the background, and what is heard meanwhile."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import steerlab
from steerlab import Contrast, Example, MeanDifference, RemoteError
from steerlab._support import progress
from steerlab._support.errors import SteerlabError
from steerlab.models._hooks import HooksEngine
from steerlab.models._nnsight import client
from steerlab.models._nnsight.client import STARTS, ServerClient
from steerlab.models.job import Job, background
from steerlab.models.model import Model
from steerlab.steering.steer import active_steering

HOST = "http://there:5001"
PROMPTS = ["hello there", "how are you today, my friend?", "no"]
PAIRS = [Example(str(i), p, "b", Contrast("No, never.", "Yes, sure")) for i, p in enumerate(PROMPTS)]
SOON = 30.0  # seconds after which a thread that says nothing is taken for dead


# --- patience


@dataclass
class Clock:
    """Time that passes only when somebody sleeps or works."""

    now: float = 0.0
    slept: list[float] = field(default_factory=list)

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@contextmanager
def clock(*draws: float) -> Iterator[Clock]:
    """The line's own clock, and the fractions of its random range that pauses are drawn at, over and over."""
    made, drawn = Clock(), list(draws or (0.5,))

    def uniform(low: float, high: float) -> float:
        drawn.append(drawn.pop(0))
        return low + (high - low) * drawn[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client, "time", made)
        patch.setattr(client, "random", SimpleNamespace(uniform=uniform))
        yield made


def failing(*errors: Exception, then: str = "done") -> Callable[[], str]:
    """Fails with one after the other, and works from then on."""
    left = list(errors)

    def attempt() -> str:
        if left:
            raise left.pop(0)
        return then

    return attempt


def passing(kind: str = "busy") -> RemoteError:
    return RemoteError(f"no luck with {kind}. Try again", kind, retryable=True)


@cache
def pauses() -> list[float]:
    """The first pauses, without chance."""
    with clock(0.5) as time:
        ServerClient(HOST, retry_timeout=1e6).with_retries(failing(*[passing()] * 20))
    return time.slept


KINDS = st.sampled_from(["busy", "worker", "lost", "unreachable", "model"])
FAILURES = st.lists(st.builds(RemoteError, st.just("x"), KINDS, retryable=st.booleans() | st.just(True)), max_size=14)


@given(FAILURES, st.floats(0, 200), st.lists(st.floats(0, 1), min_size=1, max_size=5), st.floats(0, 5))
def test_patience_repeats_what_may_pass_and_nothing_else(
    errors: list[RemoteError], retry_timeout: float, draws: list[float], work: float
) -> None:
    asked = ServerClient(HOST, retry_timeout=retry_timeout)
    fails, calls = failing(*errors), list[float]()
    with clock(*draws) as time:

        def attempt() -> str:
            calls.append(time.now)
            time.now += work
            return fails()

        try:
            outcome: str | RemoteError = asked.with_retries(attempt)
        except RemoteError as error:
            outcome = error
    assert asked.traffic.retries == len(time.slept) == len(calls) - 1
    assert calls[-1] <= retry_timeout or len(calls) == 1, "nothing is sent once patience has run out"
    for pause, usual in zip(time.slept, pauses(), strict=False):
        assert 0.7 * usual - 1e-9 <= pause <= 1.3 * usual + 1e-9
    met = errors[: len(calls)]
    starts = sum(error.kind == "model" for error in met)
    assert all(error.retryable for error in met[:-1])
    if outcome == "done":
        assert len(calls) == len(errors) + 1 and starts < STARTS
        return
    assert outcome is met[-1], "the last failure is the one that is told"
    longest = 1.3 * pauses()[len(calls) - 1] + 1e-9
    assert not met[-1].retryable or starts == STARTS or time.now + longest > retry_timeout, "given up too early"


@pytest.mark.parametrize("kind", ["busy", "model"])
def test_a_failure_that_does_not_pass_is_raised_at_once(kind: str) -> None:
    lasting = RemoteError("never", kind)
    with clock() as time, pytest.raises(RemoteError) as caught:
        ServerClient(HOST, retry_timeout=1e6).with_retries(failing(passing(), lasting, passing()))
    assert caught.value is lasting and len(time.slept) == 1


def test_errors_of_other_kinds_are_not_repeated() -> None:
    with clock() as time, pytest.raises(ZeroDivisionError):
        ServerClient(HOST, retry_timeout=1e6).with_retries(failing(ZeroDivisionError()))
    assert not time.slept


def test_a_model_that_does_not_start_is_given_up_however_much_patience_there_is() -> None:
    attempts = [failing(*[passing("model")] * n) for n in (STARTS - 1, STARTS)]
    with clock():
        assert ServerClient(HOST, retry_timeout=1e6).with_retries(attempts[0]) == "done"
    with clock() as time, pytest.raises(RemoteError) as caught:
        ServerClient(HOST, retry_timeout=1e6).with_retries(attempts[1])
    assert caught.value.kind == "model" and len(time.slept) == STARTS - 1
    with clock():
        mixed = [passing(kind) for kind in ["busy", "model", "worker"] * (STARTS - 1)]
        assert ServerClient(HOST, retry_timeout=1e6).with_retries(failing(*mixed)) == "done", (
            "other failures are not counted as starts"
        )


def test_without_patience_there_is_one_attempt() -> None:
    with clock() as time, pytest.raises(RemoteError):
        ServerClient(HOST, retry_timeout=0.0).with_retries(failing(passing()))
    assert not time.slept


def test_pauses_grow_up_to_a_quarter_of_a_minute() -> None:
    assert pauses()[0] == pytest.approx(0.25) and pauses()[-1] == pytest.approx(15.0)
    for short, long in itertools.pairwise(pauses()):
        assert short < long <= 2 * short or short == long == pauses()[-1]


def test_patience_without_end_has_pauses_that_have_one() -> None:
    with clock(0.5):
        assert ServerClient("http://there", retry_timeout=1e6).with_retries(failing(*[passing()] * 5000)) == "done"


def test_every_repeat_is_told_and_noted_and_counted() -> None:
    heard: list[str] = []
    asked = ServerClient(HOST, retry_timeout=100.0)
    with clock(0.5) as time, progress.status_listener(heard.append):
        time.now = 1000.0
        assert asked.with_retries(failing(passing("lost"), passing("busy"))) == "done"
    assert heard == [
        line
        for kind, pause in zip(["lost", "busy"], time.slept, strict=True)
        for line in (
            f"{kind}, again in {pause:.0f} s", f"{HOST}: no luck with {kind}; trying again in {pause:.1f} s"
        )
    ]  # fmt: skip
    assert (asked.traffic.retries, asked.traffic.seconds) == (2, pytest.approx(sum(time.slept)))


# --- small questions, versions and models

HERE = {"nnsight": "0.8.1", "transformers": "5.20.0", "torch": "2.11.0+cpu"}
BUILDS = st.sampled_from(["", "+cpu", "+cu128", "+local.1"])


class Told(ServerClient):
    """A line to a server that answers so, or fails."""

    def __init__(self, *answers: Any, retry_timeout: float = 60.0) -> None:
        super().__init__(HOST, retry_timeout=retry_timeout)
        self.answers, self.asked = list(answers), list[str]()

    def ask(self, path: str, seconds: float = 60.0) -> Any:
        self.asked.append(path)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """This side has the versions in `HERE`."""
    monkeypatch.setattr(client, "version", HERE.__getitem__)


def told(**there: str) -> Told:
    return Told("pong", {"packages": HERE | there})


@given(st.tuples(*[BUILDS] * 6))
def test_equal_versions_say_nothing_whatever_their_builds(builds: tuple[str, ...]) -> None:
    bare = {name: number.partition("+")[0] for name, number in HERE.items()}
    here, there = (
        {name: number + build for (name, number), build in zip(bare.items(), some, strict=True)}
        for some in (builds[:3], builds[3:])
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client, "version", here.__getitem__)
        server = told(**there)
        server.check_versions()  # a warning would be an error
    assert server.asked == ["/ping", "/env"]


@pytest.mark.parametrize(
    ("name", "there"),
    [("nnsight", "0.7.9"), ("nnsight", "1.8.1"), ("transformers", "5.21.0"), ("transformers", "4.20.0+cpu")],
)
def test_another_minor_version_is_refused_and_both_are_named(versions: None, name: str, there: str) -> None:
    with pytest.raises(RemoteError) as caught:
        told(**{name: there}).check_versions()
    assert caught.value.kind == "version" and not caught.value.retryable
    assert f"{name} {HERE[name]} here and {there} there ({HOST})" in str(caught.value)
    assert "torch" not in str(caught.value) and "check=False" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "there"), [("torch", "2.12.0"), ("torch", "3.0.0"), ("nnsight", "0.8.2"), ("transformers", "5.20.1")]
)
def test_a_smaller_difference_is_warned_of(versions: None, name: str, there: str) -> None:
    with pytest.warns(UserWarning, match="last digits") as caught:
        told(**{name: there}).check_versions()
    assert f"{HOST} has other versions: {name} {HERE[name]} here and {there} there." in str(caught[0].message)


def test_all_that_is_apart_is_named_where_something_is_refused(versions: None) -> None:
    with pytest.raises(RemoteError, match=r"nnsight 0\.8\.1 here and 0\.9\.0.*torch 2\.11\.0\+cpu here and 2\.12\.0"):
        told(nnsight="0.9.0", torch="2.12.0").check_versions()


def test_a_server_that_does_not_know_a_package_is_told_so(versions: None) -> None:
    with pytest.raises(RemoteError, match=r"(?i)nnsight 0\.8\.1 here and none there"):
        Told("pong", {"packages": {k: v for k, v in HERE.items() if k != "nnsight"}}).check_versions()


def test_whether_anybody_is_there_is_asked_once_and_the_rest_patiently(versions: None) -> None:
    with clock() as time, pytest.raises(RemoteError):
        Told(passing(), "pong").check_versions()
    assert not time.slept
    with clock() as time:
        server = Told("pong", passing(), passing(), {"packages": HERE})
        server.check_versions()
    assert server.asked == ["/ping", *["/env"] * 3] and len(time.slept) == 2


def test_models_that_are_up_are_told_by_name() -> None:
    found = {
        "key-1": {"repo_id": "b/hot", "deployment_level": "HOT"},
        "key-2": {"repo_id": "a/warm", "deployment_level": "WARM"},
        "key-3": {"repo_id": "c/cold", "deployment_level": "COLD"},
        "unnamed": {"deployment_level": "HOT"},
    }
    assert Told({"deployments": found}).deployed() == ["a/warm", "b/hot", "unnamed"]
    assert Told({"deployments": {}}).deployed() == []


@pytest.mark.parametrize("said", [{}, {"packages": None, "deployments": []}, [], "hello", None])
def test_a_server_that_does_not_tell_what_an_ndif_server_tells_is_none(said: Any) -> None:
    for ask, missing in ((Told(said).packages, "packages"), (Told(said).deployed, "deployments")):
        with pytest.raises(RemoteError, match=f"is no NDIF server, or an old one: .*{missing!r}"):
            ask()


@contextmanager
def answered(answer: Callable[[httpx.Request], httpx.Response]) -> Iterator[None]:
    """Whatever is asked over HTTP is answered here."""
    true = httpx.Client
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(httpx, "Client", lambda **options: true(transport=httpx.MockTransport(answer), **options))
        yield


@pytest.mark.parametrize("key", [None, "a key"])
def test_a_question_goes_out_with_the_key(key: str | None) -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json={"a": 1})

    with answered(answer):
        assert ServerClient(HOST, key).ask("/env") == {"a": 1}
    assert str(seen[0].url) == f"{HOST}/env" and seen[0].headers.get("ndif-api-key") == key


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (httpx.Response(401, json={"detail": "who are you?"}), "key", "answered 401: who are you?"),
        (httpx.Response(503, text=" loading\n"), "busy", "answered 503: loading"),
        (httpx.Response(500, text=""), "lost", "answered 500: Internal Server Error"),
        (httpx.Response(400, json=["no", "object"]), "lost", "['no', 'object']"),
        (httpx.Response(404, json={"error": "nothing"}), "lost", "answered 404: nothing"),
        (httpx.Response(400, json={"detail": "Version too old"}), "version", f"nnsight {client.version('nnsight')}"),
    ],
)
def test_a_question_that_is_turned_down_is_told_in_the_servers_words(
    answer: httpx.Response, kind: str, words: str
) -> None:
    with answered(lambda _: answer), pytest.raises(RemoteError) as caught:
        ServerClient(HOST).ask("/env")
    assert caught.value.kind == kind and words in str(caught.value) and HOST in str(caught.value)


@pytest.mark.parametrize("error", [httpx.ConnectError, httpx.ReadTimeout, httpx.RemoteProtocolError])
def test_a_question_that_nobody_answers(error: type[httpx.HTTPError]) -> None:
    def answer(_: httpx.Request) -> httpx.Response:
        raise error("not today")

    with answered(answer), pytest.raises(RemoteError, match=f"no server answers at {HOST}.*not today") as caught:
        ServerClient(HOST).ask("/env")
    assert caught.value.kind == "unreachable" and caught.value.retryable


# --- what is heard


def test_what_is_told_stands_beside_the_innermost_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.bar(2, "outer", "row", shown=True) as outer, progress.bar(2, "inner", "row", shown=True) as inner:
        progress.tell("queued at 3")
        assert inner.postfix == "queued at 3" and not outer.postfix
        with progress.bar(2, "hidden", "row", shown=False):
            progress.tell("queued at 2")
        assert inner.postfix == "queued at 2" and not outer.postfix, "a bar that is not shown shows nothing"
        progress.note("the server said hello")
    shown = capsys.readouterr()
    assert "the server said hello" in shown.out + shown.err
    progress.tell("nobody listens")
    progress.note("nobody listens")
    assert "nobody listens" not in "".join(capsys.readouterr())


def test_a_listener_within_another_hands_back_to_it() -> None:
    outer: list[str] = []
    inner: list[str] = []
    with progress.status_listener(outer.append):
        with progress.status_listener(inner.append):
            progress.tell("a")
        progress.note("b")
    progress.tell("c")
    assert (outer, inner) == (["b"], ["a"])


def test_a_listener_hears_its_own_thread_while_it_listens() -> None:
    heard: list[str] = []
    with progress.status_listener(heard.append):
        progress.tell("a")
        other = threading.Thread(target=progress.tell, args=("of another thread",))
        other.start()
        other.join(SOON)
        progress.note("b")
    progress.tell("afterwards")
    assert heard == ["a", "b"]


# --- jobs


@dataclass
class Held:
    """Work that says something, then waits to be let go, then says more."""

    ends_with: Any = "done"
    begun: threading.Event = field(default_factory=threading.Event)
    go: threading.Event = field(default_factory=threading.Event)

    def __call__(self) -> Any:
        progress.tell("queued at 3")
        progress.note("a line of the server's")
        self.begun.set()
        assert self.go.wait(SOON)
        progress.tell("completed")
        if isinstance(self.ends_with, BaseException):
            raise self.ends_with
        return self.ends_with


def test_a_job_tells_its_state_while_it_runs_and_its_result_when_it_is_there() -> None:
    work = Held()
    job = Job(work)
    assert work.begun.wait(SOON) and not job.done()
    assert job.state == "a line of the server's" and job.log == ["queued at 3", "a line of the server's"]
    assert repr(job) == 'Job("a line of the server\'s")'
    for timeout in (0.0, 0.01):
        with pytest.raises(TimeoutError):
            job.result(timeout)
    assert not job.done(), "a job goes on after somebody gave up waiting"
    work.go.set()
    assert job.result(SOON) == job.result() == "done" and job.done()
    assert job.state == "completed" and job.log[2:] == ["completed"] and repr(job) == "Job('done')"


def test_a_job_that_has_said_nothing_has_begun() -> None:
    go = threading.Event()
    job = Job(lambda: go.wait(SOON))
    assert job.state == "begun" and job.log == [] and repr(job) == "Job('begun')"
    go.set()
    assert job.result(SOON) is True


@pytest.mark.parametrize(
    "error", [RemoteError("busy", "busy", retryable=True), ValueError("x"), KeyboardInterrupt(), SystemExit(3)]
)
def test_whatever_a_job_raises_goes_to_the_one_who_asks_each_time(error: BaseException) -> None:
    work = Held(error)
    job = Job(work)
    work.go.set()
    for _ in range(2):
        with pytest.raises(type(error)) as caught:
            job.result(SOON)
        assert caught.value is error
    assert job.done() and job.log[-1] == "completed"


def test_jobs_hear_themselves_and_nobody_else() -> None:
    first, second = Held(1), Held(2)
    jobs = [Job(first), Job(second)]
    assert first.begun.wait(SOON) and second.begun.wait(SOON)
    heard: list[str] = []
    with progress.status_listener(heard.append):
        progress.tell("of the thread that waits")
        second.go.set()
        assert jobs[1].result(SOON) == 2 and not jobs[0].done()
    first.go.set()
    assert jobs[0].result(SOON) == 1
    assert heard == ["of the thread that waits"]
    assert [job.log for job in jobs] == [["queued at 3", "a line of the server's", "completed"]] * 2


# --- blocking=False


class Elsewhere(HooksEngine):
    """An engine that counts as being elsewhere."""

    supports_forward_state = False


@pytest.fixture
def far(lm: Callable[..., Model]) -> Model:
    near = lm()
    engine = Elsewhere(near.hf, near.layout)
    return Model(near.hf, near.tokenizer, near.layout, id="far", backend="elsewhere", engine=engine)


def mean(seed: int, layer: int = 1) -> MeanDifference:
    draw = torch.Generator().manual_seed(seed)
    return MeanDifference.from_tensor(layer, 4 * torch.randn(32, generator=draw))


VERBS: dict[str, Callable[..., Any]] = {
    "capture": lambda model, **o: steerlab.capture(model, PROMPTS, progress=False, **o).values,
    "capture, by name": lambda model, **o: steerlab.capture(data=PROMPTS, progress=False, model=model, **o).values,
    "generate": lambda model, **o: steerlab.generate(model, PROMPTS, max_new_tokens=4, **o),
    "score": lambda model, **o: steerlab.score(model, PROMPTS, ["yes", "no", "perhaps"], **o),
    "next_token_logits": lambda model, **o: steerlab.next_token_logits(model, PROMPTS, [5, 9], **o),
    "sweep": lambda model, **o: steerlab.sweep(model, mean(0), PAIRS, alphas=(0.0, 1.0), progress=False, **o),
}


@pytest.mark.parametrize("verb", [*VERBS, "capture_to"])
def test_a_model_in_this_process_is_not_run_in_the_background(
    lm: Callable[..., Model], verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steerlab.models.job.Job", None)
    with pytest.raises(SteerlabError, match=r"blocking=False.* tiny-llama runs in this process.*leave it out"):
        if verb == "capture_to":
            steerlab.capture_to(tmp_path, lm(), PROMPTS, blocking=False)
        else:
            VERBS[verb](lm(), blocking=False)
    assert not list(tmp_path.iterdir())


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    return a.ids == b.ids if hasattr(a, "ids") else bool(a.equals(b))


@pytest.mark.parametrize("verb", [verb for verb in VERBS if not verb.startswith("capture")])
def test_a_job_gives_what_the_verb_gives(far: Model, verb: str) -> None:
    job = VERBS[verb](far, blocking=False)
    assert isinstance(job, Job)
    plain = VERBS[verb](far)
    assert not isinstance(plain, Job)
    assert same(job.result(SOON), plain) and same(VERBS[verb](far, blocking=True), plain)


def test_a_capture_in_the_background(far: Model, tmp_path: Path) -> None:
    plain = steerlab.capture(far, PROMPTS, progress=False)
    wanted: dict[str, Any] = {"progress": False, "blocking": False}
    jobs: list[Any] = [
        steerlab.capture(far, PROMPTS, **wanted),
        steerlab.capture(data=PROMPTS, model=far, **wanted),
        steerlab.capture_to(tmp_path, far, PROMPTS, **wanted),
    ]
    found = [job.result(SOON) for job in jobs]
    assert all(torch.equal(acts.values, plain.values) for acts in (*found[:2], found[2].load()))


def test_an_error_of_a_verb_comes_with_the_result(far: Model) -> None:
    job: Any = steerlab.capture(far, PROMPTS, layers=[99], blocking=False)
    with pytest.raises(steerlab.LayoutError, match="99"):
        job.result(SOON)


@pytest.mark.parametrize("verb", ["generate", "score", "next_token_logits"])
def test_a_job_is_steered_as_the_verb_was_when_it_was_called(far: Model, verb: str) -> None:
    plain = VERBS[verb](far)
    with far.lock:  # no job gets to the model before it is let go
        with steerlab.steer(far, mean(1)), steerlab.steer(far, mean(2, layer=2)):
            steered, both = VERBS[verb](far), VERBS[verb](far, blocking=False)
            alone = VERBS[verb](far, blocking=False, steer=())
        with steerlab.steer(far, mean(3)):
            other, third = VERBS[verb](far), VERBS[verb](far, blocking=False)
        outside = VERBS[verb](far, blocking=False)
        assert active_steering(far) == []
    assert same(both.result(SOON), steered) and same(third.result(SOON), other)
    assert same(outside.result(SOON), plain) and same(alone.result(SOON), plain)
    assert not same(steered, plain) and not same(steered, other)
    assert active_steering(far) == [], "a job's steering is its own thread's"


def test_a_run_in_the_background_counts_what_it_wrote_when_it_is_there(far: Model) -> None:
    with steerlab.steer(far, mean(1)) as run:
        texts, scores = run.generate(PROMPTS, max_new_tokens=3), run.score(PROMPTS, ["a", "b", "c"])
        wanted = (run.steered_tokens, run.norm_ratio)
    with steerlab.steer(far, mean(1)) as later:
        jobs = (
            later.generate(PROMPTS, max_new_tokens=3, blocking=False),
            later.score(PROMPTS, ["a", "b", "c"], blocking=False),
        )
    found = [job.result(SOON) for job in jobs]
    assert same(found[0], texts) and same(found[1], scores)
    assert (later.steered_tokens, later.norm_ratio) == (wanted[0], pytest.approx(wanted[1]))


def test_without_a_model_nothing_is_deferred() -> None:
    with pytest.raises((TypeError, AttributeError, SteerlabError)):
        steerlab.generate("smollm2", PROMPTS, blocking=False)


def test_any_function_of_a_model_can_be_deferred(far: Model, lm: Callable[..., Model]) -> None:
    seen: list[tuple[Any, ...]] = []

    def verb(a: int, model: Model, *, b: int = 2) -> str:
        """What it does."""
        seen.append((a, b, threading.current_thread() is threading.main_thread(), len(active_steering(model))))
        progress.tell("under way")
        return f"{a + b}"

    deferred: Any = background(verb)
    assert (deferred.__name__, deferred.__doc__) == ("verb", "What it does.")
    assert deferred(1, far) == deferred(1, far, blocking=True) == deferred(1, lm()) == "3"
    with steerlab.steer(far, mean(0)):
        job = deferred(1, model=far, b=5, blocking=False)
    assert job.result(SOON) == "6" and job.log == ["under way"]
    assert seen == [(1, 2, True, 0)] * 3 + [(1, 5, False, 1)]


def test_job_keeps_the_steering_of_the_block_that_started_it(far: Model) -> None:
    left = threading.Event()

    def verb(model: Model) -> list[Any]:
        left.wait(SOON)
        return [run for run, _ in active_steering(model)]

    deferred: Any = background(verb)
    with steerlab.steer(far, mean(0)) as outer, steerlab.steer(far, mean(1)) as inner:
        job = deferred(far, blocking=False)
    left.set()
    assert job.result(SOON) == [outer, inner] and active_steering(far) == []
