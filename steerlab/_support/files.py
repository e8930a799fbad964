"""Files that are whole or absent, and refused when they were changed: atomic writes, checksums, and errors that name
the file.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from steerlab.errors import LoadError, MismatchError, SteerlabError, StorageError

GO_ON = "Make room, or choose a folder that can be written to, and run the same again: it continues from what is kept"
KEPT = "what was finished before is kept"
_writing = threading.Lock()  # threads of one process share the name of a temporary file


@contextmanager
def storing(path: Path, kept: str = KEPT) -> Iterator[None]:
    """Turn whatever a disk refuses into a StorageError that names the path, what is kept, and how to go on."""
    try:
        yield
    except StorageError:
        raise
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk as an error of its own
        raise StorageError(f"{path} could not be written ({_reason(error)}): {kept}. {GO_ON}.") from error


@contextmanager
def reading(path: Path, hint: str) -> Iterator[None]:
    """Turn whatever a missing or damaged file causes into a SteerlabError with the path and `hint`, what to do.

    Raises:
        StorageError: the file cannot be read from the disk.
        LoadError: there is no such file, or its contents are of no use.
    """
    try:
        yield
    except SteerlabError as error:
        if str(path) in str(error):
            raise
        raise type(error)(f"{path}: {str(error).rstrip('.')}. {hint}.") from error
    except FileNotFoundError as error:
        raise LoadError(f"there is no file {path}. {hint}.") from error
    except Exception as error:  # a damaged file makes its reader raise anything
        kind = StorageError if isinstance(error, OSError) else LoadError
        raise kind(f"{path} could not be read ({_reason(error)}). {hint}.") from error


def write_atomically(path: Path, write: Callable[[Path], object], kept: str = KEPT) -> None:
    """Let `write` fill a temporary file, then move it to `path`: a reader sees the old file or the complete new one.

    Processes that write the same file at once do not disturb each other: the last one stays. The folder must exist, so
    that one which vanished is noticed.

    Raises:
        StorageError: the disk is full, or the folder is gone or cannot be written to; says what is `kept`.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with storing(path, kept), _writing:
        try:
            write(partial)
            with partial.open("rb+") as file:  # on the disk before it takes the place of the old one
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def write_text(path: Path, text: str, kept: str = KEPT) -> None:
    """Write `text` as UTF-8, atomically."""
    write_atomically(path, lambda partial: partial.write_bytes(text.encode(errors="surrogatepass")), kept)


def write_json(path: Path, value: Any, kept: str = KEPT) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n", kept)


def seal(value: Mapping[str, Any]) -> dict[str, Any]:
    """`value` as JSON gives it back, with a checksum over all of it."""
    plain = json.loads(json.dumps(dict(value), default=str))
    return plain | {"checksum": fingerprint(plain)}


def check_seal(value: Any, schema: int) -> dict[str, Any]:
    """The value that `seal` got, if it is unchanged.

    Raises:
        LoadError: not from `seal`, or of another schema.
        MismatchError: a field was changed.
    """
    if not isinstance(value, dict) or "schema" not in value:
        raise LoadError("not a file that steerlab wrote")
    if value["schema"] != schema:
        raise LoadError(f"written in schema {value['schema']!r}; this steerlab reads schema {schema}")
    fields = {name: field for name, field in value.items() if name != "checksum"}
    if fingerprint(fields) != value.get("checksum"):
        raise MismatchError(f"the fields do not have the checksum {value.get('checksum')!r}: the file was changed")
    return fields


def read_sealed(path: Path, schema: int, hint: str) -> dict[str, Any]:
    """The JSON object that was written with `write_json(path, seal(...))`.

    Raises:
        LoadError, StorageError: it is missing, not JSON, of another schema, or cannot be read.
        MismatchError: a field was changed.
    """
    with reading(path, hint):
        return check_seal(json.loads(path.read_bytes()), schema)


def fingerprint(value: Any) -> str:
    """Sixteen hexadecimal digits: a hash of the JSON form of `value`."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


def cache_folder() -> Path:
    """The folder of files that can be made again: `STEERLAB_CACHE`, or `~/.cache/steerlab`."""
    return Path(os.environ.get("STEERLAB_CACHE") or "~/.cache/steerlab").expanduser()


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
