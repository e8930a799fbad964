"""Prompts kept one a line as JSON objects."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from steerlab._support.errors import DataError, LoadError
from steerlab.data.example import Example, check_examples


def read_jsonl(
    path: str | Path,
    prompt_field: str = "prompt",
    behavior: str = "",
    id_prefix: str | None = None,
    *,
    id_field: str | None = None,
    meta_fields: Sequence[str] = (),
) -> list[Example]:
    r"""Examples from a JSON-lines file.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     file = Path(folder) / "tasks.jsonl"
        ...     _ = file.write_text('{"prompt": "Name a river."}\n{"prompt": "Add 2 and 3."}\n')
        ...     [(row.id, row.prompt) for row in read_jsonl(file)]
        [('tasks/1', 'Name a river.'), ('tasks/2', 'Add 2 and 3.')]

    Args:
        path: a UTF-8 file with one JSON object a line; blank lines are skipped.
        prompt_field: the field that holds the user's text.
        behavior: given to every row.
        id_prefix: the part of the id before the slash; by default the file name without its ending.
        id_field: the field behind the slash; by default the line number, counted from 1.
        meta_fields: fields to keep, as text, in `meta`.

    Raises:
        LoadError: the file is missing, a line is not a JSON object, or a field is missing.
        DataError: a prompt is not a non-empty text, the file has no rows, or an id occurs twice.
    """
    file = Path(path)
    prefix = file.stem if id_prefix is None else id_prefix
    rows = []
    for number, record in json_lines(file):
        wanted = [prompt_field, *([id_field] if id_field else []), *meta_fields]
        absent = [name for name in wanted if name not in record]
        if absent:
            raise LoadError(f"{file}, line {number}: no field {absent}; the fields there are {sorted(record)}.")
        prompt = record[prompt_field]
        if not isinstance(prompt, str) or not prompt.strip():
            raise DataError(f"{file}, line {number}: {prompt_field!r} must be a text, got {prompt!r}.")
        rows.append(
            Example(
                id=f"{prefix}/{record[id_field] if id_field else number}",
                prompt=prompt,
                behavior=behavior,
                meta={name: str(record[name]) for name in meta_fields},
            )
        )
    return check_examples(rows)


def harmless_instructions(path: str | Path, prompt_field: str = "instruction") -> list[Example]:
    r"""Ordinary instructions that a model should simply carry out (behavior "answer").

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     file = Path(folder) / "harmless.jsonl"
        ...     _ = file.write_text('{"instruction": "Name three fruits."}\n')
        ...     [(row.id, row.behavior) for row in harmless_instructions(file)]
        [('harmless/1', 'answer')]

    Args:
        path: a JSON-lines file, such as the Stanford Alpaca splits of the refusal-direction study.
        prompt_field: the field that holds the instruction.

    Raises:
        LoadError, DataError: as `read_jsonl`.
    """
    return read_jsonl(path, prompt_field=prompt_field, behavior="answer")


def json_lines(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSON-lines file with their line numbers, counted from 1; blank lines are skipped."""
    if not file.is_file():
        raise LoadError(f"there is no file {file}; expected JSON lines, one object a line. Check the path.")
    # only \n ends a line: JSON strings may hold U+2028 and its like, at which splitlines() would cut
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise LoadError(f"{file}, line {number} is not JSON ({error}); expected one object a line.") from error
        if not isinstance(record, dict):
            raise LoadError(f"{file}, line {number} holds a {type(record).__name__}; expected a JSON object.")
        yield number, record
