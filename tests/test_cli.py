"""The shell commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from steerlab.cli import main
from steerlab.testing import tiny_hf, tiny_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    tiny_hf("llama").save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def test_check_names_the_blocks_and_succeeds(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(folder)]) == 0
    assert "model.layers" in capsys.readouterr().out


def test_positions_shows_the_token_a_name_means(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["positions", "Hello", "--model", str(folder), "--position", "last"]) == 0
    shown = capsys.readouterr().out
    assert "1 token" in shown and "header" in shown


def test_an_error_is_one_readable_line_and_a_status(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["positions", "Hello", "--model", str(folder), "--position", "nowhere"]) == 1
    told = capsys.readouterr().err
    assert "steerlab: unknown position 'nowhere'" in told and "Traceback" not in told
