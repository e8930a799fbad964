"""`steerlab chat`: a talk with a model, without and with its vectors side by side."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

from steerlab.cli.app import command
from steerlab.cli.inputs import VECTORS, nearest, parse_layers, parse_numbers, parse_positions, read_steerers
from steerlab.cli.job import Job, Result
from steerlab.errors import EncodingError, SteeringError, SteerlabError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from steerlab.cli.talk import Talk

HELP = """\
/alpha 0.8              change the strength; 0 is without
/layer 12               steer another layer: the vector's own there, or its only one
/positions generated    steer other tokens; /positions alone: the method's own
/tokens 80              limit of an answer
/show                   what is steered now
/reset                  forget the talk
/quit                   end (or Ctrl-D); Ctrl-C stops an answer and keeps the talk"""


@command()
def chat(
    job: Job, vectors: Annotated[tuple[str, ...], VECTORS], *,
    alpha: Annotated[float, "strength of the vectors"] = 1.0,
    layer: Annotated[str, "steer this layer instead of the vector's own"] = "",
    positions: Annotated[str, "which tokens are steered; by default each method's own"] = "",
    system: Annotated[str, "a system message"] = "",
    max_new_tokens: Annotated[int, "limit of an answer"] = 200,
) -> Result:  # fmt: skip
    """Talk to a model, without and with vectors side by side; strength, layer and positions change while you talk."""
    from steerlab.cli.tables import console
    from steerlab.cli.talk import Talk

    talk = Talk(job.model, read_steerers(vectors, job.model), alpha, max_new_tokens, system or None)
    for name, value in (("layer", layer), ("positions", positions)):
        if value:
            change(talk, f"/{name} {value}")
    job.begin(f"talk to {job.model.id} without and with {', '.join(talk.steerers)} until /quit")
    screen = console()
    job.say(f"{talk.describe()}\n{HELP}")
    failed = False
    with stoppable(talk):
        while (line := _next_line(screen, job.as_json)) is not None:
            try:
                if line.startswith("/"):
                    job.say(change(talk, line))
                elif line.strip():
                    _answer(talk, line, screen, job.as_json)
            except SteerlabError as error:  # a wrong command or a prompt that is too long does not end the talk
                failed = failed or not sys.stdin.isatty()  # a script reads the exit status
                job.say(f"steerlab: {error}" + ". /reset forgets the talk" * isinstance(error, EncodingError))
            except EOFError:
                break
    return Result(data={"turns": talk.turns}, status=int(failed))


def change(talk: Talk, line: str) -> str:
    """Do what a line that begins with a slash says; returns what to show.

    Raises:
        SteeringError: an unknown command, with the nearest. EOFError: /quit.
    """
    name, *values = line[1:].split() or [""]
    value = " ".join(values)
    known = {one.split()[0][1:] for one in HELP.splitlines()} | {"help"}
    if name not in known:
        raise SteeringError(f"there is no /{name}: {nearest(f'/{name}', [f'/{one}' for one in known])}")
    if name == "quit":
        raise EOFError
    if name == "help":
        return HELP
    if name == "alpha":
        talk.alpha = _only(line, parse_numbers(value, "/alpha"))
    elif name == "layer":
        talk.set_layer(_only(line, parse_layers(value, talk.model.n_layers)))
    elif name == "positions":
        talk.set_positions(_only(line, parse_positions(value)) if value else None)
    elif name == "tokens":
        if not value.isdigit() or int(value) < 1:
            raise SteeringError(f"/tokens {value}: expected a whole number of at least 1")
        talk.max_new_tokens = int(value)
    elif name == "reset":
        talk.reset()
    return talk.describe()


def _only(line: str, found: Sequence[Any]) -> Any:
    if len(found) != 1:
        raise SteeringError(f"{line}: expected one value")
    return found[0]


@contextmanager
def stoppable(talk: Talk) -> Iterator[None]:
    """While an answer is written, Ctrl-C ends it after the next token; else it does what it did before."""

    def stop(number: int, frame: FrameType | None) -> None:
        if not talk.is_answering:
            raise KeyboardInterrupt
        talk.stop()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _next_line(screen: Console, quiet: bool) -> str | None:
    """The next line that the user typed; None at the end."""
    while True:
        try:
            return input("" if quiet or not screen.is_terminal else "\n> ")
        except EOFError:
            return None
        except KeyboardInterrupt:  # at the prompt there is nothing to stop
            screen.print("\n(/quit or Ctrl-D ends the talk)")


def _answer(talk: Talk, line: str, screen: Console, quiet: bool) -> None:
    """Write an answer; in a terminal it grows as it is written."""
    if quiet or not screen.is_terminal:
        texts = talk.answer(line)
        lines = [f"> {line}", *(f"  {title:<20} {' '.join(text.split())}" for title, text in texts.items())]
        if not quiet:
            screen.print("\n".join(lines), soft_wrap=True)
        return
    from rich.live import Live

    live = Live(console=screen, refresh_per_second=12, transient=True, vertical_overflow="crop")
    with _no_echo(), live:
        texts = talk.answer(line, lambda grown: live.update(_end_of(_columns(grown), screen)))
    screen.print(_columns(texts))  # whole, also where it is longer than the window
    if talk.was_stopped:
        screen.print("(stopped; the talk goes on)")


@contextmanager
def _no_echo() -> Iterator[None]:
    """While the terminal is redrawn, it does not show what is typed: ^C would move the lines."""
    if os.name != "posix" or not sys.stdin.isatty():
        yield
        return
    import termios  # not on Windows

    before = termios.tcgetattr(sys.stdin)
    try:
        termios.tcsetattr(sys.stdin, termios.TCSANOW, [*before[:3], before[3] & ~termios.ECHO, *before[4:]])
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSANOW, before)


def _end_of(table: RenderableType, screen: Console) -> RenderableType:
    """The head and the last lines of a table, as many as the window has; more could not be replaced."""
    from rich.segment import Segment, Segments

    head, *lines = screen.render_lines(table, pad=False)
    shown = [head, *lines[-max(1, screen.height - 3) :]]
    return Segments([one for line in shown for one in (*line, Segment.line())])


def _columns(texts: dict[str, str]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, expand=True, padding=(0, 2, 0, 0), header_style="bold")
    for title in texts:
        table.add_column(title, ratio=1, overflow="fold")
    table.add_row(*(Text(text) for text in texts.values()))
    return table
