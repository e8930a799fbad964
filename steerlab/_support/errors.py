"""Every error steerlab raises on purpose.

    SteerlabError
    ├── LoadError            a model, tokenizer or data set could not be had
    │   └── LayoutError      the decoder blocks were not found where the hooks should go
    ├── EncodingError        a prompt could not become tokens (too long, no template, empty)
    ├── PositionError        a position name matches no token, or is unknown
    ├── DataError            empty or contradictory data (equal sides, empty class, duplicated ids)
    ├── ActivationError      activations are missing, mislabeled or not finite
    ├── MismatchError        an artifact belongs to another model, width, layer count or study
    ├── SteeringError        a vector would be applied to nothing, or at a place that does not exist
    ├── StorageError         results could not be written
    ├── RemoteError          a server did not do what was asked of it
    └── OutOfMemory          not even one row fits

Each message says what was given, what was expected and what to do.
"""

from __future__ import annotations


class SteerlabError(Exception):
    """Base of all errors raised on purpose by steerlab."""


class LoadError(SteerlabError):
    """A model, tokenizer or data set could not be had."""


class LayoutError(LoadError):
    """The decoder blocks were not found where the hooks should go."""


class EncodingError(SteerlabError, ValueError):
    """A prompt could not be turned into tokens."""


class PositionError(SteerlabError, ValueError):
    """A position matches no token, or its name is unknown."""


class DataError(SteerlabError, ValueError):
    """The data are empty or contradict themselves.

    Attributes:
        missing: the names of all pictures that are not there, where that is what is wrong.
    """

    missing: tuple[str, ...] = ()


class ActivationError(SteerlabError, ValueError):
    """Activations are missing, mislabeled or not finite."""


class MismatchError(SteerlabError, ValueError):
    """An artifact and the thing it is used with do not belong together."""


class SteeringError(SteerlabError, ValueError):
    """A vector would be applied to nothing, or at a place that does not exist."""


class OutOfMemory(SteerlabError, MemoryError):
    """Not even a single row fits in memory."""


class StorageError(SteerlabError, OSError):
    """Results could not be written: the disk is full, or the folder can't be written to."""


class RemoteError(SteerlabError, RuntimeError):
    """A server did not do what was asked of it; the message says what happened and what to do.

    Example:
        >>> try:
        ...     acts = steerlab.capture(model, prompts)
        ... except steerlab.RemoteError as error:
        ...     print(error.kind, error.retryable)

    Attributes:
        kind: "unreachable" (no server there), "lost" (the connection broke), "busy" (the queue is full, or the server
            is coming up), "worker" (the worker died), "key" (refused), "version" (client and server apart), "model"
            (not deployed), "time" (over the time limit), "size" (the result is too large), "travel" (code or values
            that can't be sent), "refused" (what a server can't do: training, gradients), "code" (an error in what
            ran there, with the server's own words).
        retryable: whether the same request may well succeed later: these are retried before they are raised.
    """

    def __init__(self, message: str, kind: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.kind, self.retryable = kind, retryable

    def __reduce__(self) -> tuple[object, ...]:
        return _remote_error, (str(self), self.kind, self.retryable)


def _remote_error(message: str, kind: str, retryable: bool) -> RemoteError:
    return RemoteError(message, kind, retryable=retryable)


# outside CUDA, PyTorch says it with a bare RuntimeError: Apple's devices and the driver, Linux, Windows
_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, on whatever device."""
    named = type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError)
    too_large = getattr(error, "kind", None) == "size"  # a server's result: half as many rows fit
    return named or too_large or any(said in str(error) for said in _NO_MEMORY)
