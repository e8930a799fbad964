"""Time that a method adds per prompt and per token, compared with no steering."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

import steerlab
from steerlab import Example, Request
from steerlab.models.model import Model

ROUNDS, TOKENS = 5, 24


def time_methods(
    model_of: Callable[[str], Model], examples: Sequence[Example], methods: Mapping[str, Request | None]
) -> pd.DataFrame:
    """Milliseconds per prompt and per token of every method, in rounds that run each method once.

    The time of a prompt is the time of generating one token; the time of a token is that of each following one. The
    order of the methods is rotated by one every round, so that a slow minute does not affect one method alone.
    """
    rows, names = [], list(methods)
    for turn in range(ROUNDS):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            one, many = (_seconds(model_of(name), examples, methods[name], n) for n in (1, 1 + TOKENS))
            rows.append(
                {
                    "round": turn,
                    "method": name,
                    "ms_per_prompt": 1000 * one / len(examples),
                    "ms_per_token": 1000 * (many - one) / (len(examples) * TOKENS),
                }
            )
    return pd.DataFrame(rows)


def added(times: pd.DataFrame, method: str, column: str) -> dict[str, float]:
    """Median and quartiles over rounds of the added milliseconds, compared with no steering."""
    table = times.pivot(index="round", columns="method", values=column)
    more = (table[method] - table["none"]).to_numpy()
    low, value, high = np.percentile(more, [25, 50, 75])
    return {"value": round(float(value), 3), "low": round(float(low), 3), "high": round(float(high), 3), "n": len(more)}


def _seconds(model: Model, examples: Sequence[Example], request: Request | None, tokens: int) -> float:
    start = time.perf_counter()
    # every method steers at the last prompt token or before, so one new token is enough
    steerlab.generate(
        model, examples, steer=() if request is None else request, max_new_tokens=tokens, min_new_tokens=tokens,
        batch_size=len(examples),
    )  # fmt: skip
    return time.perf_counter() - start
