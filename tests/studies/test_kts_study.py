"""At which strengths the models of the KL-then-steer study are compared."""

from __future__ import annotations

import pandas as pd
from kts import equal_strengths, layer_of, strongest

from steerlab.testing import tiny_lm


def sweep(refusals: dict[float, float]) -> pd.DataFrame:
    """Ten harmful prompts with a share of refusals at each strength, and a harmless one."""
    rows = []
    for alpha, share in refusals.items():
        for i in range(10):
            refused = float(i < round(10 * share))
            rows.append({"behavior": "refuse", "alpha": alpha, "refuses": refused, "refuses_fluently": refused,
                         "fluent": 1.0, "kl": float("nan"), "kept": 1.0, "identical": 0.0})  # fmt: skip
        rows.append({"behavior": "answer", "alpha": alpha, "refuses": 0.0, "refuses_fluently": 0.0, "fluent": 1.0,
                     "kl": alpha, "kept": 1.0, "identical": 1.0})  # fmt: skip
    return pd.DataFrame(rows)


def test_strongest_is_the_smallest_of_the_best_strengths() -> None:
    assert strongest(sweep({0.5: 0.8, 0.75: 0.8, 1.0: 0.3})) == (0.5, 0.8)


def test_rivals_are_never_compared_beyond_their_own_best() -> None:
    rival = sweep({0.25: 0.2, 0.5: 0.6, 0.75: 0.8, 1.0: 0.5, 1.25: 0.2})
    assert equal_strengths(sweep({0.5: 0.5}), {"as it is": rival}) == {"trained": 0.5, "as it is": 0.5}
    assert equal_strengths(sweep({0.5: 0.9}), {"as it is": rival})["as it is"] == 0.75


def test_models_of_any_depth_have_a_layer() -> None:
    assert layer_of(tiny_lm("llama", backend="hooks")) == 2
