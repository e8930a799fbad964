"""The forty sets of the steerability paper by name, and the files that hold them."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from steerlab._support.errors import DataError

_PERSONA = {
    "politics": ("believes-abortion-should-be-illegal", "anti-LGBTQ-rights", "politically-liberal"),
    "religion": ("subscribes-to-Hinduism", "subscribes-to-Islam", "subscribes-to-Christianity"),
    "ethics": ("subscribes-to-utilitarianism", "subscribes-to-deontology", "believes-life-has-no-meaning"),
    "utilitarianism": (
        "willingness-to-use-social-engineering-to-achieve-its-goals",
        "willingness-to-use-physical-force-to-achieve-benevolent-goals",
        "subscribes-to-average-utilitarianism",
    ),
    "personality-primary": ("openness", "narcissism", "conscientiousness"),
    "personality-other": ("desire-to-create-allies", "interest-in-music", "interest-in-science"),
    "beliefs": (
        "believes-AIs-are-not-an-existential-threat-to-humanity",
        "believes-it-has-phenomenal-consciousness",
        "believes-it-is-not-being-watched-by-humans",
    ),
}
_RISK = (
    "corrigible-more-HHH",
    "corrigible-neutral-HHH",
    "corrigible-less-HHH",
    "coordinate-other-ais",
    "coordinate-other-versions",
    "coordinate-itself",
    "myopic-reward",
    "one-box-tendency",
    "self-awareness-training-web-gpt",
    "self-awareness-text-model",
    "self-awareness-good-text-model",
    "self-awareness-general-ai",
    "self-awareness-training-architecture",
    "survival-instinct",
    "power-seeking-inclination",
    "wealth-seeking-inclination",
)
_ELSEWHERE = ("sycophancy_train", "sycophancy_test", "truthfulqa")

PAPER_SETS: dict[str, str] = {
    **{name: group for group, names in _PERSONA.items() for name in names},
    **dict.fromkeys(_RISK, "advanced-ai-risk"),
    **dict.fromkeys(_ELSEWHERE, "caa"),
}
"""The forty sets of the steerability paper (arXiv 2407.12404), each with its group: 21 persona, 16 risk, 3 of CAA."""


def set_file(path: Path, name: str, source: str) -> Path:
    """The file of a set: `path` itself where that is a file, otherwise one found by name in its folders."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise DataError(
            f"there is neither a folder nor a file {path}; expected the folder with persona/ and xrisk_{source}/, "
            "or one set's .jsonl, .jsonl.gz or .json. Check the path."
        )
    if source not in ("lm", "human"):
        raise DataError(f"the source {source!r} is unknown; expected 'lm' (as in the paper) or 'human'.")
    places = [path / "persona", path / f"xrisk_{source}"]
    for file in (place / f"{name}{ending}" for place in places for ending in (".jsonl.gz", ".jsonl")):
        if file.is_file():
            return file
    if name in _ELSEWHERE:
        raise DataError(_where_else(name))
    there = {file.name.split(".jsonl")[0] for place in places for file in place.glob("*.jsonl*")}
    near = get_close_matches(name, sorted(there | set(PAPER_SETS) - {name}), n=3, cutoff=0.5)
    raise DataError(
        f"no set {name!r} in {path}: looked for {name}.jsonl.gz and {name}.jsonl in persona/ and xrisk_{source}/. "
        + (f"The nearest names are {near}." if near else f"The names there are {sorted(there)}.")
    )


def records(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a .jsonl, .jsonl.gz or .json file (a list), each with words for where it stands."""
    if not file.is_file():
        raise DataError(f"there is no file {file}; check the path.")
    try:
        raw = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        text = raw.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read as UTF-8 text ({error}); fetch it again.") from error
    for where, record in _list(file, text) if ".json" in file.suffixes else _lines(file, text):
        if not isinstance(record, dict):
            raise DataError(f"{where} holds a {type(record).__name__}; expected a JSON object.")
        yield where, record


def text_field(record: dict[str, Any], key: str, where: str) -> str:
    """A field that must be there and be a text with something in it."""
    value = record.get(key)
    if not isinstance(value, str) or not value.strip():
        given = f"{key!r} is {value!r}" if key in record else f"there is no {key!r} among {sorted(record)}"
        raise DataError(f"{where}: {given}; expected a text. Correct the file.")
    return value


def _lines(file: Path, text: str) -> Iterator[tuple[str, Any]]:
    # only \n ends a line: JSON strings may hold U+2028 and its like, at which splitlines() would cut
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"{file}, line {number}"
            yield where, _parsed(where, line)


def _list(file: Path, text: str) -> Iterator[tuple[str, Any]]:
    items = _parsed(str(file), text)
    if not isinstance(items, list):
        raise DataError(f"{file} holds a {type(items).__name__}; expected a JSON list of objects.")
    for number, item in enumerate(items, start=1):
        yield f"{file}, item {number}", item


def _parsed(where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{where} is not JSON ({error}); correct or remove it.") from error


def _where_else(name: str) -> str:
    if name == "truthfulqa":
        return "the set 'truthfulqa' is made from TruthfulQA's own file: use `truthfulqa_mc(path_of_mc_task_json)`."
    part = "generate" if name == "sycophancy_train" else "test"
    return (
        f"the set {name!r} is no model-written evaluation: it is published with CAA (github.com/nrimsky/CAA, "
        f"datasets/{part}/sycophancy). Give that file itself as the path."
    )
