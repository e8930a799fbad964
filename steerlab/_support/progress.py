"""Progress bars, and status messages of an engine beside them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

log = logging.getLogger("steerlab")
_bars: ContextVar[tuple[tqdm, ...]] = ContextVar("bars", default=())  # of this thread and of those that it starts
_listener: ContextVar[Callable[[str], None]] = ContextVar("listener", default=lambda message: None)


class _Bar(tqdm):
    """A bar that appears after a second and leaves nothing behind when it is full; one that was stopped stays.

    tqdm's own would leave a widget in the notebook's file, which can't be shown when the file is opened again.
    """

    _output: Any = None  # where a notebook shows it

    def display(self, *args: Any, check_delay: bool = True, **options: Any) -> Any:
        if not hasattr(self, "container"):  # a terminal
            return super().display(*args, **options)
        if check_delay and self._output is None:
            from IPython.display import display

            self._output, self.displayed = display(self.container, display_id=True), True
        return super().display(*args, check_delay=False, **options)

    def close(self) -> None:
        super().close()
        if self._output is not None and not (self.total and self.n < self.total):
            self._output.update({"text/plain": ""}, raw=True)
            self._output = None


@contextmanager
def brief_bars() -> Iterator[None]:
    """Inside the block, the bars of transformers behave like `bar`: loading a small model shows none.

    Example:
        >>> with brief_bars():
        ...     hf = AutoModelForCausalLM.from_pretrained("Qwen/Qwen3-0.6B")
    """
    from transformers.utils import logging as theirs

    before = theirs.set_tqdm_hook(lambda made, args, given: made(*args, **{"delay": 1, "leave": False, **given}))
    try:
        yield
    finally:
        theirs.set_tqdm_hook(before)


@contextmanager
def bar(total: int | None, desc: str, unit: str, shown: bool) -> Iterator[tqdm]:
    """A progress bar, where the work takes more than a second; the innermost one of a thread shows the messages of
    `set_status` and `log_line`.

    Example:
        >>> with bar(8, "capture", "row", shown=True) as progress:
        ...     progress.update(4)
    """
    with _Bar(total=total, desc=desc, unit=unit, disable=not shown, delay=1, leave=False) as made:
        before = _bars.set((*_bars.get(), made))
        try:
            yield made
        finally:
            _bars.reset(before)


@contextmanager
def interruptible(folder: str | Path | None, done: Callable[[], str]) -> Iterator[None]:
    """Work whose finished parts are kept in a folder: after Ctrl-C, the traceback says how much, and how to go on.

    Example:
        >>> with interruptible("acts/", lambda: "3 of 8 batches"):
        ...     work()
    """
    try:
        yield
    except KeyboardInterrupt as error:
        if folder is not None:
            error.add_note(f"{done()} are kept in {folder}: the same call goes on from there.")
        raise


@contextmanager
def status_listener(listener: Callable[[str], None]) -> Iterator[None]:
    """Call `listener` with every message of this thread."""
    before = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(before)


def set_status(state: str) -> None:
    """Show a state beside the innermost visible bar: a place in a queue, a model that is starting."""
    log.debug("%s", state)
    _listener.get()(state)
    if shown := _visible_bars():
        shown[-1].set_postfix_str(state)


def log_line(line: str) -> None:
    """Print a line above the bars, and log it."""
    log.info("%s", line)
    _listener.get()(line)
    if _visible_bars():
        tqdm.write(line)


def _visible_bars() -> list[tqdm]:
    return [made for made in _bars.get() if not made.disable]
