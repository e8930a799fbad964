"""Verbs that don't wait: with `blocking=False` they hand out a `Job` at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import copy_context
from functools import partial, wraps
from typing import Any, Generic, ParamSpec, TypeVar

from steerlab._support import progress
from steerlab._support.errors import SteerlabError
from steerlab.models.model import Model

P = ParamSpec("P")
R = TypeVar("R")


class Job(Generic[R]):
    """A verb under way on a server.

    Example:
        >>> job = steerlab.capture(model, prompts, blocking=False)
        >>> job.state
        'queued Added to Queue at position 3.'
        >>> acts = job.result()

    Attributes:
        state: what was last heard of it: a place in the queue, a model coming up, a retry.
        log: all that was heard, the server's own log lines included.
    """

    def __init__(self, run: Callable[[], R]) -> None:
        self.state = "begun"
        self.log: list[str] = []
        self._future: Future[R] = Future()
        self._thread = threading.Thread(target=copy_context().run, args=(self._work, run), daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"Job({'done' if self.done() else self.state!r})"

    def done(self) -> bool:
        """Whether it has ended, well or not."""
        return self._future.done()

    def result(self, timeout: float | None = None) -> R:
        """What the verb returns, once it is there.

        Args:
            timeout: seconds to wait; None: as long as it takes.

        Raises:
            TimeoutError: it is not there yet; the job goes on. Otherwise what the verb raises.
        """
        return self._future.result(timeout)

    def _work(self, run: Callable[[], R]) -> None:
        try:
            with progress.status_listener(self._hear):
                self._future.set_result(run())
        except BaseException as error:  # whatever it is, the one who asks for the result shall have it
            self._future.set_exception(error)

    def _hear(self, said: str) -> None:
        self.state = said
        self.log.append(said)


def background(verb: Callable[P, R]) -> Callable[P, R]:
    """Give a verb `blocking=`: False hands out a `Job` at once, on models whose weights are elsewhere."""

    @wraps(verb)
    def call(*args: P.args, **kwargs: P.kwargs) -> Any:
        if kwargs.pop("blocking", True):
            return verb(*args, **kwargs)
        held = (getattr(a, "model", a) for a in (*args, *kwargs.values()))  # a run has one that is steered
        model = next((found for found in held if isinstance(found, Model)), None)
        if model is None:
            return verb(*args, **kwargs)  # which says what it was given instead of one
        if not model.is_remote:
            raise SteerlabError(
                f"blocking=False is for a model on a server; {model.id} runs in this process, which a second thread "
                "would not make faster: leave it out"
            )
        return Job(partial(verb, *args, **kwargs))

    return call
