"""Status messages beside progress bars, and verbs that run in the background."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

import steerlab
from steerlab import Contrast, Example, MeanDifference, SteeringVector
from steerlab._support import progress
from steerlab.errors import RemoteError, SteerlabError
from steerlab.models._hooks import HooksEngine
from steerlab.models.job import Job, background
from steerlab.models.model import Model
from steerlab.steering.steer import active_steering

PROMPTS = ["hello there", "how are you today, my friend?", "no"]
PAIRS = [Example(p, Contrast("No, never.", "Yes, sure"), id=str(i), behavior="b") for i, p in enumerate(PROMPTS)]
LM = Callable[..., Model]
TIMEOUT = 30.0  # seconds after which a silent thread is taken for dead


def test_a_status_is_shown_beside_the_innermost_visible_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.bar(2, "outer", "row", shown=True) as outer, progress.bar(2, "inner", "row", shown=True) as inner:
        progress.set_status("queued at 3")
        assert inner.postfix == "queued at 3" and not outer.postfix
        with progress.bar(2, "hidden", "row", shown=False):
            progress.set_status("queued at 2")
        assert inner.postfix == "queued at 2" and not outer.postfix
        progress.log_line("the server said hello")
    shown = capsys.readouterr()
    assert "the server said hello" in shown.out + shown.err
    progress.set_status("without a bar")
    progress.log_line("without a bar")
    assert "without a bar" not in "".join(capsys.readouterr())


def test_a_listener_hears_its_own_thread_until_it_ends() -> None:
    outer: list[str] = []
    inner: list[str] = []
    with progress.status_listener(outer.append):
        with progress.status_listener(inner.append):
            progress.set_status("a")
        other = threading.Thread(target=progress.set_status, args=("of another thread",))
        other.start()
        other.join(TIMEOUT)
        progress.log_line("b")
    progress.set_status("c")
    assert (outer, inner) == (["b"], ["a"])


@dataclass
class Held:
    """Work that sends messages, waits for `go`, and sends another."""

    outcome: Any = "done"
    begun: threading.Event = field(default_factory=threading.Event)
    go: threading.Event = field(default_factory=threading.Event)

    def __call__(self) -> Any:
        progress.set_status("queued at 3")
        progress.log_line("a line of the server's")
        self.begun.set()
        assert self.go.wait(TIMEOUT)
        progress.set_status("completed")
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome


def test_a_job_has_a_state_a_log_and_a_result() -> None:
    work = Held()
    job = Job(work)
    assert work.begun.wait(TIMEOUT) and not job.done()
    assert job.state == "a line of the server's" and job.log == ["queued at 3", "a line of the server's"]
    assert repr(job) == 'Job("a line of the server\'s")'
    for timeout in (0.0, 0.01):
        with pytest.raises(TimeoutError):
            job.result(timeout)
    assert not job.done(), "a job goes on after a wait timed out"
    work.go.set()
    assert job.result(TIMEOUT) == job.result() == "done" and job.done()
    assert job.state == "completed" and job.log[2:] == ["completed"] and repr(job) == "Job('done')"


def test_a_job_without_messages_has_the_state_started() -> None:
    go = threading.Event()
    job = Job(lambda: go.wait(TIMEOUT))
    assert job.state == "started" and job.log == [] and repr(job) == "Job('started')"
    go.set()
    assert job.result(TIMEOUT) is True


@pytest.mark.parametrize(
    "error", [RemoteError("busy", "busy", retryable=True), ValueError("x"), KeyboardInterrupt(), SystemExit(3)]
)
def test_result_raises_the_error_of_the_job_each_time(error: BaseException) -> None:
    work = Held(error)
    job = Job(work)
    work.go.set()
    for _ in range(2):
        with pytest.raises(type(error)) as caught:
            job.result(TIMEOUT)
        assert caught.value is error
    assert job.done() and job.log[-1] == "completed"


def test_jobs_log_their_own_messages_only() -> None:
    first, second = Held(1), Held(2)
    jobs = [Job(first), Job(second)]
    assert first.begun.wait(TIMEOUT) and second.begun.wait(TIMEOUT)
    heard: list[str] = []
    with progress.status_listener(heard.append):
        progress.set_status("of the thread that waits")
        second.go.set()
        assert jobs[1].result(TIMEOUT) == 2 and not jobs[0].done()
    first.go.set()
    assert jobs[0].result(TIMEOUT) == 1
    assert heard == ["of the thread that waits"]
    assert [job.log for job in jobs] == [["queued at 3", "a line of the server's", "completed"]] * 2


class RemoteHooks(HooksEngine):
    """An engine in this process that counts as remote."""

    supports_forward_state = False


@pytest.fixture
def remote(lm: LM) -> Model:
    hf, tokenizer, layout = lm().hf, lm().tokenizer, lm().layout
    return Model(hf, tokenizer, layout, id="remote", backend="hooks", engine=RemoteHooks(hf, layout))


def mean(seed: int, layer: int = 1) -> MeanDifference:
    return SteeringVector({layer: 4 * torch.randn(32, generator=torch.Generator().manual_seed(seed))})


VERBS: dict[str, Callable[..., Any]] = {
    "capture": lambda model, **o: steerlab.capture(model, PROMPTS, progress=False, **o),
    "capture by keyword": lambda model, **o: steerlab.capture(data=PROMPTS, progress=False, model=model, **o),
    "generate": lambda model, **o: steerlab.generate(model, PROMPTS, max_new_tokens=4, **o),
    "score": lambda model, **o: steerlab.score(model, PROMPTS, ["yes", "no", "perhaps"], **o),
    "next_token_logits": lambda model, **o: steerlab.next_token_logits(model, PROMPTS, [5, 9], **o),
    "sweep": lambda model, **o: steerlab.sweep(model, PAIRS, mean(0), alphas=(0.0, 1.0), progress=False, **o),
}


@pytest.mark.parametrize("verb", VERBS)
def test_blocking_false_is_refused_locally(lm: LM, verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steerlab.models.job.Job", None)
    options = {"folder": tmp_path} if verb == "capture" else {}
    with pytest.raises(SteerlabError, match=r"blocking=False.* tiny-llama runs in this process.*leave it out"):
        VERBS[verb](lm(), blocking=False, **options)
    assert not list(tmp_path.iterdir())


def same(a: Any, b: Any) -> bool:
    if hasattr(a, "values") and hasattr(a, "index") and isinstance(a.values, torch.Tensor):
        return torch.equal(a.values, b.values)
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    return a.ids == b.ids if hasattr(a, "ids") else bool(a.equals(b))


@pytest.mark.parametrize("verb", VERBS)
def test_a_job_returns_what_the_verb_returns(remote: Model, verb: str) -> None:
    job, direct = VERBS[verb](remote, blocking=False), VERBS[verb](remote)
    assert isinstance(job, Job) and not isinstance(direct, Job)
    assert same(job.result(TIMEOUT), direct) and same(VERBS[verb](remote, blocking=True), direct)


def test_capture_to_a_folder_in_the_background(remote: Model, tmp_path: Path) -> None:
    direct = steerlab.capture(remote, PROMPTS, progress=False)
    job: Any = steerlab.capture(remote, PROMPTS, folder=tmp_path, progress=False, blocking=False)
    assert same(job.result(TIMEOUT).load(), direct)
    job = steerlab.capture(remote, PROMPTS, layers=[99], blocking=False)
    with pytest.raises(steerlab.errors.LayoutError, match="99"):
        job.result(TIMEOUT)


@pytest.mark.parametrize("verb", ["generate", "score", "next_token_logits"])
def test_a_job_is_steered_by_the_blocks_around_its_call(remote: Model, verb: str) -> None:
    direct = VERBS[verb](remote)
    with remote.lock:  # the jobs wait until all are started
        with steerlab.steer(remote, mean(1)), steerlab.steer(remote, mean(2, layer=2)):
            steered, both = VERBS[verb](remote), VERBS[verb](remote, blocking=False)
            unsteered = VERBS[verb](remote, blocking=False, steer=())
        with steerlab.steer(remote, mean(3)):
            other, third = VERBS[verb](remote), VERBS[verb](remote, blocking=False)
        outside = VERBS[verb](remote, blocking=False)
        assert active_steering(remote) == []
    assert same(both.result(TIMEOUT), steered) and same(third.result(TIMEOUT), other)
    assert same(outside.result(TIMEOUT), direct) and same(unsteered.result(TIMEOUT), direct)
    assert not same(steered, direct) and not same(steered, other)
    assert active_steering(remote) == [], "the steering of a job stays in its thread"


def test_a_run_in_the_background_counts_its_edits(remote: Model) -> None:
    with steerlab.steer(remote, mean(1)) as run:
        texts, scores = run.generate(PROMPTS, max_new_tokens=3), run.score(PROMPTS, ["a", "b", "c"])
    with steerlab.steer(remote, mean(1)) as later:
        jobs: list[Any] = [
            later.generate(PROMPTS, max_new_tokens=3, blocking=False),
            later.score(PROMPTS, ["a", "b", "c"], blocking=False),
        ]
    assert same(jobs[0].result(TIMEOUT), texts) and same(jobs[1].result(TIMEOUT), scores)
    assert (later.steered_tokens, later.norm_ratio) == (run.steered_tokens, pytest.approx(run.norm_ratio))


def test_any_function_of_a_model_can_run_in_the_background(remote: Model, lm: LM) -> None:
    """A job keeps the steering of the blocks that it was started in, also after they were left."""
    seen: list[tuple[Any, ...]] = []
    go = threading.Event()
    go.set()

    def verb(a: int, model: Model, *, b: int = 2) -> str:
        """What it does."""
        assert go.wait(TIMEOUT)
        steering = [run for run, _ in active_steering(model)]
        seen.append((a, b, threading.current_thread() is threading.main_thread(), steering))
        progress.set_status("running")
        return f"{a + b}"

    wrapped: Any = background(verb)
    assert (wrapped.__name__, wrapped.__doc__) == ("verb", "What it does.")
    assert wrapped(1, remote) == wrapped(1, remote, blocking=True) == wrapped(1, lm()) == "3"
    go.clear()
    with steerlab.steer(remote, mean(0)) as outer, steerlab.steer(remote, mean(1)) as inner:
        job = wrapped(1, model=remote, b=5, blocking=False)
    go.set()
    assert job.result(TIMEOUT) == "6" and job.log == ["running"] and active_steering(remote) == []
    assert seen == [(1, 2, True, [])] * 3 + [(1, 5, False, [outer, inner])]
    with pytest.raises((TypeError, AttributeError, SteerlabError)):
        steerlab.generate("smollm2", PROMPTS, blocking=False)  # without a model
