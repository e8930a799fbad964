"""Loading a model that runs on a server or in vLLM: a skeleton without weights here, and an engine for the rest."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from textwrap import shorten
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from steerlab.errors import LoadError, RemoteError
from steerlab.models.engine import Engine
from steerlab.models.layout import Layout

if TYPE_CHECKING:
    from steerlab.models.model import Model

NDIF = "https://api.ndif.us"
CONFIG_OPTIONS = ("trust_remote_code", "token", "cache_dir", "local_files_only")


def skeleton(name: str, options: dict[str, Any], dtype: Any) -> PreTrainedModel:
    """The model without weights: its modules, configuration and generation settings. A forward of it is refused.

    Example:
        >>> skeleton("HuggingFaceTB/SmolLM2-135M-Instruct", {}, None).device
        device(type='meta')

    Args:
        name: hub id or folder.
        options: for `from_pretrained` of the configuration.
        dtype: of the weights; None: that of the configuration.

    Raises:
        LoadError: no configuration, or not that of a text model.
    """
    chosen = {"trust_remote_code": True} if options.get("trust_remote_code") else {}
    if dtype not in (None, "auto"):  # "auto" is the dtype of the configuration
        chosen["dtype"] = dtype
    try:
        config = AutoConfig.from_pretrained(name, **options)
        with torch.device("meta"):
            hf = AutoModelForCausalLM.from_config(config, **chosen)
    except (OSError, ValueError, KeyError, ImportError, StrictDataclassError) as error:
        raise LoadError(
            f"no configuration of a text model could be read from {name!r}: {shorten(str(error), 200)}. A model on a "
            "server still needs its configuration and tokenizer here: give a hub id, or a folder with both. "
            "Image-text models run in this process only"
        ) from error
    hf.eval().requires_grad_(False)
    try:
        hf.generation_config = GenerationConfig.from_pretrained(name, **options)
    except OSError:  # none was published
        hf.generation_config = GenerationConfig.from_model_config(config)
    hf.register_forward_pre_hook(_refuse_forward)
    return hf


def _refuse_forward(*_: Any) -> None:
    raise RemoteError(
        "the weights of this model are on a server: a forward here would give shapes and no numbers. Use capture, "
        "generate, score or sweep, or load the model here for training and gradients",
        "unsupported",
    )


def ndif_host(remote: str) -> str:
    """The address that `remote=` names.

    Raises:
        LoadError: neither "ndif" nor an http address.
    """
    if remote == "ndif":
        return http_address("NDIF_HOST", os.environ.get("NDIF_HOST", NDIF))
    return http_address("remote", remote, "'ndif' or ")


def http_address(option: str, value: str, alternative: str = "") -> str:
    """The address of a server without trailing slashes.

    Raises:
        LoadError: not an http address.
    """
    try:
        parts = urlsplit(value)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != -1  # `port` may raise
    except ValueError:
        valid = False
    if not valid:
        raise LoadError(f"{option}={value!r}: expected {alternative}the address of a server, 'http://host:port'")
    return value.rstrip("/")


def find_backend(
    remote: str | None, options: dict[str, Any], *, engine: str | None, serve: str | None, tensor_parallel_size: int,
    retry_timeout: float, ship_packages: str | Sequence[str],
) -> RemoteBackend | None:  # fmt: skip
    """The backend that the arguments of `load` select; None: the model runs in this process.

    Raises:
        LoadError: more than one backend, an unknown one, or options without effect.
    """
    packages = (ship_packages,) if isinstance(ship_packages, str) else tuple(ship_packages)
    given = {"remote": remote, "engine": engine, "serve": serve}
    named = [f"{name}={value!r}" for name, value in given.items() if value is not None]
    if len(named) > 1:
        raise LoadError(f"{' and '.join(named)}: a model runs in one place, give one of them")
    if tensor_parallel_size != 1 and engine is None:
        why = "the server decides how its models are split" if named else "it is for engine='vllm'"
        raise LoadError(f"tensor_parallel_size={tensor_parallel_size} would have no effect: {why}. Leave it out")
    if remote is not None:
        if unknown := sorted(set(options) - set(CONFIG_OPTIONS)):
            raise LoadError(
                f"{', '.join(unknown)} would have no effect: the server loads its models itself. With remote= load "
                f"takes {', '.join(CONFIG_OPTIONS)} for the configuration and tokenizer that are read here"
            )
        return RemoteBackend("ndif", ndif_host(remote), options, retry_timeout, packages)
    if engine not in (None, "vllm"):
        raise LoadError(
            f"engine={engine!r}: expected 'vllm', or backend='nnsight' or 'hooks' for a model in this process"
        )
    if serve is not None:
        return RemoteBackend("nnsight-serve", http_address("serve", serve), options, retry_timeout, packages)
    parallel = options | {"tensor_parallel_size": tensor_parallel_size}
    return None if engine is None else RemoteBackend("vllm", None, parallel)


def check_arguments(backend: RemoteBackend, given: dict[str, Any]) -> None:
    """Refuse arguments of `load` that have no effect on a remote model.

    Raises:
        LoadError: names them.
    """
    if named := [f"{name}={value!r}" for name, value in given.items() if value is not None]:
        raise LoadError(
            f"{', '.join(named)}: for a model in this process; this one runs in {backend.kind}, where it would have no "
            "effect. Leave it out, or load the model here"
        )


@dataclass(frozen=True)
class RemoteBackend:
    """Where a remote model runs, and how its engine is made.

    Attributes:
        kind: "ndif", "vllm" (on this machine) or "nnsight-serve"; the name of the engine in results.
        host: the server's address; None on this machine.
        options: of `load`, for the configuration or for vLLM.
        retry_timeout: seconds for which a request is repeated after retryable failures.
        ship_packages: the user's own packages whose source is sent along.
    """

    kind: str
    host: str | None
    options: dict[str, Any] = field(default_factory=dict)
    retry_timeout: float = 300.0
    ship_packages: tuple[str, ...] = ()

    def engine(
        self, hf: PreTrainedModel, tokenizer: Any, layout: Layout, name: str, model_id: str, revision: str | None
    ) -> Engine:
        """The engine for a skeleton; `name` is a hub id or a folder, `model_id` the name in results."""
        if self.kind == "ndif":
            from steerlab.models._nnsight.client import ServerClient, ndif_key
            from steerlab.models._nnsight.ndif import NdifEngine

            client = ServerClient(str(self.host), ndif_key(), self.retry_timeout, model_id)
            return NdifEngine(hf, tokenizer, layout, client, name, revision, self.ship_packages, self.options)
        from steerlab.models._nnsight.errors import SERVE_KEY
        from steerlab.models._nnsight.vllm import VllmEngine
        from steerlab.models._nnsight.vllm_client import LocalVllm, ServedVllm, vllm_options

        options, key = vllm_options(self.options, hf.dtype, revision), os.environ.get(SERVE_KEY)
        if self.host is None:
            return VllmEngine(hf, layout, LocalVllm(name, options), name)
        served = ServedVllm(name, self.host, key, self.retry_timeout, self.ship_packages, options)
        return VllmEngine(hf, layout, served, name)

    def check(self, model: Model) -> None:
        """Compare the remote model with its skeleton by one small forward; for NDIF, compare versions first."""
        engine: Any = model.engine
        if self.kind == "ndif":
            engine.client.check_versions()
        size = model.hf.config.get_text_config().vocab_size
        with model.lock:
            engine.check(torch.tensor([[t % size for t in (3, 5, 7, 11, 13)]]))
