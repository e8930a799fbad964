"""Hugging Face's options for `generate` as vLLM's sampling parameters, and which of them have no counterpart."""

from __future__ import annotations

from typing import Any

import torch
from transformers import GenerationConfig

from steerlab._support.errors import SteeringError

# what Hugging Face uses where neither the caller nor the model says anything
DEFAULTS = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
LENGTHS = {"max_new_tokens", "min_new_tokens", "num_return_sequences", "do_sample"}
TOKENS = {"eos_token_id", "pad_token_id", "bos_token_id"}
WITHOUT_EFFECT = {"max_length", "use_cache", "cache_implementation", "transformers_version", "_from_model_config"}


def sampling(options: dict[str, Any], config: GenerationConfig) -> tuple[dict[str, Any], int, int]:
    """vLLM's parameters, how often each row is run, and the id to pad with.

    Example:
        >>> sampling({"max_new_tokens": 8, "do_sample": True, "top_k": 0}, GenerationConfig(eos_token_id=2))

    Args:
        options: what `generate` was given; None stands for the model's own value.
        config: the model's generation settings.

    Raises:
        SteeringError: an option that vLLM does not have, or none that ends the rows.
    """
    asked = given(options, config)
    refuse(asked)
    if not asked.get("max_new_tokens"):
        raise SteeringError("vLLM needs to know how long a row may get: give max_new_tokens")
    draws, ends = bool(asked.get("do_sample")), as_list(asked.get("eos_token_id"))
    values = {name: asked.get(name, default) for name, default in DEFAULTS.items()}
    if not draws:
        values |= {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    # the ends are the caller's or the model's, and not those that vLLM would look up for itself
    params = values | {"max_tokens": asked["max_new_tokens"], "stop_token_ids": ends, "ignore_eos": True}
    if ends and asked.get("min_new_tokens"):
        params["min_tokens"] = min(asked["min_new_tokens"], asked["max_new_tokens"])
    copies = asked.get("num_return_sequences", 1)
    if copies > 1 and not draws:
        raise SteeringError(f"num_return_sequences={copies} without do_sample=True would give the same text each time")
    pad = asked.get("pad_token_id", ends[0] if ends else 0)
    return params | {"detokenize": False}, copies, int(pad)


def given(options: dict[str, Any], config: GenerationConfig) -> dict[str, Any]:
    """Everything that is set, by the caller or, where the caller says nothing, by the model."""
    config = options.get("generation_config") or config
    own = {name: value for name, value in config.to_diff_dict().items() if value is not None}
    asked = {name: value for name, value in options.items() if value is not None and name != "generation_config"}
    return own | asked


def refuse(asked: dict[str, Any]) -> None:
    """Refuse what vLLM has no counterpart for, unless it is set to what changes nothing."""
    known = {*DEFAULTS, *LENGTHS, *TOKENS, *WITHOUT_EFFECT}
    usual = GenerationConfig._get_default_generation_params()
    bad = sorted(n for n, v in asked.items() if n not in known and v is not False and v != usual.get(n))
    if bad:
        told = ", ".join(f"{name}={asked[name]!r}" for name in bad)
        raise SteeringError(
            f"vLLM can't generate with {told}: leave it out, or load the model here, without engine= and serve=. "
            f"It takes {', '.join(sorted({*DEFAULTS, *LENGTHS, 'eos_token_id', 'pad_token_id'}))}"
        )


def as_list(ends: Any) -> list[int]:
    """Token ids as a list, from one, several or a tensor."""
    return [] if ends is None else [int(end) for end in torch.as_tensor(ends).flatten().tolist()]


def seeds(n: int) -> list[int]:
    """A seed for each request, from the caller's random state: the same state gives the same texts."""
    return [int(seed) for seed in torch.randint(2**31, (n,)).tolist()]
