"""Progress bars, and a place for what an engine has to say while one of them waits for it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from tqdm.auto import tqdm

log = logging.getLogger("steerlab")
_bars: ContextVar[tuple[tqdm, ...]] = ContextVar("bars", default=())  # of this thread, and of those that work for it
_listener: ContextVar[Callable[[str], None] | None] = ContextVar("listener", default=None)


@contextmanager
def bar(total: int | None, desc: str, unit: str, shown: bool) -> Iterator[tqdm]:
    """A progress bar, which is also where `tell` and `note` write as long as it is the innermost of its thread.

    Example:
        >>> with bar(8, "capture", "row", shown=True) as progress:
        ...     progress.update(4)
    """
    with tqdm(total=total, desc=desc, unit=unit, disable=not shown) as made:
        before = _bars.set((*_bars.get(), made))
        try:
            yield made
        finally:
            _bars.reset(before)


@contextmanager
def status_listener(listener: Callable[[str], None]) -> Iterator[None]:
    """Whatever this thread tells or notes, the listener hears too."""
    before = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(before)


def tell(state: str) -> None:
    """Say what is being waited for, beside the innermost bar: a place in a queue, a model that is coming up."""
    log.debug("%s", state)
    if (listener := _listener.get()) is not None:
        listener(state)
    shown = [made for made in _bars.get() if not made.disable]
    if shown:
        shown[-1].set_postfix_str(state)


def note(line: str) -> None:
    """Say something that stays: above the innermost bar, and in the log."""
    log.info("%s", line)
    if (listener := _listener.get()) is not None:
        listener(line)
    if any(not made.disable for made in _bars.get()):
        tqdm.write(line)
