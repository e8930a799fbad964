"""Going on with smaller batches after memory ran out."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from steerlab.errors import OutOfMemory, is_out_of_memory

log = logging.getLogger(__name__)
T = TypeVar("T")
R = TypeVar("R")


def halve_on_oom(
    run: Callable[[T], R],
    items: T,
    split: Callable[[T], Sequence[T]] | None = None,
    describe: Callable[[T], str] = lambda items: "a single item does not fit in memory",
    on_split: Callable[[T], None] = lambda items: None,
) -> list[R]:
    """The result of `run(items)`, or, where memory runs out, the results of the parts of `items`, in order.

    Example:
        >>> halve_on_oom(sum, [1, 2, 3])
        [6]

    Args:
        run: computes one result; called again on each part after it ran out of memory.
        items: the batch: a sequence, or anything that `split` divides.
        split: returns smaller parts, or nothing if the batch cannot be divided; by default two halves of a sequence.
        describe: the message of the error for a batch that cannot be divided.
        on_split: called with a batch that did not fit, before its parts are run.

    Raises:
        OutOfMemory: a batch that cannot be divided does not fit; its cause is the original error.
    """
    try:
        return [run(items)]
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error) or isinstance(error, OutOfMemory):
            raise
        parts = (split or _halves)(items)
        if not parts:
            raise OutOfMemory(describe(items)) from error
    gc.collect()  # outside the except clause: the traceback holds the tensors of the failed run
    torch.cuda.empty_cache()
    on_split(items)
    return [found for part in parts for found in halve_on_oom(run, part, split, describe, on_split)]


def _halves(items: Any) -> list[Any]:
    half, rest = len(items) // 2, (len(items) + 1) // 2
    if half == 0:
        return []
    log.warning("out of memory at a batch of %d rows: going on with %d and %d", len(items), half, rest)
    return [items[:half], items[half:]]
