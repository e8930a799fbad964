"""Study files: the YAML that repeats a command, written with what each option means and read back by `steerlab run`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import yaml

from steerlab._support.files import reading
from steerlab._support.yaml_text import load_yaml
from steerlab.cli.inputs import nearest
from steerlab.errors import DataError, LoadError

if TYPE_CHECKING:
    from steerlab.cli.job import Job


def study_text(job: Job, what: str) -> str:
    """The YAML of a call: one line for each option, with its help as a comment.

    Example:
        >>> print(study_text(job, "fit mean at layer 16 to 60 examples; about 4 seconds"))
        # steerlab fit: Fit a steering vector and save it.
        # fit mean at layer 16 to 60 examples; about 4 seconds
    """
    lines = [f"# steerlab {job.name}: {job.summary}", f"# {what}"]
    lines += [f"# Run it again, in the same folder: steerlab run {job.study_file}", f"command: {job.name}"]
    for one in job.parameters:
        value, text = job.options[str(one.name)], getattr(one, "text", None) or getattr(one, "help", None)
        value = list(value) if isinstance(value, tuple) else value
        lines.append(f"{key_of(one)}: {_scalar(value)}" + (f"  # {text}" if text else ""))
    return "\n".join(lines) + "\n"


def key_of(parameter: click.Parameter) -> str:
    """The name of a parameter in a study file: that of its longest flag."""
    flags = parameter.opts if isinstance(parameter, click.Option) else [str(parameter.name)]
    return max(flags, key=len).lstrip("-").replace("-", "_")


def read_study(path: str | Path, commands: Mapping[str, click.Command]) -> Iterator[list[str]]:
    """The command lines of a study file: of the one command in it, or of a list of them.

    Raises:
        LoadError: no such file, or no YAML. DataError: an unknown command, key or value, with the nearest name.
    """
    with reading(Path(path), "Give a study file that a command wrote"):
        found = load_yaml(Path(path).read_text(encoding="utf-8"))
    for step in found if isinstance(found, list) else [found]:
        if not isinstance(step, dict) or "command" not in step:
            raise LoadError(f"{path} is no study file: it has no line such as `command: sweep`")
        yield _command_line(Path(path), step, commands)


def _command_line(path: Path, step: dict[Any, Any], commands: Mapping[str, click.Command]) -> list[str]:
    """The arguments of one step; values are checked where the command line checks them."""
    name = str(step["command"])
    _check_key(path, "the command", name, list(commands))
    params = {key_of(one): one for one in commands[name].params}
    options, arguments = [], []
    for key, value in step.items():
        if key == "command":
            continue
        _check_key(path, "the key", str(key).replace("-", "_"), list(params))
        parameter = params[str(key).replace("-", "_")]
        texts = [] if value is None else _texts(parameter, value)
        if isinstance(parameter, click.Argument):
            arguments += texts
        else:
            options += texts
    return [name, *options, "--", *arguments]


def _check_key(path: Path, what: str, name: str, known: list[str]) -> None:
    if name not in known:
        raise DataError(f"{path} has {what} {name!r}, which is unknown: {nearest(name, known)}")


def _texts(parameter: click.Parameter, value: Any) -> list[str]:
    """A value as the command line has it."""
    if isinstance(value, Mapping):
        value = [f"{name}={_scalar(one)}" for name, one in value.items()]
    several = parameter.nargs == -1 or getattr(parameter, "multiple", False)
    values = value if isinstance(value, list) else [value]
    texts = [one if isinstance(one, str) else _scalar(one) for one in values]
    if isinstance(parameter, click.Argument):
        return texts
    if getattr(parameter, "is_flag", False):
        return parameter.opts[:1] if value is True else parameter.secondary_opts[:1] if value is False else [str(value)]
    flag = max(parameter.opts, key=len)
    return [f"{flag}={text}" for text in texts] if several else [f"{flag}={','.join(texts)}"]


def _scalar(value: Any) -> str:
    """A value in one line of YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=float("inf"))
    return text.removesuffix("\n").removesuffix("\n...")
