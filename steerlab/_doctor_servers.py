"""What servers tell `steerlab doctor`: whether they answer, take the key, have our versions, and which models."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires
from importlib.util import find_spec

import torch
from packaging.requirements import Requirement  # comes with transformers, without which nothing here runs

from steerlab._support.errors import LoadError, RemoteError
from steerlab.models._nnsight.client import ServerClient, compared, own_key, plain
from steerlab.models._nnsight.vllm_errors import KEY, ON_CPU, ON_GPU
from steerlab.testing import tiny_hf, tiny_tokenizer

NDIF_KEY = "NDIF_API_KEY"
# instead of the error's own advice, which is to ask the doctor, or none
_MENDS = {
    "unreachable": "start the server, or check its address and the network",
    "lost": "--remote is for an NDIF server, --serve for an nnsight-serve",
    "code": "install the same nnsight and transformers on both sides",
}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        group: "packages", "devices", "engines" or "servers".
        name: of the thing.
        state: "ok"; "note": worth knowing, not needed by everyone; "missing" or "wrong": to be mended.
        told: what was found.
        mend: what mends it, a command wherever there is one.
    """

    group: str
    name: str
    state: str
    told: str
    mend: str = ""

    @property
    def needs_action(self) -> bool:
        """Whether it has to be mended."""
        return self.state in ("missing", "wrong")


def ndif(host: str) -> list[Finding]:
    """What an NDIF server says of itself; the key goes along and is never shown.

    Example:
        >>> [finding.state for finding in ndif("http://127.0.0.1:9")]
        ['wrong']

    Args:
        host: its address.
    """
    line = ServerClient(host, own_key(), retry_timeout=0.0)
    there = _asked(host, _pong, line)
    asked = {} if there.needs_action else {"key": _key, "versions": _versions, "models": _models}
    return [there, *(_asked(name, ask, line) for name, ask in asked.items())]


def serve(url: str) -> list[Finding]:
    """What an nnsight-serve says of itself; the key in NNSIGHT_SERVE_API_KEY goes along and is never shown.

    Example:
        >>> [finding.state for finding in serve("http://127.0.0.1:9")]
        ['wrong']

    Args:
        url: its address.
    """
    line = ServerClient(url, os.environ.get(KEY), retry_timeout=0.0)
    there = _asked(line.host, _health, line)
    return [there] if there.needs_action else [there, _asked("model", _model, line)]


def declared() -> list[Requirement]:
    """What steerlab says that it needs; nothing where it is not installed but imported from its folder."""
    try:
        return [Requirement(line) for line in requires("steerlab") or ()]
    except PackageNotFoundError:
        return []


def install_vllm() -> str:
    """The command that installs vLLM on this machine."""
    return ON_GPU if torch.cuda.is_available() else ON_CPU


def _asked(name: str, ask: Callable[[ServerClient], Finding], line: ServerClient) -> Finding:
    """The answer to one question; that there is none is a finding too."""
    try:
        return ask(line)
    except ModuleNotFoundError as error:  # that of a package's version is one too
        return Finding("servers", name, "missing", f"can't be asked without {error.name}", f"pip install {error.name}")
    except LoadError as error:  # vLLM here, with which the question would be written
        return Finding("servers", name, "wrong", str(error).partition("\n")[0], install_vllm())
    except RemoteError as error:
        said = str(error).partition("\n")[0].replace(f" at {line.host}", "")
        said = said.replace(line.key, "(the key)") if line.key else said  # a server may repeat what it refuses
        told, _, advice = ("", "", said) if error.kind in ("lost", "code") else said.rpartition(". ")
        return Finding("servers", name, "wrong", told or said, _MENDS.get(error.kind, advice))


def _pong(line: ServerClient) -> Finding:
    line.ask("/ping", 10.0)
    return Finding("servers", line.host, "ok", "an NDIF server answers")


def _key(line: ServerClient) -> Finding:
    if not line.key:
        return Finding("servers", "key", "note", "none: a server may ask for one", f"export {NDIF_KEY}=...")
    try:
        known = line.ask("/whoami", 10.0).get("email")
    except RemoteError:  # older servers can't be asked
        return Finding("servers", "key", "note", "set; the first request shows whether it is taken")
    told = "the server knows it" if known else "the server does not know it, or asks for no key"
    return Finding("servers", "key", "ok" if known else "note", f"set; {told}")


def _versions(line: ServerClient) -> Finding:
    pairs = compared(line.packages())
    apart = [pair for pair in pairs if pair.apart]
    same = ", ".join(f"{pair.name} {pair.here}" for pair in pairs if not pair.apart)
    told = "; ".join([*map(str, apart), *([f"{same} here and there"] if same else [])])
    state = "wrong" if any(pair.serious for pair in apart) else "note" if apart else "ok"
    theirs = {pair.name: plain(pair.there) for pair in apart if pair.there != "none"}
    mend = "pip install " + " ".join(f'"{name}=={number}"' for name, number in theirs.items()) if theirs else ""
    for wanted in declared():  # following the server must not break steerlab
        if wanted.name in theirs and not wanted.specifier.contains(theirs[wanted.name], prereleases=True):
            mend = f"this steerlab takes {wanted.name}{wanted.specifier}: take another server, or another steerlab"
    return Finding("servers", "versions", state, told, mend)


def _models(line: ServerClient) -> Finding:
    names = line.deployed()
    told = f"deployed: {', '.join(names)}" if names else "none is deployed at the moment"
    return Finding("servers", "models", "ok" if names else "note", told)


def _health(line: ServerClient) -> Finding:
    line.ask("/health", 10.0)
    return Finding("servers", line.host, "ok", "an nnsight-serve answers")


def _model(line: ServerClient) -> Finding:
    """Which model is served, which is asked by a request that meets none of its modules."""
    if find_spec("vllm") is None:
        return Finding("servers", "model", "note", "it can only be asked for with vLLM here", install_vllm())
    from steerlab.models._nnsight.vllm import ONE_FORWARD
    from steerlab.models._nnsight.vllm_client import ServedVllm
    from steerlab.models._nnsight.vllm_traces import Row, named

    with tempfile.TemporaryDirectory() as folder:
        shape = tiny_hf("llama", n_layers=1, hidden_size=256).config  # vLLM has no heads below 64 wide
        shape.architectures = ["LlamaForCausalLM"]
        shape.save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
        there = ServedVllm(folder, line.host, line.key, 0.0, (), {"dtype": "float32"})
    for name in list(there.root._child_map):  # the server would look for modules of these names in its own model
        there.root._drop_envoy(name)
    (answer,) = there.ask([Row(0, [1], 0, [], [], named, "", params=ONE_FORWARD)])
    return Finding("servers", "model", "ok", f"{answer['name']}, a model of type {answer['type']}")
