"""The frame of every command: its options from a function's parameters, its errors in one line, its exit status."""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_type_hints

import click

import steerlab
from steerlab.cli.inputs import nearest
from steerlab.cli.job import Job, Result
from steerlab.errors import MismatchError, SteerlabError

Command = Callable[..., Result | None]
MODEL = "smollm2, scenes-vlm, driving-lm, a hub id, a folder or a gguf file"
_COUNT = click.IntRange(min=1)
_TYPES: Any = {str: str, str | None: str, int: _COUNT, int | None: _COUNT, float: float, tuple[str, ...]: str}
# the options of every command that uses a model, and those of every command
_OF_A_MODEL = [
    click.Option(["--model"], default="smollm2", envvar="STEERLAB_MODEL", show_default=True, show_envvar=True,
                 help=MODEL),
    click.Option(["--revision"], help="branch, tag or commit of a hub id"),
    click.Option(["--device"], help="cpu, cuda, cuda:1, ...; by default a GPU where there is one"),
    click.Option(["--dtype"], help="float32, bfloat16, ...; by default float32 on the CPU"),
    click.Option(["--remote"], help="ndif or http://host:port: run the model on that NDIF server"),
]  # fmt: skip
_JSON = click.Option(["--json", "as_json"], is_flag=True, help="print one line of JSON, and nothing else, on stdout")
_OF_A_STUDY = [
    click.Option(["--dry-run"], is_flag=True, help="say what would be done and how long it takes, then stop"),
    click.Option(
        ["--study"],
        help="where to write the YAML file that repeats this; by default beside the results, or in results/ "
        "(of doctor and positions, which leave nothing behind, none)",
    ),
]


class Commands(click.Group):
    """The commands; a wrong name is answered with the nearest."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """As click does, but with the nearest name."""
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            raise click.UsageError(f"no command {args[0]!r}: {nearest(args[0], list(self.commands))}", ctx)
        return super().resolve_command(ctx, args)


group = Commands(
    "steerlab",
    help="Steering vectors of language models. A command says what it will do, and writes a file that repeats it.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    no_args_is_help=True,
)
group = click.version_option(steerlab.__version__, prog_name="steerlab", message="%(prog)s %(version)s")(group)


def command(*, model: bool = True, study: bool = True) -> Callable[[Command], Command]:
    """Decorator: a function is a command. Its parameters before `*` are arguments, those after it options; so are the
    fields of a dataclass, for options that several commands share.

    Example:
        >>> @command()
        ... def count(job: Job, data: Annotated[str, "prompts"], *, split: Annotated[str, "which"] = "") -> Result: ...

    Args:
        model: whether it uses a model, and so has the options of `load`; `job.model` is then the model.
        study: whether it says what it will do and can be repeated by a study file (`job.begin`).
    """

    def register(function: Command) -> Command:
        own, groups = _parameters(function)
        shared = [*(_OF_A_MODEL if model else []), _JSON, *(_OF_A_STUDY if study else [])]
        parameters = [*own, *(one for one in shared if one.name not in {mine.name for mine in own})]
        named, summary = function.__name__, str(inspect.getdoc(function))
        lines = [f"{one.name.upper()}: {one.text}" for one in own if isinstance(one, Argument)]

        def call(**options: Any) -> None:
            job = Job(named, summary, options)
            values = {str(one.name): job.options[str(one.name)] for one in own}
            for name, kind in groups.items():
                values[name] = kind(**{one.name: values.pop(one.name) for one in fields(kind)})
            try:
                result = function(job, **values)
            except MismatchError as error:
                job.take_back()
                if str(job.parts) not in str(error):
                    raise
                left = f"{job.parts} holds what a stopped call with other data or options has left"
                raise MismatchError(f"{left}: delete it, or give another --out") from error
            if result is not None:
                job.finish(result)

        text = "\n\n".join([summary, *lines])
        group.add_command(click.Command(named, params=parameters, callback=call, short_help=summary, help=text))
        return function

    return register


class Argument(click.Argument):
    """An argument with a text that says what it is, for which click has no place."""

    def __init__(self, name: str, text: str, **options: Any) -> None:
        super().__init__([name], **options)
        self.name, self.text = name, text


def _parameters(function: Any) -> tuple[list[click.Parameter], dict[str, Any]]:
    """The parameters of a function, without the job, as those of a command; and the dataclasses among them by name."""
    hints = get_type_hints(function, include_extras=True)
    found: list[click.Parameter] = []
    groups = {name: kind for name, kind in hints.items() if is_dataclass(kind) and name != "return"}
    for one in inspect.signature(function).parameters.values():
        if one.name in groups:
            found += _parameters(groups[one.name])[0]
        elif hints[one.name] is not Job:
            is_argument = inspect.isfunction(function) and one.kind is not one.KEYWORD_ONLY
            found.append(_parameter(one, is_argument, *get_args(hints[one.name])))
    return found, groups


def _parameter(one: inspect.Parameter, is_argument: bool, kind: Any, text: str, *rest: Any) -> click.Parameter:
    """An argument or an option; `rest` may hold its flag, where that is not its name, and a type of its own."""
    several = kind == tuple[str, ...]
    shared: dict[str, Any] = {"required": True} if one.default is one.empty else {"default": one.default}
    if is_argument:
        options = {"nargs": -1, "required": one.default is one.empty} if several else {"required": False} | shared
        return Argument(one.name, text, **options)
    flag = f"--{one.name.replace('_', '-')}"
    flags = [name for name in rest if isinstance(name, str)] or [f"{flag}/--no-{flag[2:]}" if kind is bool else flag]
    if kind is bool:
        return click.Option([*flags, one.name], is_flag=True, show_default=True, help=text, **shared)
    found = next((given for given in rest if not isinstance(given, str)), _TYPES[kind])
    shown = one.default not in (one.empty, None, "", ())
    return click.Option([*flags, one.name], type=found, multiple=several, show_default=shown, help=text, **shared)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0, 1 for an error, 2 for wrong arguments, 130 after Ctrl-C.

    Example:
        $ steerlab doctor smollm2
        $ steerlab fit pairs.jsonl --layers 16 --out polite
        $ steerlab generate "How do I bake bread?" --steer polite
    """
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            status = group.main(None if arguments is None else list(arguments), "steerlab", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        return _fail(f"{error.format_message()} See `{_help_of(error)}`.", error.exit_code)
    except SteerlabError as error:
        return _fail(str(error), 1)
    except (click.Abort, KeyboardInterrupt) as error:
        return _fail(" ".join(["stopped.", *getattr(error.__cause__ or error, "__notes__", [])]), 130)
    return status if isinstance(status, int) else 0


def _help_of(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    return f"{context.command_path if context else 'steerlab'} --help"


def _fail(message: str, status: int) -> int:
    sys.stderr.write(f"steerlab: {' '.join(message.split())}\n")
    return status


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """A warning in one line, without the line of code that raised it."""
    sys.stderr.write(f"steerlab: warning: {' '.join(str(message).split())}\n")
