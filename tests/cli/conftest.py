"""A tiny model in a folder, as the model of every command, and a way to run one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_pairs import PAIRS, TRAIN
from saved import tiny_folder

from steerlab.cli import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="session")
def _tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # a talk of random words is long
    return tiny_folder(tmp_path_factory.mktemp("cli") / "tiny", max_position_embeddings=4096)


@pytest.fixture
def work(_tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with files of pairs and the model of all commands, which is the current one."""
    shutil.copytree(_tiny_folder, tmp_path / "tiny")
    for name, rows in {"pairs": PAIRS, "train": TRAIN}.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STEERLAB_MODEL", "tiny")
    return tmp_path


@pytest.fixture
def run(work: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """`run(*arguments)`: the exit status, stdout and stderr of a command."""

    def command(*arguments: str) -> tuple[int, str, str]:
        status = main(list(arguments))
        out, error = capsys.readouterr()
        return status, out, error

    return command


@pytest.fixture
def answer(run: Run) -> Callable[..., Any]:
    """`answer(*arguments)`: what a command prints with `--json`, which is all that it prints on stdout."""

    def command(*arguments: str) -> Any:
        status, out, error = run(*arguments, "--json")
        assert status == 0, error
        (line,) = out.splitlines()
        return json.loads(line)

    return command
