"""`steerlab doctor` names the model of a real nnsight-serve, whatever its modules are."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import KEY
from saved import tiny_folder
from server import Server

pytestmark = pytest.mark.vllm
DoctorOn = Callable[[str, str], tuple[int, str]]
NAME = "NNSIGHT_SERVE_API_KEY"


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAME, KEY)


def test_doctor_names_the_model(doctor_on: DoctorOn, server: Server) -> None:
    status, text = doctor_on("--serve", server.host)
    assert status == 0 and f"ok {server.host} an nnsight-serve answers" in text
    assert re.search(r"ok model \S+/tiny, a model of type llama", text), text


def test_doctor_reports_a_rejected_key_without_showing_it(doctor_on: DoctorOn, server: Server, monkeypatch) -> None:
    monkeypatch.setenv(NAME, "not-to-be-seen")
    status, text = doctor_on("--serve", server.host)
    assert status == 1 and "wrong model the API key was rejected" in text and f"-> Set {NAME}" in text
    assert "not-to-be-seen" not in text


@pytest.fixture
def gpt2(with_vllm: None, tmp_path: Path) -> Iterator[Server]:
    """A server of a model without any module of Llama's."""
    folder = tiny_folder(tmp_path / "tiny-gpt2", "gpt2", hidden_size=256)
    made = Server(folder, tmp_path / "log", KEY, "--dtype", "float32", "--max-model-len", "512")
    try:
        yield made.wait()
    finally:
        made.stop()


@pytest.mark.nightly
def test_doctor_names_a_model_of_another_family(doctor_on: DoctorOn, gpt2: Server) -> None:
    status, text = doctor_on("--serve", gpt2.host)
    assert status == 0 and re.search(r"ok model \S+/tiny-gpt2, a model of type gpt2", text), text
