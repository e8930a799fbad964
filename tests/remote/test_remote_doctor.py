"""`steerlab doctor` against a real NDIF server: what it tells of its versions and models."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from importlib.metadata import version

import pytest
from servers.ndif import Ndif

from steerlab import Model
from steerlab.cli import main
from steerlab.models._nnsight import client

pytestmark = pytest.mark.remote
Shown = Callable[[], tuple[int, str]]


@pytest.fixture
def shown(server: Ndif, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shown:
    """The command's status and, on one line, what it prints of the server."""
    monkeypatch.delenv("NDIF_API_KEY", raising=False)

    def run() -> tuple[int, str]:
        capsys.readouterr()
        status = main(["doctor", "--remote", server.host])
        return status, re.sub(r"\s+", " ", capsys.readouterr().out.partition("\nservers\n")[2])

    return run


def test_the_models_and_equal_versions_are_told(shown: Shown, far: Callable[[str], Model], server: Ndif) -> None:
    far("tiny-llama")  # so that it is deployed
    time.sleep(2.0)  # the server keeps its status for a second
    status, text = shown()
    assert status == 0 and f"ok {server.host} an NDIF server answers" in text
    told = ", ".join(f"{name} {version(name)}" for name in client.COMPARED)
    assert f"ok versions {told} here and there" in text
    assert re.search(r"ok models deployed: .*/tiny-llama", text)


def test_versions_that_are_apart_are_both_named_with_the_command(shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    true = client.version
    monkeypatch.setattr(client, "version", lambda name: "4.1.0" if name == "transformers" else true(name))
    status, text = shown()
    there = true("transformers")
    assert status == 1 and f"wrong versions transformers 4.1.0 here and {there} there" in text
    assert f'-> pip install "transformers=={there}"' in text


def test_a_server_that_does_not_know_the_key_is_told_so(shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NDIF_API_KEY", "not-to-be-seen")
    status, text = shown()
    assert status == 0 and "the server does not know it, or requires no key" in text and "not-to-be-seen" not in text
