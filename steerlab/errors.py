"""The errors that steerlab raises. Each message says what was given, what was expected and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


class SteerlabError(Exception):
    """Base of all errors that steerlab raises."""


class LoadError(SteerlabError):
    """A model, tokenizer or data set could not be loaded."""


class LayoutError(LoadError):
    """The modules to read or steer were not found in the model."""


class EncodingError(SteerlabError, ValueError):
    """A prompt could not be encoded: it is empty, too long, or has no chat template."""


class PositionError(SteerlabError, ValueError):
    """A position matches no token, or its name is unknown."""


class DataError(SteerlabError, ValueError):
    """The data are empty or contradictory: equal answers, an empty class, repeated ids, missing columns or files.

    Attributes:
        missing: the names of missing images.
    """

    missing: tuple[str, ...] = ()


class ActivationError(SteerlabError, ValueError):
    """Activations are missing, mislabeled or not finite."""


class MismatchError(SteerlabError, ValueError):
    """An artifact belongs to another model, width, number of layers or study."""


class SteeringError(SteerlabError, ValueError):
    """A vector would be applied to no token, or at a site that does not exist."""


class OutOfMemory(SteerlabError, MemoryError):
    """A single row does not fit in memory."""


class StorageError(SteerlabError, OSError):
    """A file could not be written or read: the disk is full, a folder gives no rights, a disk fails."""


class RemoteError(SteerlabError, RuntimeError):
    """A server failed or rejected a request; the message says why and what to do.

    Example:
        >>> try:
        ...     acts = steerlab.capture(model, prompts)
        ... except steerlab.errors.RemoteError as error:
        ...     print(error.kind, error.retryable)

    Attributes:
        kind: "unreachable" (no server answers), "connection" (the connection broke), "busy" (the queue is full, or the
            server is starting), "worker" (the worker died), "key" (the API key was rejected), "version" (client and
            server have different versions), "model" (not deployed), "timeout", "size" (request or memory too large),
            "serialization" (code or values that cannot be sent), "unsupported" (training, gradients) or "execution"
            (an error in the code that ran on the server, with its traceback).
        retryable: whether the same request may succeed later; such requests are repeated before the error is raised.
    """

    def __init__(self, message: str, kind: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.kind, self.retryable = kind, retryable

    def __reduce__(self) -> tuple[object, ...]:
        return RemoteError, (str(self), self.kind), {"retryable": self.retryable}


# outside CUDA, PyTorch raises a bare RuntimeError: Apple's devices and the driver, Linux, Windows
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, on any device or on a server."""
    by_type = type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError)
    too_large = getattr(error, "kind", None) == "size"  # a server's limit: half as many rows fit
    return by_type or too_large or any(message in str(error) for message in _OUT_OF_MEMORY)


def require_columns(frame: pd.DataFrame, columns: Sequence[str], what: str, numbers: Sequence[str] = ()) -> None:
    """Check that a data frame has rows and columns, and finite numbers in those of `numbers`.

    Raises:
        DataError: names the missing columns and those of the frame, or the column that holds something else.
    """
    import numpy as np  # on use: the command line shows its help without it

    if not hasattr(frame, "columns"):
        raise DataError(f"{what} got {type(frame).__name__} {frame!r:.60}: expected a data frame")
    missing = [column for column in columns if column not in frame]
    if missing or frame.empty:
        raise DataError(
            f"{what} needs a non-empty frame with the columns {list(columns)}; "
            f"this one has {len(frame)} rows and lacks {missing} (it has {list(frame.columns)})"
        )
    for column in numbers:
        try:
            finite = np.isfinite(frame[column].to_numpy(float))
        except (TypeError, ValueError) as error:
            raise DataError(f"{what} needs numbers in {column!r}: {error}") from error
        if not finite.all():
            bad = f"{int((~finite).sum())} NaN or infinite of {len(finite)} values"
            raise DataError(f"{what} got {bad} in {column!r}; drop or repair those rows first")
