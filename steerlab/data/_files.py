"""Read the JSON files of data sets; every error names the file and the record."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steerlab._support.checks import check_option as check_option
from steerlab._support.checks import check_type
from steerlab.errors import DataError, LoadError

BUILTIN = Path(__file__).parent / "builtin"


@dataclass(frozen=True)
class Record:
    """One JSON object of a file, with its place in the file for error messages.

    Attributes:
        fields: the object.
        where: file and line (or item) number.
        number: the line (or item), counted from 1.
    """

    fields: dict[str, Any]
    where: str
    number: int

    def __getitem__(self, name: str) -> Any:
        if name not in self.fields:
            raise LoadError(f"{self.where}: no field {name!r}; the fields are {sorted(self.fields)}.")
        return self.fields[name]

    def get(self, name: str) -> Any:
        """The field, or None."""
        return self.fields.get(name)

    def text(self, name: str) -> str:
        """The field, which must be a non-empty string."""
        value = self[name]
        if not isinstance(value, str) or not value.strip():
            raise DataError(f"{self.where}: {name!r} must be a non-empty text, got {value!r}.")
        return value

    def key(self, name: str) -> str:
        """The field, which must be a non-empty string or a whole number, as a part of an id."""
        value = self[name]
        if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
            raise DataError(f"{self.where}: {name!r} must be a text or a whole number, got {value!r}.")
        return str(value)

    def records(self, name: str) -> list[Record]:
        """The field, which must be a list of objects."""
        value = self[name]
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise LoadError(f"{self.where}: {name!r} must be a list of objects, got {value!r}.")
        return [Record(item, f"{self.where}, {name}", number) for number, item in enumerate(value, start=1)]


def read_records(path: str | Path) -> Iterator[Record]:
    """The objects of a JSON-lines file or of one JSON list, gzipped or not; blank lines are skipped.

    Raises:
        LoadError: the file is missing or unreadable, or holds something other than JSON objects.
    """
    text = read_text(path)
    if text.lstrip().startswith("["):
        found = [(number, f"item {number}", item) for number, item in enumerate(_parse(text, str(path)), start=1)]
    else:
        # only \n ends a line: JSON strings may hold U+2028 and its like, at which splitlines() would cut
        lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
        found = [(number, f"line {number}", _parse(line, f"{path}, line {number}")) for number, line in lines]
    for number, place, item in found:
        if not isinstance(item, dict):
            raise LoadError(f"{path}, {place} holds a {type(item).__name__}; expected a JSON object.")
        yield Record(item, f"{path}, {place}", number)


def read_object(path: str | Path) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
        LoadError: the file is missing, unreadable or no JSON object.
    """
    found = _parse(read_text(path), str(path))
    if not isinstance(found, dict):
        raise LoadError(f"{path} holds a {type(found).__name__}; expected a JSON object.")
    return found


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file, gzipped if its name ends in .gz."""
    file = Path(check_type("the path", path, (str, os.PathLike), "the path of a file", LoadError))
    if not file.is_file():
        raise LoadError(f"there is no file {file}. Check the path.")
    try:
        raw = file.read_bytes()
        return (gzip.decompress(raw) if file.suffix == ".gz" else raw).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise LoadError(f"{file} cannot be read as UTF-8 text ({error}); download it again.") from error


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits, and lists thousands deep
        raise LoadError(f"{where} is not JSON ({error}); correct or replace it.") from error
