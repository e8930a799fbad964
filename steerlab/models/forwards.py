"""What a forward is given and gives: its columns, its tokens, the state among its outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from steerlab.errors import SteeringError
from steerlab.models.versions import cache_size, given_cache


def is_compiled(module: nn.Module) -> bool:
    """Whether a module, or the forward of this object, was compiled: hooks in it may be skipped."""
    forward = vars(module).get("forward")
    is_disabled = hasattr(forward, "_torchdynamo_disable")  # `torch.compiler.disable` leaves the same mark
    return bool(module._compiled_call_impl) or (hasattr(forward, "_torchdynamo_orig_callable") and not is_disabled)


def last_column(kwargs: Mapping[str, Any], seen: int = 0) -> int:
    """The absolute column after the last one of a forward, from the keyword arguments of the model's root.

    The attention mask covers everything so far. `generate` omits it where no row is padded; then the cache tells how
    many columns came before.

    Args:
        kwargs: of the forward.
        seen: the result for the forward before this one, in the same run; 0 for the first.

    Raises:
        SteeringError: the columns can't be told: there are neither token ids nor embeddings, or neither mask nor cache
            says how many columns came before.
    """
    mask, cache = kwargs.get("attention_mask"), given_cache(kwargs)
    # as wide as the cache has room, a mask says nothing: Bloom fills it up
    if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[-1] != cache_size(cache):
        return mask.shape[-1]
    given = given_tokens(kwargs)
    counted = 0 if cache is None else cached_columns(cache)
    if counted is None and given.shape[1] == 1:
        counted = seen  # a step after the one before it
    end = int(given.shape[1]) + (counted or 0)
    if end <= seen or (cache is None and not seen and end == 1):
        what = "neither an attention mask nor a cache" if cache is None else "a cache that does not count its columns"
        raise SteeringError(
            f"a forward of {given.shape[1]} tokens has {what}: which columns these are is unknown. "
            "Give use_cache=False, so that every step runs whole rows"
        )
    return end


def cached_columns(cache: Any) -> int | None:
    """How many columns a cache holds; None where it does not count them, as those of state-space models."""
    try:
        return int(cache.get_seq_length())
    except (AttributeError, ValueError):
        return None


def given_tokens(kwargs: Mapping[str, Any]) -> Tensor:
    """The token ids, or the embeddings, that a forward is given: `(rows, tokens)` or `(rows, tokens, hidden)`.

    Raises:
        SteeringError: there are neither.
    """
    for name in ("input_ids", "inputs_embeds"):
        found = kwargs.get(name)
        if isinstance(found, Tensor):
            return found
    raise SteeringError("a forward with neither token ids nor embeddings: its columns are unknown")


def main_output(output: Any) -> Any:
    """The state among what a module gives: the output itself, or the first of a tuple or list."""
    return output[0] if isinstance(output, tuple | list) else output


def with_main_output(output: Any, h: Tensor) -> Any:
    """What a module gives, with another state; named tuples and lists stay what they are."""
    if hasattr(output, "_replace"):
        return output._replace(**{output._fields[0]: h})
    return type(output)((h, *output[1:])) if isinstance(output, tuple | list) else h


def with_rows(h: Tensor, rows: int) -> Tensor:
    """The states of a forward as `(rows, tokens, hidden)`: some modules flatten rows and tokens."""
    return h if h.ndim == 3 else h.reshape(rows, -1, h.shape[-1])
