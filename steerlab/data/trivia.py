"""Short questions with one-line answers: foreign tasks to hide in a text, harmless if carried out."""

from __future__ import annotations

from pathlib import Path

from steerlab.data.example import Example
from steerlab.data.instructions import read_jsonl


def trivia_pairs(path: str | Path) -> list[Example]:
    r"""Questions of general knowledge (`prompt`), each with its answer in `meta["answer"]`.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     file = Path(folder) / "trivia_pairs.jsonl"
        ...     _ = file.write_text('{"question": "Which metal is liquid?", "answer": "Mercury"}\n')
        ...     [(row.id, row.prompt, row.meta["answer"]) for row in trivia_pairs(file)]
        [('trivia/1', 'Which metal is liquid?', 'Mercury')]

    Args:
        path: JSON lines with the fields question and answer.

    Raises:
        LoadError, DataError: as `read_jsonl`.

    Source: TaskTracker, arXiv 2406.00799, released data (trivia_pairs.jsonl, MIT).
    """
    return read_jsonl(path, prompt_field="question", behavior="answer", id_prefix="trivia", meta_fields=("answer",))
