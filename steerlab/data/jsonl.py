"""Prompts from JSON-lines files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from steerlab._support.checks import check_type
from steerlab.data._files import read_records
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
        ...     [(example.id, example.prompt) for example in read_jsonl(file)]
        [('tasks/1', 'Name a river.'), ('tasks/2', 'Add 2 and 3.')]

    Args:
        path: a UTF-8 file with one JSON object per line; blank lines are skipped.
        prompt_field: the field with the user's text.
        behavior: the behavior of every example.
        id_prefix: the part of the id before the slash; by default the file name without its ending.
        id_field: the field after the slash; by default the line number, counted from 1.
        meta_fields: fields to keep, as text, in `meta`.

    Raises:
        LoadError: the file is missing, a line is not a JSON object, or a field is missing.
        DataError: a prompt is not a non-empty text, the file has no rows, or an id occurs twice.
    """
    check_type("meta_fields", meta_fields, (list, tuple), "a list of names")
    records = list(read_records(path))
    prefix = Path(path).stem if id_prefix is None else id_prefix
    return check_examples(
        Example(
            id=f"{prefix}/{record.key(id_field) if id_field else record.number}",
            prompt=record.text(prompt_field),
            behavior=behavior,
            meta={name: str(record[name]) for name in meta_fields},
        )
        for record in records
    )
