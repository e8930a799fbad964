"""What a method adds to the time of a prompt and of a token, measured beside no steering."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

import steerlab
from steerlab import Example, Model, Request

ROUNDS, TOKENS = 5, 24


def time_methods(model: Model, examples: Sequence[Example], methods: Mapping[str, Request | None]) -> pd.DataFrame:
    """Milliseconds a prompt and a token, of every method, in rounds in which each is run once.

    A prompt's time is that of generating one token; a token's is what each of the following ones takes. The order
    within a round is turned by one every round, so that a slow minute of the machine does not hit one method alone.
    """
    rows, names = [], list(methods)
    for turn in range(ROUNDS):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            one, many = (_seconds(model, examples, methods[name], n) for n in (1, 1 + TOKENS))
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
    """How much more than no steering, in milliseconds: the median over rounds, and the quartiles."""
    table = times.pivot(index="round", columns="method", values=column)
    more = (table[method] - table["none"]).to_numpy()
    low, value, high = np.percentile(more, [25, 50, 75])
    return {"value": round(float(value), 3), "low": round(float(low), 3), "high": round(float(high), 3), "n": len(more)}


def _seconds(model: Model, examples: Sequence[Example], request: Request | None, tokens: int) -> float:
    begun = time.perf_counter()
    # "last" at the latest feels a vector, so that one new token is enough for every method
    steerlab.generate(
        model, examples, steer=() if request is None else request, max_new_tokens=tokens, min_new_tokens=tokens,
        batch_size=len(examples),
    )  # fmt: skip
    return time.perf_counter() - begun
