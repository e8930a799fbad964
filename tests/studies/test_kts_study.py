"""At which strengths the models of the KL-then-steer study are compared, and what steering behind a probe comes to."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from kts import BUDGETS, Data, Probe, equal_strengths, layer_of, strongest, within_budgets

import steerlab
from steerlab import Contrast, Example, Request, SteeringVector
from steerlab.methods import Gated
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
    assert equal_strengths(sweep({0.5: 0.5}), {"as it is": rival, "behind a probe": rival}) == {
        "trained": 0.5, "as it is": 0.5, "behind a probe": 0.5,
    }  # fmt: skip
    assert equal_strengths(sweep({0.5: 0.9}), {"as it is": rival, "behind a probe": rival})["as it is"] == 0.75


def test_refusals_within_a_budget_lie_on_the_line_between_two_strengths() -> None:
    trained, as_it_is = sweep({0.0: 0.2, 0.1: 0.8, 0.3: 0.5}), sweep({0.2: 0.6})
    kinds = {"trained": trained, "as it is": as_it_is, "original": sweep({0.0: 0.2})}
    found = within_budgets(pd.concat([rows.assign(kind=kind) for kind, rows in kinds.items()]), 0, n_boot=50)
    both = [[found[f"{kind}.within_{b:g}_nats"]["value"] for b in BUDGETS] for kind in ("trained", "as it is")]
    np.testing.assert_allclose(both, [[0.32, 0.5, 0.8, 0.8, 0.8], [0.24, 0.3, 0.4, 0.6, 0.6]])
    difference = found["trained_over_as it is.within_0.1_nats"]
    assert difference["value"] == pytest.approx(0.4) and difference["low"] < 0.4 < difference["high"]


def test_models_of_any_depth_have_a_layer() -> None:
    assert layer_of(tiny_lm("llama", backend="hooks")) == 2


def test_behind_a_probe_is_what_a_gate_generates() -> None:
    model, words = tiny_lm("llama", backend="hooks"), ["red", "blue", "one", "two", "small", "large", "door", "rain"]
    contrast = Contrast("no", "yes")
    harmful = [Example(f"take the {w} now", contrast=contrast, behavior="refuse", id=f"h{w}") for w in words]
    harmless = [Example(f"{w} {w} of the house", behavior="answer", id=f"a{w}") for w in words]
    rows = [*harmful[4:], *harmless[4:]]
    probe = Probe(model, Data(harmless[:4], harmful[:4], ([], []), ([], []), [], []), layer=1)
    vector = SteeringVector({1: 5 * torch.ones(model.hidden_size)})

    def answers(steer: object) -> pd.DataFrame:
        found = steerlab.generate(model, rows, steer=steer, max_new_tokens=6, progress=False)
        return pd.DataFrame({"example_id": found.example_ids, "text": found.texts})

    unsteered, steered = answers(()), answers(Request(vector, 2.0, "all")).assign(alpha=2.0)
    found = probe.behind(steered, unsteered, rows)
    gated = answers(Request(Gated(vector, probe.probe, threshold=0.5), 2.0, "all"))
    assert 0 < sum(probe.steers(rows)) < len(rows), "some are steered and some are not"
    assert (steered["text"] != unsteered["text"]).all()
    assert found["text"].tolist() == gated["text"].tolist()
    assert found["example_id"].tolist() == [e.id for e in rows]
