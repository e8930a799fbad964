"""One call of a command: its model, what it says before it starts, the study file that repeats it, and its answer."""

from __future__ import annotations

import csv
import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import steerlab
from steerlab._support.files import fingerprint, reading, storing, write_atomically, write_text
from steerlab._support.yaml_text import load_yaml
from steerlab.cli.study import study_text
from steerlab.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

    from steerlab.data.example import Example
    from steerlab.models.model import Model

_SAMPLE = 8  # inputs, or new tokens, that are run to estimate the time of all


@dataclass(frozen=True)
class Result:
    """What a command found.

    Attributes:
        text: for people, without what `table` shows.
        table: a frame for people, with a bar for each number of the columns `bars`.
        bars: columns of `table`.
        data: for `--json`; frames become lists of records.
        status: the exit status.
    """

    text: str = ""
    table: pd.DataFrame | None = None
    bars: Sequence[str] = ()
    data: dict[str, Any] = field(default_factory=dict)
    status: int = 0


class Job:
    """One call of a command.

    Attributes:
        name, summary: of the command.
        options: what it was called with, by name; an empty `out` is replaced by a folder of its own below `results/`,
            the same one whenever the command is called with the same options.
        as_json: whether the answer is one line of JSON.
        parameters: those of the command that a study file holds.
    """

    def __init__(self, name: str, summary: str, options: dict[str, Any]) -> None:
        self.name, self.summary = name, summary
        self.as_json, self._dry_run = bool(options.pop("as_json")), bool(options.pop("dry_run", False))
        self._study: str | None = options.pop("study", None)
        self.options = options
        self._default = f"results/{name}-{fingerprint(options)[:8]}"
        if options.get("out") == "":
            options["out"] = self._default
        self._begun = time.time()
        self._written: tuple[Path, bytes | None] | None = None
        self._repeated: Path | None = click.get_current_context().obj  # the study file that is run
        self.parameters = [one for one in click.get_current_context().command.params if one.name in options]

    @cached_property
    def model(self) -> Model:
        """The model, loaded at first use."""
        given = {name: self.options[name] for name in ("revision", "device", "dtype", "remote") if self.options[name]}
        self.say(f"loading {self.options['model']}")
        return steerlab.load(self.options["model"], **given)

    def say(self, text: str) -> None:
        """Print a line for people beside the answer, on stderr."""
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

    @property
    def study_file(self) -> Path:
        """The YAML file that repeats this call: beside the results."""
        if self._repeated:
            return self._repeated
        if self._study:
            return Path(self._study)
        if "file" in self.options:
            return Path(f"{self.options['file']}.study.yaml")
        return Path(self.options["out"]) / "study.yaml" if "out" in self.options else Path(f"{self._default}.yaml")

    def begin(self, what: str, seconds: float | None = None, *, only_looks: bool = False) -> None:
        """Say what will be done and how long it takes, and write the study file; with `--dry-run`, stop here.

        Args:
            what: in words, without "will".
            seconds: estimated; None where it can't be known.
            only_looks: it leaves nothing behind, so a study file is written only where `--study` names one.
        """
        folder = Path(self.options.get("out") or self._default)
        begun = self.parts.exists() or any((folder / name).exists() for name in ("stages", "manifest.json"))
        duration = "" if seconds is None else f"; {'at most ' * begun}{about(seconds)}"
        self.say(f"steerlab will {what}{duration}")
        if self._dry_run:
            raise click.exceptions.Exit(0)
        path = self.study_file
        if self._repeated or (only_looks and not self._study):
            return  # a study that is run may have been edited by hand
        if path.exists():
            self._check_same(path)
        with storing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._written = path, path.read_bytes() if path.exists() else None
            write_text(path, study_text(self, f"{what}{duration}"))
        self.say(f"to repeat it or to go on after a stop: steerlab run {path}")

    def _check_same(self, path: Path) -> None:
        """Refuse to replace what is no study file of this command, or a fitted method by one with other options."""
        with reading(path, "Give --out or --study another name"):
            text = path.read_text(encoding="utf-8")
            if not text.startswith(f"# steerlab {self.name}:"):
                raise DataError(f"it is no study file of {self.name}")
            there, here = load_yaml(text), load_yaml(study_text(self, ""))
        same = ("batch_size", "device", "out")  # with which the result is the same
        changed = [name for name in here if name in there and there[name] != here[name] and name not in same]
        if self.name == "fit" and changed and (Path(self.options["out"]) / "manifest.json").exists():
            key = changed[0]
            raise DataError(
                f"{self.options['out']} holds what was fitted with other options ({key}: {there[key]!r} there, "
                f"{here[key]!r} now): give another --out, or delete it"
            )

    def given(self, *names: str) -> list[str]:
        """Those of some options that are not as they are by default, as flags."""
        return [
            max(one.opts, key=len) for one in self.parameters
            if one.name in names and self.options[one.name] not in (one.default, tuple(), "", None)
        ]  # fmt: skip

    @property
    def parts(self) -> Path:
        """A folder beside the result for what only serves to go on after a stop."""
        return Path(f"{self.options.get('out') or self.options.get('file') or self._default}.parts")

    def drop_parts(self) -> None:
        """Delete `parts`: the result is there."""
        shutil.rmtree(self.parts, ignore_errors=True)

    def take_back(self) -> None:
        """Put back the study file that was there before: the folder belongs to it, and not to this call."""
        if self._written is not None:
            path, before = self._written
            path.unlink() if before is None else path.write_bytes(before)

    def finish(self, result: Result) -> None:
        """Print the answer: a table and a text for people, or one line of JSON."""
        if self.as_json:
            seconds = round(time.time() - self._begun, 1)
            answer = {"command": self.name, "seconds": seconds, **{k: _plain(v) for k, v in result.data.items()}}
            sys.stdout.write(json.dumps(answer, ensure_ascii=False, default=str) + "\n")
        else:
            from steerlab.cli.tables import print_result

            print_result(result)
        if result.status:
            raise click.exceptions.Exit(result.status)

    def seconds_to_read(self, examples: Sequence[Example]) -> float | None:
        """The seconds that one forward of each input takes, from a run of some; None for a model on a server."""
        sample = examples[:: max(1, len(examples) // _SAMPLE)][:_SAMPLE]
        seconds = self._timed(lambda: steerlab.capture(self.model, sample, layers=[-1], progress=False))
        return seconds and seconds * len(examples) / len(sample)

    def seconds_to_write(
        self, examples: Sequence[Example], max_new_tokens: int, batch_size: int, times: float = 1
    ) -> float | None:
        """The seconds that whole texts of each input take, so many times; None for a model on a server."""
        sample, steps = examples[:batch_size], min(_SAMPLE, max_new_tokens)
        options: dict[str, Any] = {"max_new_tokens": steps, "batch_size": batch_size, "progress": False}
        seconds = self._timed(lambda: steerlab.generate(self.model, sample, steer=(), **options))
        return seconds and seconds * max_new_tokens / steps * len(examples) / len(sample) * times

    def _timed(self, work: Callable[[], object]) -> float | None:
        if self.model.is_remote:
            return None
        work()  # tries the shortcuts
        begun = time.perf_counter()
        work()
        return time.perf_counter() - begun


def about(seconds: float) -> str:
    """A duration in words.

    Example:
        >>> about(0.4), about(42.0), about(400.0), about(9000.0)
        ('about 1 second', 'about 42 seconds', 'about 7 minutes', 'about 2.5 hours')
    """
    for unit, size in (("hour", 3600), ("minute", 60)):
        if seconds >= 1.5 * size:
            return f"about {seconds / size:.2g} {unit}s"
    number = max(1, round(seconds))
    return f"about {number} second{'s' * (number > 1)}"


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    return json.loads(value.to_json(orient="records")) if hasattr(value, "to_json") else value


def write_csv(frame: pd.DataFrame, path: Path) -> Path:
    """Write a frame to a file, atomically."""
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda partial: frame.to_csv(partial, index=False, quoting=csv.QUOTE_NONNUMERIC))
    return path
