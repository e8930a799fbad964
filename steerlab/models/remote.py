"""Loading a model whose weights are not here: a skeleton on the meta device, and an engine that reaches the weights."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from textwrap import shorten
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from steerlab._support.errors import LoadError
from steerlab.models.engine import Engine
from steerlab.models.layout import Layout

if TYPE_CHECKING:
    from steerlab.models.model import Model

NDIF = "https://api.ndif.us"
READS = ("trust_remote_code", "token", "cache_dir", "local_files_only")


def skeleton(place: str, options: dict[str, Any], dtype: Any) -> PreTrainedModel:
    """The model without weights: its modules, configuration and generation settings.

    Example:
        >>> skeleton("HuggingFaceTB/SmolLM2-135M-Instruct", {}, None).device
        device(type='meta')

    Args:
        place: hub id or folder.
        options: for `from_pretrained` of the configuration.
        dtype: what the weights are held in; None: as the configuration says.

    Raises:
        LoadError: no configuration, or none of a text model.
    """
    chosen = {"trust_remote_code": True} if options.get("trust_remote_code") else {}
    if dtype not in (None, "auto"):  # "auto" is what the configuration says
        chosen["dtype"] = dtype
    try:
        config = AutoConfig.from_pretrained(place, **options)
        with torch.device("meta"):
            made = AutoModelForCausalLM.from_config(config, **chosen)
    except (OSError, ValueError, KeyError, ImportError, StrictDataclassError) as error:
        raise LoadError(
            f"no configuration of a text model could be read from {place!r}: {shorten(str(error), 200)}. A model on a "
            "server still needs its configuration and tokenizer here: give a hub id, or a folder with both. Models "
            "that take pictures run in this process alone"
        ) from error
    made.eval().requires_grad_(False)
    try:
        made.generation_config = GenerationConfig.from_pretrained(place, **options)
    except OSError:  # none was published: the configuration's own values hold
        made.generation_config = GenerationConfig.from_model_config(config)
    return made


def host_of(remote: str) -> str:
    """The address that `remote=` means.

    Raises:
        LoadError: neither "ndif" nor an http address.
    """
    if remote == "ndif":
        return address("NDIF_HOST", os.environ.get("NDIF_HOST", NDIF))
    return address("remote", remote, "'ndif' or ")


def address(name: str, given: str, otherwise: str = "") -> str:
    """The address of a server, as it was given.

    Raises:
        LoadError: no http address.
    """
    try:
        parts = urlsplit(given)
        known = parts.scheme in ("http", "https") and bool(parts.hostname)
        known = known and parts.port != -1  # asked for because it raises where it is no number
    except ValueError:
        known = False
    if not known:
        raise LoadError(f"{name}={given!r}: expected {otherwise}the address of a server, 'http://host:port'")
    return given.rstrip("/")


def find_backend(
    remote: str | None, engine: str | None, serve: str | None, tensor_parallel_size: int, retry_timeout: float,
    ship_packages: str | Sequence[str], options: dict[str, Any],
) -> RemoteBackend | None:  # fmt: skip
    """Where `load` is told that the weights are; None: in this process.

    Raises:
        LoadError: more than one place, one that is unknown, or options that would have no effect there.
    """
    ship_packages = (ship_packages,) if isinstance(ship_packages, str) else tuple(ship_packages)
    given = {"remote": remote, "engine": engine, "serve": serve}
    named = [name for name, value in given.items() if value is not None]
    if len(named) > 1:
        raise LoadError(
            f"{' and '.join(f'{n}={given[n]!r}' for n in named)}: a model runs in one place, give one of them"
        )
    if tensor_parallel_size != 1 and engine is None:
        where = "a server splits its models as it was started" if named else "it is for engine='vllm'"
        raise LoadError(f"tensor_parallel_size={tensor_parallel_size} would have no effect: {where}. Leave it out")
    if remote is not None:
        unknown = sorted(set(options) - set(READS))
        if unknown:
            raise LoadError(
                f"{', '.join(unknown)} would have no effect: the server reads its models in its own way. With remote= "
                f"load takes {', '.join(READS)} for the configuration and tokenizer that are read here"
            )
        return Ndif(host_of(remote), retry_timeout, ship_packages, options)
    if engine is not None and engine != "vllm":
        raise LoadError(
            f"engine={engine!r}: expected 'vllm', or backend='nnsight' or 'hooks' for a model in this process"
        )
    if engine is not None or serve is not None:
        serve = None if serve is None else address("serve", serve)
        return Vllm(serve, tensor_parallel_size, options, retry_timeout, ship_packages)
    return None


def check_given(far: RemoteBackend, given: dict[str, Any]) -> None:
    """Refuse what is for a model in this process and would have no effect elsewhere.

    Raises:
        LoadError: names what was given.
    """
    named = [f"{name}={value!r}" for name, value in given.items() if value is not None]
    if named:
        raise LoadError(
            f"{', '.join(named)}: for a model in this process; this one runs elsewhere ({far.kind}), where it would "
            "have no effect. Leave it out, or load the model here"
        )


class RemoteBackend(ABC):
    """A place where the weights are, and how to reach them."""

    @property
    @abstractmethod
    def kind(self) -> str:
        """What results call the engine."""

    @abstractmethod
    def engine(
        self, hf: PreTrainedModel, tokenizer: Any, layout: Layout, place: str, name: str, revision: str | None
    ) -> Engine:
        """The engine that reaches them; the skeleton will say that it is one when it is called."""

    @abstractmethod
    def check(self, model: Model) -> None:
        """Find now, and not in the middle, what is wrong."""


@dataclass(frozen=True)
class Ndif(RemoteBackend):
    """An NDIF server.

    Attributes:
        host: its address.
        retry_timeout: seconds for which requests are repeated.
        ship_packages: packages of the user's own whose source goes along.
        options: for `from_pretrained` of the configuration.
    """

    host: str
    retry_timeout: float
    ship_packages: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """See `RemoteBackend.kind`."""
        return "ndif"

    def engine(
        self, hf: PreTrainedModel, tokenizer: Any, layout: Layout, place: str, name: str, revision: str | None
    ) -> Engine:
        """See `RemoteBackend.engine`."""
        from steerlab.models._nnsight.client import ServerClient, own_key
        from steerlab.models._nnsight.ndif import RemoteEngine, no_forward

        client = ServerClient(self.host, own_key(), self.retry_timeout, name)
        made = RemoteEngine(hf, tokenizer, layout, client, place, revision, self.ship_packages, self.options)
        no_forward(hf)
        return made

    def check(self, model: Model) -> None:
        """Compare versions, then ask for one small forward: its states must be the residual stream."""
        from steerlab.models._nnsight.ndif import RemoteEngine

        assert isinstance(model.engine, RemoteEngine)
        model.engine.client.check_versions()
        size = model.hf.config.get_text_config().vocab_size
        with model.lock:
            model.engine.check(torch.tensor([[t % size for t in (3, 5, 7, 11, 13)]]))


@dataclass(frozen=True)
class Vllm(RemoteBackend):
    """vLLM, on this machine or behind an `nnsight-serve`.

    Attributes:
        serve: the server's address, or None for an engine of our own.
        tensor_parallel_size: GPUs of our own engine.
        options: for vLLM.
        retry_timeout: seconds for which requests to a server are repeated.
        ship_packages: packages of the user's own whose source goes along to a server.
    """

    serve: str | None
    tensor_parallel_size: int
    options: dict[str, Any]
    retry_timeout: float = 300.0
    ship_packages: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """See `RemoteBackend.kind`."""
        return "vllm" if self.serve is None else "nnsight-serve"

    def engine(
        self, hf: PreTrainedModel, tokenizer: Any, layout: Layout, place: str, name: str, revision: str | None
    ) -> Engine:
        """See `RemoteBackend.engine`."""
        from steerlab.models._nnsight.ndif import no_forward
        from steerlab.models._nnsight.vllm import VllmEngine
        from steerlab.models._nnsight.vllm_client import LocalVllm, ServedVllm, options_of
        from steerlab.models._nnsight.vllm_errors import KEY

        options = options_of(self.options, hf.dtype, revision)
        if self.serve is None:
            client: LocalVllm | ServedVllm = LocalVllm(
                place, options | {"tensor_parallel_size": self.tensor_parallel_size}
            )
        else:
            client = ServedVllm(place, self.serve, os.environ.get(KEY), self.retry_timeout, self.ship_packages, options)
        made = VllmEngine(hf, layout, client, place)
        no_forward(hf)
        return made

    def check(self, model: Model) -> None:
        """Compare what model it is, then the last block's states with the logits that vLLM makes of them."""
        from steerlab.models._nnsight.vllm import VllmEngine

        assert isinstance(model.engine, VllmEngine)
        size = model.hf.config.get_text_config().vocab_size
        with model.lock:
            model.engine.check(torch.tensor([[t % size for t in (3, 5, 7, 11, 13)]]))
