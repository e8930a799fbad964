"""Which model a result is from: a fingerprint of the weights' values, and the comparison of two origins.

An origin is what `Model.info` returns or contains: "weights" (the fingerprint, None where weights are on a server) and
"model" (the name). The weights decide where both sides know them: names say nothing then. Otherwise the names decide.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from steerlab._support.files import fingerprint
from steerlab.errors import MismatchError

_LEFT_OUT = {"architectures", "dtype", "torch_dtype", "transformers_version", "use_cache"}  # of a configuration
SAMPLES = 64  # of each tensor, where it has as many

Origin = Mapping[str, Any]


def weights_fingerprint(hf: nn.Module) -> str | None:
    """Sixteen hexadecimal digits that tell weights apart: a hash of names, shapes and a sample of all tensors' values.

    Values are hashed as bfloat16, without the dtype: weights in float32 and rounded to bfloat16 are the same model.
    In float16, quantized or trained they are another one. The sample takes milliseconds, so nothing is cached and the
    weights may change; a change in a few values may stay unseen. Adapters of peft count as they are switched.

    Example:
        >>> weights_fingerprint(model.hf) == model.info()["weights"]
        True

    Returns:
        None where weights are not in this process (a skeleton, weights that are offloaded to disk).
    """
    tensors = dict(_tensors(hf))
    if not tensors or any(tensor.is_meta for tensor in tensors.values()):
        return None
    samples = [_sample(tensor) for tensor in tensors.values()]
    values = torch.cat([sample.to(samples[0].device) for sample in samples]).cpu()  # one copy from a device
    shapes = [[name, list(tensor.shape)] for name, tensor in tensors.items()]
    return fingerprint([shapes, hashlib.sha256(values.numpy().tobytes()).hexdigest(), *_adapters(hf)])


def config_fingerprint(config: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits of the settings that decide numbers (rotations, windows, experts), without names, data
    types and versions.
    """

    def kept(value: Any) -> Any:
        if not isinstance(value, Mapping):
            return str(value)
        named = {str(name): kept(one) for name, one in value.items()}
        return {name: named[name] for name in sorted(named) if not (name.startswith("_") or name in _LEFT_OUT)}

    return fingerprint(kept(config))


def _adapters(hf: nn.Module) -> list[list[Any]]:
    """Which of peft's adapters each module uses, and how strongly: all are in the weights, used or not."""
    return [
        [name.removeprefix("_orig_mod."), list(module.active_adapters), bool(module.disable_adapters),
         list(module.merged_adapters), dict(getattr(module, "scaling", {}))]
        for name, module in hf.named_modules() if hasattr(module, "merged_adapters")
    ]  # fmt: skip


def _sample(tensor: Tensor) -> Tensor:
    """Some values of a tensor, as bfloat16 where they are floating-point numbers, in float32."""
    flat = tensor.detach().flatten()
    chosen = flat[:: max(1, flat.numel() // SAMPLES) | 1]  # an odd step does not stay in a few columns of a matrix
    return (chosen.bfloat16() if chosen.is_floating_point() else chosen.dequantize()).float()


def _tensors(hf: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """All parameters and stored buffers by name; tied ones under each name, packed ones (quantized) one by one."""
    for name, value in hf.state_dict().items():
        for i, part in enumerate(value if isinstance(value, tuple) else (value,)):
            if isinstance(part, Tensor):
                yield f"{name.removeprefix('_orig_mod.')}{i or ''}", part  # the prefix is that of a compiled model


def same_model(fitted: Origin, model: Origin) -> bool:
    """Whether two origins are one model, as far as they say."""
    name = "weights" if fitted.get("weights") and model.get("weights") else "model"
    return None in (fitted.get(name), model.get(name)) or fitted[name] == model[name]


def same_origin(fitted: Origin, model: Origin) -> bool:
    """Whether two origins are one model under one chat template, as far as they say."""
    templates = {one["template"] for one in (fitted, model) if one.get("template")}
    return same_model(fitted, model) and len(templates) < 2


def accept_model(fitted: dict[str, Any], model: Origin) -> None:
    """Remember in the origin of a steerer that it may be used on this other model."""
    fitted["accepted_models"] = sorted({*fitted.get("accepted_models", ()), _key(model)})


def is_accepted(fitted: Origin, model: Origin) -> bool:
    """Whether `accept_model` was called with them; weights that have changed since are another model."""
    accepted, name = fitted.get("accepted_models", ()), _key(model).rpartition(", template ")[0]
    if not model.get("template"):  # it was accepted under one, or there is none
        return any((one.rpartition(", template ")[0] or one) == name for one in accepted)
    return _key(model) in accepted or name in accepted  # of earlier versions: without a word on templates


def check_same_model(name: str, fitted: Origin, other: Origin) -> None:
    """Refuse to put together what comes from two models, or from one under two chat templates.

    Raises:
        MismatchError: `name` was fitted on another model than `other`; both are named.
    """
    if same_origin(fitted, other) or is_accepted(fitted, other):
        return
    origins = f"{describe_origin(fitted)}, and what it is used with comes from {describe_origin(other)}"
    template = ", and the same chat template" if same_model(fitted, other) else ""
    accept = "load_steerer(folder, model, force=True) accepts a saved one for another"
    raise MismatchError(f"{name} was fitted on {origins}: use the same model for both{template}. {accept}")


def describe_origin(origin: Origin) -> str:
    """Name and weights for messages: "'smollm2' (weights d28c4c1b0be2355b)"."""
    weights = origin.get("weights")
    return repr(origin.get("model")) + (f" (weights {weights})" if weights else "")


def differences(there: Origin, here: Origin) -> list[str]:
    """Names of the fields in which two identities of a folder differ; of the model as `same_model` compares it."""
    weights = there.get("weights"), here.get("weights")
    ignored = {"weights"} if None in weights else {"model", "revision"} if weights[0] == weights[1] else set()
    names = sorted((there.keys() | here.keys()) - ignored)
    return [name for name in names if fingerprint(there.get(name)) != fingerprint(here.get(name))]


def _key(model: Origin) -> str:
    return f"{model.get('weights') or model.get('model')}, template {model.get('template')}"
