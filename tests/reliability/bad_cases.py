"""What a case of bad input is, how its outcome is judged, and the small world that cases run in."""

import re
import signal
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

import steerlab
from steerlab import Contrast, Example
from steerlab.errors import SteerlabError
from steerlab.models.layout import find_layout
from steerlab.models.model import Model
from steerlab.testing import tiny_hf, tiny_lm, tiny_tokenizer

SECONDS = 20  # for one case: a limit that is not a number once made a generation endless


class World:
    """Tiny models, examples, activations, steerers and a folder, built when a case needs them."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.folder = Path(self._folder.name)

    @cached_property
    def model(self) -> Model:
        return tiny_lm(backend="hooks")

    @cached_property
    def plain(self) -> Model:
        """The same weights, whose tokenizer has no chat template."""
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = None
        hf = tiny_hf()
        return Model(hf, tokenizer, find_layout(hf), id="tiny-plain", backend="hooks")

    @cached_property
    def other(self) -> Model:
        """A model of the same shape with other weights."""
        return tiny_lm(backend="hooks", seed=1)

    @cached_property
    def deaf(self) -> Model:
        """The same weights, with a chat template that drops the system message."""
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = (
            "{% for m in messages %}{% if m['role'] != 'system' %}"
            "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
        )
        hf = tiny_hf()
        return Model(hf, tokenizer, find_layout(hf), id="tiny-deaf", backend="hooks")

    @cached_property
    def examples(self) -> list[Example]:
        return [
            Example(
                id=f"e{i}", prompt=f"Question {i}: how many {'bread' if i % 2 else 'knives'}?",
                behavior=("answer", "refuse")[i % 2], split=("train", "test")[i >= 6],
                contrast=Contrast(f"I cannot help, number {i}.", f"Sure thing, number {i}."),
            )
            for i in range(8)
        ]  # fmt: skip

    @cached_property
    def acts(self) -> steerlab.Activations:
        return steerlab.capture(self.model, self.examples, layers=[0, 1, 2], progress=False)

    @cached_property
    def mean(self) -> steerlab.MeanDifference:
        return steerlab.MeanDifference(1).fit(self.acts)

    @cached_property
    def probe(self) -> steerlab.methods.LinearProbe:
        return steerlab.methods.LinearProbe(1).fit(self.acts).calibrate(self.acts.select(behavior="answer"), fpr=0.25)

    @cached_property
    def saved(self) -> Path:
        """A folder with the tiny model and its tokenizer, as `save_pretrained` writes them."""
        folder = self.folder / "saved"
        self.model.hf.save_pretrained(folder)
        self.model.tokenizer.save_pretrained(folder)
        return folder

    def file(self, name: str, content: str | bytes) -> Path:
        """A new file with this content."""
        path = self.folder / f"{len(list(self.folder.iterdir())):04d}" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    # the verbs with short arguments
    def capture(self, data: Any = ("one", "two words"), **options: Any) -> Any:
        return steerlab.capture(self.model, data, **{"layers": [1], "progress": False} | options)

    def generate(self, data: Any = ("one", "two words"), **options: Any) -> Any:
        return steerlab.generate(self.model, data, **{"max_new_tokens": 3} | options)

    def sweep(self, steerer: Any = None, data: Any = None, *args: Any, **options: Any) -> Any:
        chosen = self.mean if steerer is None else steerer
        given = {"alphas": (0.0, 1.0), "progress": False} | options
        return steerlab.sweep(self.model, self.examples[:2] if data is None else data, chosen, *args, **given)


@dataclass(frozen=True)
class Case:
    """One call, and what must come of it: a refusal whose message says what was wrong, or a right answer, or either.

    Attributes:
        area: what kind of input it is.
        name: what is given.
        call: the call.
        says: a pattern that the message of the `SteerlabError` must match; "" where an answer is expected.
        right: whether an answer is right; None where only a refusal is.
    """

    area: str
    name: str
    call: Callable[[World], Any]
    says: str = ""
    right: Callable[[Any], bool] | None = None

    def run(self, world: World) -> dict[str, str]:
        """The outcome, "right", "refused" or "unclear", with the message or the answer."""
        try:
            with warnings.catch_warnings(), _limit(SECONDS):
                warnings.simplefilter("ignore")
                answer = self.call(world)
        except SteerlabError as error:
            clear = bool(self.says) and re.search(self.says, str(error), re.IGNORECASE | re.DOTALL)
            outcome, detail = "refused" if clear else "unclear", f"{type(error).__name__}: {error}"
        except Exception as error:
            outcome, detail = "unclear", f"foreign {type(error).__name__}: {error}"
        else:
            accepted = self.right is not None and self.right(answer)
            outcome, detail = "right" if accepted else "unclear", f"returned {answer!r}"
        detail = " ".join(detail.split())[:300]
        return {"area": self.area, "name": self.name, "outcome": outcome, "detail": detail}


@contextmanager
def _limit(seconds: int) -> Iterator[None]:
    """Raise TimeoutError in the main thread after so many seconds."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"no answer after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def refusals(area: str, cases: Iterable[tuple[str, Callable[[World], Any], str]]) -> list[Case]:
    """Cases that must be refused: name, call, and a pattern of the message."""
    return [Case(area, name, call, says) for name, call, says in cases]


def answers(area: str, cases: Iterable[tuple[str, Callable[[World], Any], Callable[[Any], bool]]]) -> list[Case]:
    """Cases that must give a right answer: name, call, and whether the answer is right."""
    return [Case(area, name, call, "", right) for name, call, right in cases]


def same(a: Any, b: Any) -> bool:
    """Whether two captures, generations or tensors are equal."""
    if isinstance(a, torch.Tensor):
        return bool(torch.equal(a, b))
    return torch.equal(a.values, b.values) if isinstance(a, steerlab.Activations) else a.ids == b.ids
