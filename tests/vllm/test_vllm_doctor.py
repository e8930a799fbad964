"""`steerlab doctor` names the model of a real nnsight-serve, whatever its modules are."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import KEY
from server import Server

from steerlab.cli import main
from steerlab.testing import tiny_lm

pytestmark = pytest.mark.vllm
Shown = Callable[[str, str], tuple[int, str]]
NAME = "NNSIGHT_SERVE_API_KEY"


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shown:
    """`shown(host, key)`: the command's status and, on one line, what it prints of the server."""

    def run(host: str, key: str) -> tuple[int, str]:
        monkeypatch.setenv(NAME, key)
        capsys.readouterr()
        status = main(["doctor", "--serve", host])
        return status, re.sub(r"\s+", " ", capsys.readouterr().out.partition("\nservers\n")[2])

    return run


def test_doctor_names_the_model(shown: Shown, server: Server) -> None:
    status, text = shown(server.host, KEY)
    assert status == 0 and f"ok {server.host} an nnsight-serve answers" in text
    assert re.search(r"ok model \S+/tiny, a model of type llama", text), text


def test_doctor_reports_a_rejected_key_without_showing_it(shown: Shown, server: Server) -> None:
    status, text = shown(server.host, "not-to-be-seen")
    assert status == 1 and "wrong model the API key was rejected" in text and f"-> Set {NAME}" in text
    assert "not-to-be-seen" not in text


@pytest.fixture
def gpt2(with_vllm: None, tmp_path: Path) -> Iterator[Server]:
    """A server of a model without any module of Llama's."""
    model = tiny_lm("gpt2", hidden_size=256)
    model.hf.save_pretrained(tmp_path / "tiny-gpt2")
    model.tokenizer.save_pretrained(tmp_path / "tiny-gpt2")
    made = Server(tmp_path / "tiny-gpt2", tmp_path / "log", KEY, "--dtype", "float32", "--max-model-len", "512")
    try:
        yield made.wait()
    finally:
        made.stop()


def test_doctor_names_a_model_of_another_family(shown: Shown, gpt2: Server) -> None:
    status, text = shown(gpt2.host, KEY)
    assert status == 0 and re.search(r"ok model \S+/tiny-gpt2, a model of type gpt2", text), text
