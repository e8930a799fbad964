"""Verbs that run in the background: with `blocking=False` they return a `Job` at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import copy_context
from functools import partial, wraps
from typing import Any, Generic, ParamSpec, TypeVar

from steerlab._support import progress
from steerlab._support.checks import named_options
from steerlab.errors import SteerlabError
from steerlab.models.model import Model

P = ParamSpec("P")
R = TypeVar("R")


class Job(Generic[R]):
    """A call of a verb that runs on a server while this process goes on; steered as the call was.

    Example:
        >>> job = steerlab.capture(model, prompts, blocking=False)
        >>> job.state
        'queued Added to Queue at position 3.'
        >>> acts = job.result()

    Attributes:
        state: the last message: a place in the queue, a model that is starting, a retry.
        log: all messages, with the lines that the server logs.
    """

    def __init__(self, run: Callable[[], R]) -> None:
        self.state = "started"
        self.log: list[str] = []
        self._future: Future[R] = Future()
        threading.Thread(target=copy_context().run, args=(self._run, run), daemon=True).start()

    def __repr__(self) -> str:
        return f"Job({'done' if self.done() else self.state!r})"

    def done(self) -> bool:
        """Whether the call has ended, with a result or an error."""
        return self._future.done()

    def result(self, timeout: float | None = None) -> R:
        """Wait for the result of the verb.

        Args:
            timeout: seconds to wait; None: until it is there.

        Raises:
            TimeoutError: the call still runs, and goes on. Otherwise the error that the verb raised.
        """
        return self._future.result(timeout)

    def _run(self, run: Callable[[], R]) -> None:
        try:
            with progress.status_listener(self._log):
                self._future.set_result(run())
        except BaseException as error:  # `result` raises it
            self._future.set_exception(error)

    def _log(self, message: str) -> None:
        self.state = message
        self.log.append(message)


def background(verb: Callable[P, R]) -> Callable[P, R]:
    """Add `blocking=` to a verb: with False it returns a `Job` at once, for models that run on a server."""

    verb = named_options(verb)

    @wraps(verb)
    def call(*args: P.args, **kwargs: P.kwargs) -> Any:
        if kwargs.pop("blocking", True):
            return verb(*args, **kwargs)
        given = [getattr(argument, "model", argument) for argument in (*args, *kwargs.values())]  # a run has a model
        model = next((found for found in given if isinstance(found, Model)), None)
        if model is None:
            return verb(*args, **kwargs)  # raises an error about the missing model
        if not model.is_remote:
            raise SteerlabError(
                f"blocking=False is for a model on a server; {model.id} runs in this process, where a second thread "
                "would not make it faster: leave it out"
            )
        return Job(partial(verb, *args, **kwargs))

    return call
