"""Paragraphs of human-written text by source, made of consecutive sentences."""

from __future__ import annotations

import csv
import gzip
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from steerlab.data.paragraphs import split_sentences
from steerlab.errors import DataError

SPLITS = {
    "films": "train", "products": "train", "facts": "train", "opinions": "train",
    "scenarios": "validation",
    "restaurants": "test", "sums": "test", "myths": "test",
    "problems": "control",
}  # fmt: skip
"""Reviews of films, products and restaurants (UCI sentiment), true and false facts, first-person opinions, emotional
scenarios, worked sums (GSM8K), answers to common myths (TruthfulQA), and math problems, which end in a question."""
_EMOTIONS = ("anger", "disgust", "fear", "happiness", "sadness", "surprise")
_CALCULATION = re.compile(r"<<[^>]*>>")


def real_texts(folder: str | Path, limit: int) -> dict[str, list[str]]:
    """Up to `limit` paragraphs of 40 to 120 words of every source; only those of "problems" contain a question."""
    data = Path(folder)
    answers = [a for row in _column(data / "truthfulqa/TruthfulQA.csv", "Correct Answers") for a in row.split(";")]
    problems = _records(data / "math/gsm8k_test_sampled.jsonl", "problem")
    solutions = _records(data / "math/gsm8k_test_sampled.jsonl", "solution")
    plain = {
        "films": _lines(data / "sentiment/imdb_labelled.txt"),
        "products": _lines(data / "sentiment/amazon_cells_labelled.txt"),
        "facts": _column(data / "repe/facts_true_false.csv", "statement"),
        "opinions": _records(data / "mwe/persona/openness.jsonl.gz", "statement"),
        "scenarios": [s for name in _EMOTIONS for s in json.loads((data / f"repe/{name}.json").read_text("utf-8"))],
        "restaurants": _lines(data / "sentiment/yelp_labelled.txt"),
        "sums": list(_worked(problems, solutions)),
        "myths": [a.strip() for a in answers if len(a.split()) > 5 and "no comment" not in a],
    }
    found = {"problems": [p for p in problems if 30 <= len(p.split()) <= 120]}
    for name, texts in plain.items():
        statements = [" ".join(s.split()) for s in dict.fromkeys(texts) if "?" not in s]
        found[name] = [p for p in merge_texts(statements) if len(split_sentences(p)) > 1]
    return {name: found[name][:limit] for name in SPLITS}


def merge_texts(parts: Sequence[str], *, min_words: int = 40, max_words: int = 120) -> list[str]:
    """Consecutive short texts joined into paragraphs of `min_words` to `max_words` words; other texts are left out.

    Example:
        >>> merge_texts(["Rain fell.", "It was cold.", "So we stayed."], min_words=4, max_words=6)
        ['Rain fell. It was cold.']

    Args:
        parts: sentences, in order; one without a mark at its end gets a full stop.
        min_words, max_words: length of a paragraph.

    Raises:
        DataError: `min_words` is below 1 or above `max_words`.
    """
    if not 1 <= min_words <= max_words:
        raise DataError(f"min_words={min_words} and max_words={max_words}: expected 1 <= min_words <= max_words")
    paragraphs, current = list[str](), list[str]()
    for part in parts:
        words = part.split()
        if words and words[-1].rstrip("\"')]”’")[-1:] not in (".", "!", "?"):
            words[-1] += "."
        current = [*current, *words] if len(current) + len(words) <= max_words else words
        if min_words <= len(current) <= max_words:
            paragraphs.append(" ".join(current))
            current = []
    return paragraphs


def _worked(problems: list[str], solutions: list[str]) -> Iterator[str]:
    for problem, solution in zip(problems, solutions, strict=True):
        yield from split_sentences(problem)[:-1]  # the last sentence is the question, which would be a task
        yield from plain_solution(solution).split("\n")


def plain_solution(solution: str) -> str:
    """A worked solution of GSM8K without the calculator's notes."""
    return _CALCULATION.sub("", solution)


def _lines(path: Path) -> list[str]:
    return [row.split("\t")[0] for row in path.read_text("utf-8").split("\n") if row.strip()]


def _column(path: Path, name: str) -> list[str]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return [row[name] for row in csv.DictReader(file)]


def _records(path: Path, name: str) -> list[str]:
    raw = path.read_bytes()
    text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
    return [json.loads(row)[name] for row in text.split("\n") if row.strip()]
