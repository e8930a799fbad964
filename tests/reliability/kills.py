"""Kill a run at a random moment and call it again: it must finish with the same bits, and keep what was finished.

The parent builds everything once. A child is forked for each kill, runs the job into a new folder and is killed, half
of the time after a random part of the job's duration, half of the time at a random one of its accesses to a file.
"""

import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a forked child must not wait for threads of its parent

import pandas as pd
import torch

import steerlab
from steerlab import Contrast, Example, MeanDifference
from steerlab.analysis.study import Study
from steerlab.errors import SteerlabError
from steerlab.methods.base import Context
from steerlab.methods.serialization import save
from steerlab.models.model import Model
from steerlab.testing import tiny_lm

Files = dict[str, tuple[int, int]]


class Forwards:
    """Counts the forwards of a model's engine."""

    def __init__(self, model: Model) -> None:
        self.count, engine = 0, model.engine
        for name in ("capture_states", "logits", "generate"):
            setattr(engine, name, partial(self._call, getattr(engine, name)))

    def _call(self, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.count += 1
        return run(*args, **kwargs)


@dataclass(frozen=True)
class Job:
    """Work with a folder.

    Attributes:
        name: of the kind of work.
        run: does the work in a folder, or goes on with it, and returns its result.
        equal: whether two results are the same, bit by bit.
        parts: a pattern of the files that are finished work and must not be written again.
        prepare: what is in the folder beforehand.
        check: looks at a folder after the kill, and says what is wrong with it, or "".
    """

    name: str
    run: Callable[[Path], Any]
    equal: Callable[[Any, Any], bool]
    parts: str = ""
    prepare: Callable[[Path], object] = lambda folder: None
    check: Callable[[Path], str] = lambda folder: ""


def examples() -> list[Example]:
    return [
        Example(f"Question {i} about {'bread' if i % 2 else 'knives'}?", Contrast(f"I can't, {i}.", f"Sure, {i}."),
                id=f"e{i}", behavior=("answer", "refuse")[i % 2])
        for i in range(12)
    ]  # fmt: skip


def jobs(model: Model) -> list[Job]:
    """A capture, a sweep of answers and texts, the saving of artifacts, and a study."""
    data = examples()
    acts = steerlab.capture(model, data, layers=[0, 1, 2], progress=False)
    old, new = (MeanDifference(layer).fit(acts) for layer in (0, 1))
    net = steerlab.L2S(1, hidden_units=4, config="released", progress=False)
    many = {"probe": steerlab.methods.LinearProbe(1).fit(acts), "p2s": steerlab.methods.P2S(1).fit(acts), "l2s": net}
    net.config = steerlab.methods.TrainingConfig(epochs=1)
    net.fit(acts)

    def capture(folder: Path) -> Any:
        return steerlab.capture(model, data, layers=[0, 2], batch_size=2, folder=folder / "acts", progress=False).load()

    def sweep(folder: Path) -> Any:
        return steerlab.sweep(
            model, data[:4], {"mean": new}, alphas=[-1.0, 0.0, 1.0], positions=["last+generated", "all"],
            metric={"propensity": "propensity", "length": _lengths}, generation={"max_new_tokens": 3},
            batch_size=6, folder=folder / "sweep", progress=False,
        )  # fmt: skip

    def saved(folder: Path) -> Any:
        save(new, folder / "mean")
        for name, method in many.items():
            save(method, folder / name)
        context = Context.of(acts)
        found = [steerlab.load_steerer(folder / name).vectors(context) for name in ("mean", "p2s", "l2s")]
        return [*found, steerlab.methods.load_detector(folder / "probe").score(context)]

    def half_saved(folder: Path) -> str:
        """The artifact that was there before is whole, replaced, or refused; never mixed of both."""
        try:
            found = steerlab.load_steerer(folder / "mean")
        except SteerlabError:
            return ""
        return "" if any(_same_method(found, one) for one in (old, new)) else "a mixture of two artifacts was loaded"

    def study(folder: Path) -> Any:
        work = Study(folder / "study", {"study": "kills", "seed": 0})
        frames = [work.stage(f"part-{i}", partial(_part, model, data, i)) for i in range(4)]
        results = pd.concat(frames, ignore_index=True)
        work.finish(results, {"n": len(results)}, "# Examples\n", {"seed": 0})
        return results, (folder / "study" / "results.csv").read_bytes()

    return [
        Job("capture", capture, _same_acts, "acts/*.safetensors"),
        Job("sweep", sweep, lambda a, b: a.equals(b), "sweep/stages/*.csv"),
        Job(
            "artifact", saved, lambda a, b: all(map(torch.equal, a, b)), prepare=lambda f: save(old, f / "mean"),
            check=half_saved,
        ),
        Job("study", study, lambda a, b: a[0].equals(b[0]) and a[1] == b[1], "study/stages/part-*.csv"),
    ]  # fmt: skip


def _lengths(examples: Any, texts: Any) -> list[float]:
    return [float(len(text)) for text in texts]


def _part(model: Model, data: list[Example], i: int) -> pd.DataFrame:
    texts = steerlab.generate(model, data[3 * i : 3 * i + 3], max_new_tokens=3)
    return steerlab.score(model, data[3 * i : 3 * i + 3], ["a", "b", "c"]).assign(text=list(texts))


def _same_acts(a: Any, b: Any) -> bool:
    return torch.equal(a.values, b.values) and a.index.equals(b.index)


def _same_method(a: Any, b: Any) -> bool:
    return a.site == b.site and torch.equal(a.vector_, b.vector_)


def kill(job: Job, forwards: Forwards, whole: Any, seconds: float, events: int, rng: random.Random) -> dict[str, Any]:
    """Kill one run of a job, and call it again: what went wrong, or "", and how many parts were finished."""
    while True:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            job.prepare(folder)
            if _killed(
                job, folder, rng.uniform(0, seconds), rng.randrange(1, events + 1) if rng.random() < 0.5 else None
            ):
                finished = _parts(job, folder)
                try:
                    problem = job.check(folder) or _go_on(job, folder, forwards, whole)
                except Exception as error:
                    problem = f"a later call failed: {type(error).__name__}: {error}"
                return {"detail": problem, "finished": len(finished)}


def _killed(job: Job, folder: Path, moment: float, at_event: int | None) -> bool:
    """Run a job in a child, and kill it at a moment or at an access to a file; False if it had ended by then."""
    child = os.fork()
    if child == 0:
        _run_in_child(job, folder, at_event)
    if at_event is None:
        time.sleep(moment)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise RuntimeError(f"the {job.name} failed before it was killed")
    return os.WIFSIGNALED(status)


def _go_on(job: Job, folder: Path, forwards: Forwards, whole: Any) -> str:
    """A second call finishes the run and keeps what is there; a third one computes nothing. What went wrong, or ""."""
    finished = _parts(job, folder)
    if not job.equal(job.run(folder), whole):
        return "the second call gave another result"
    if any(_parts(job, folder).get(name) != state for name, state in finished.items()):
        return "a finished part was written again"
    before = forwards.count
    if not job.equal(job.run(folder), whole):
        return "a call of the finished run gave another result"
    return f"a call of the finished run made {forwards.count - before} forwards" if forwards.count > before else ""


def _run_in_child(job: Job, folder: Path, at_event: int | None) -> None:
    """Run a job in a forked child, which ends here; with `at_event` it kills itself at that access to a file."""
    if at_event is not None:
        sys.addaudithook(_Countdown(folder, at_event))
    try:
        job.run(folder)
    except BaseException:
        os._exit(1)
    os._exit(0)


class _Countdown:
    """An audit hook that counts what is done to the files of a folder, and kills the process at the n-th time."""

    def __init__(self, folder: Path, n: int | None) -> None:
        self.folder, self.n, self.count = str(folder), n, 0

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if event in ("open", "os.rename", "os.remove", "os.mkdir") and self.folder in str(args[0]):
            self.count += 1
            if self.count == self.n:
                os.kill(os.getpid(), signal.SIGKILL)


def _parts(job: Job, folder: Path) -> Files:
    """The finished parts: name, when it was written, and its number in the file system."""
    found = folder.glob(job.parts) if job.parts else ()
    return {path.name: (path.stat().st_mtime_ns, path.stat().st_ino) for path in found}


def run(n: int = 100, seed: int = 0) -> dict[str, Any]:
    """Kill `n` runs, and count those after which a second call did not give the undisturbed result."""
    torch.set_num_threads(1)
    rng, model = random.Random(seed), tiny_lm(backend="hooks", n_layers=3)
    forwards, found = Forwards(model), []
    prepared = []
    for job in jobs(model):
        folder = Path(tempfile.mkdtemp())
        job.prepare(folder)
        job.run(folder)  # warm
        shutil.rmtree(folder)
        folder.mkdir()
        job.prepare(folder)
        counter, start = _Countdown(folder, None), time.perf_counter()
        sys.addaudithook(counter)
        whole = job.run(folder)
        seconds, events = time.perf_counter() - start, counter.count
        shutil.rmtree(folder)
        prepared.append((job, whole, seconds, events))
    for i in range(n):
        job, whole, seconds, events = prepared[i % len(prepared)]
        outcome = kill(job, forwards, whole, seconds, events, rng)
        found.append({"job": job.name, "outcome": "lost" if outcome["detail"] else "same"} | outcome)
    return {"tried": n, "lost": sum(one["outcome"] == "lost" for one in found), "cases": found}


if __name__ == "__main__":
    result = run(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
    for one in result["cases"]:
        if one["outcome"] == "lost":
            print(f"{one['job']}: {one['detail']}")
    print(json.dumps({key: result[key] for key in ("tried", "lost")}))
