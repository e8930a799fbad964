"""What releases and wrappers of transformers call the same thing: the only place that knows."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

# transformers 5.24 renamed the cache of a forward; Mamba and its relatives have names of their own
CACHE_NAMES = ("past_key_values", "cache", "cache_params", "past_buckets_states", "state", "mems")


def unwrapped(hf: Any) -> Any:
    """The model of Hugging Face inside a wrapper of peft or of `torch.compile`, or the model itself.

    Example:
        >>> unwrapped(get_peft_model(hf, LoraConfig())) is hf
        True
    """
    inner = getattr(hf, "_orig_mod", hf)
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


def forward_parameters(hf: nn.Module) -> Mapping[str, inspect.Parameter]:
    """The parameters of a model's forward, by name."""
    return inspect.signature(type(unwrapped(hf)).forward).parameters


def forward_options(hf: nn.Module, **options: Any) -> dict[str, Any]:
    """Those of some keyword arguments that the model's forward takes.

    Example:
        >>> forward_options(hf, use_cache=False)
        {'use_cache': False}
    """
    parameters = forward_parameters(hf)
    takes_any = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
    return {name: value for name, value in options.items() if takes_any or name in parameters}


def cache_name(hf: nn.Module) -> str:
    """What the model's forward calls the cache that it is given."""
    parameters = forward_parameters(hf)
    return next((name for name in CACHE_NAMES if name in parameters), CACHE_NAMES[0])


def given_cache(kwargs: Mapping[str, Any]) -> Any:
    """The cache among the keyword arguments of a forward, or None."""
    return next((kwargs[name] for name in CACHE_NAMES if kwargs.get(name) is not None), None)


def cache_size(cache: Any) -> int | None:
    """How many columns a cache has room for; None where it holds nothing yet, a number below 0 where it grows."""
    size = getattr(cache, "get_max_length", None)
    return size() if callable(size) and getattr(cache, "layers", True) else None
