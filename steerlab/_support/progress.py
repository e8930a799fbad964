"""Progress bars, and a place for what an engine has to say while one of them waits for it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm.auto import tqdm

log = logging.getLogger("steerlab")
_local = threading.local()


def _bars() -> list[tqdm]:
    if not hasattr(_local, "bars"):
        _local.bars = []
    bars: list[tqdm] = _local.bars
    return bars


@contextmanager
def bar(total: int | None, desc: str, unit: str, shown: bool) -> Iterator[tqdm]:
    """A progress bar, which is also where `tell` and `note` write as long as it is the innermost of its thread.

    Example:
        >>> with bar(8, "capture", "row", shown=True) as progress:
        ...     progress.update(4)
    """
    with tqdm(total=total, desc=desc, unit=unit, disable=not shown) as made:
        _bars().append(made)
        try:
            yield made
        finally:
            _bars().remove(made)


@contextmanager
def heard_by(listener: Callable[[str], None]) -> Iterator[None]:
    """Whatever this thread tells or notes, the listener hears too."""
    _local.listener = listener
    try:
        yield
    finally:
        del _local.listener


def tell(state: str) -> None:
    """Say what is being waited for, beside the innermost bar: a place in a queue, a model that is coming up."""
    log.debug("%s", state)
    if hasattr(_local, "listener"):
        _local.listener(state)
    shown = [made for made in _bars() if not made.disable]
    if shown:
        shown[-1].set_postfix_str(state)


def note(line: str) -> None:
    """Say something that stays: above the innermost bar, and in the log."""
    log.info("%s", line)
    if hasattr(_local, "listener"):
        _local.listener(line)
    if any(not made.disable for made in _bars()):
        tqdm.write(line)
