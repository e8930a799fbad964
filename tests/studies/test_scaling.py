"""The cost model of remote engines recovers known costs, and the study reproduces the committed numbers."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from _scaling import TERMS, fit_cost_model, predict, sweep_load
from hypothesis import given
from hypothesis import strategies as st
from running import ROOT, succeed

import steerlab
from steerlab import SteeringVector
from steerlab.models.model import Model

HIDDEN = 576
RUNS = [
    (4, 9000, 0, 10**5), (64, 9000, 0, 10**5), (1, 90000, 0, 10**8), (1, 5000, 3, 10**3), (1, 5000, 23, 10**3),
    (16, 70000, 0, 10**7), (4, 20000, 44, 10**4),
]  # fmt: skip
COSTS = st.tuples(st.floats(1e-3, 1), st.floats(1e-6, 1e-4), st.floats(1e-3, 1), st.floats(1e-9, 1e-7))


def synthetic_runs(costs: tuple[float, ...], a_request: int, a_token: int) -> pd.DataFrame:
    """Runs with exactly these costs; the last two are not used to fit."""
    rows = [
        {
            "name": str(i), "calibrates": i < 5, "engine": "ndif", "requests": requests, "columns": work // 30,
            "work": work, "steps": steps, "vectors": i, "received": down, "returned": down - 100 * requests,
            "sent": a_request * requests + a_token * (work // 30) + 4 * HIDDEN * i,
            "seconds": sum(c * x for c, x in zip(costs, (requests, work, steps, down), strict=True)),
        }
        for i, (requests, work, steps, down) in enumerate(RUNS)
    ]  # fmt: skip
    return pd.DataFrame(rows)


@given(COSTS, st.integers(1000, 10**5), st.integers(8, 100))
def test_fit_recovers_costs_of_synthetic_runs(costs: tuple[float, ...], a_request: int, a_token: int) -> None:
    runs = synthetic_runs(costs, a_request, a_token)
    model = fit_cost_model(runs, HIDDEN)
    assert [model.seconds[name] for name in TERMS] == pytest.approx(costs, rel=1e-3)
    assert model.sent == pytest.approx((a_request, a_token), rel=1e-3) and model.overhead == 100
    predicted = predict(model, runs.assign(seconds=runs["seconds"] * 1.0), HIDDEN)
    assert predicted["ratio_sent"].to_numpy() == pytest.approx(1, abs=2e-3)
    assert not predicted["used_for_fit"].iloc[-2:].any()


def test_uncounted_bytes_are_taken_from_returned_values() -> None:
    runs = synthetic_runs((0.1, 1e-5, 0.1, 1e-8), 1000, 20)
    near = fit_cost_model(runs.assign(received=0, sent=0, vectors=0), HIDDEN)
    assert near.overhead == 0 and near.sent == (0, 0)
    assert near.seconds["down"] == pytest.approx(1e-8, rel=0.2)


def test_sweep_load_matches_its_plan(lm) -> None:
    model: Model = lm("llama", "hooks")
    vectors = {k: SteeringVector({k: torch.ones(model.hidden_size)}) for k in (0, 2)}
    pairs = [e for e in steerlab.data.demo_set() if e.contrast][:4]
    found = sweep_load(model, vectors, pairs, "all", alphas=(-1.0, 0.0, 1.0), batch_size=8)
    assert found.rows == 5 * len(pairs) and found.vectors >= 4
    assert found.work == pytest.approx(found.tokens * model.n_layers, rel=1e-3)


@pytest.mark.nightly
def test_study_reproduces_committed_summary_and_figure(tmp_path: Path) -> None:
    succeed("analyses/scaling.py", "--out", str(tmp_path))
    found = json.loads((tmp_path / "summary.json").read_text())
    kept = json.loads((ROOT / "analyses/results/scaling/summary.json").read_text())
    for engine, seconds in kept["seconds_a_unit"].items():
        assert found["seconds_a_unit"][engine] == pytest.approx(seconds)
    assert found["minutes"] == pytest.approx(kept["minutes"]), "plans of the 70 B workloads match the committed ones"
    succeed("figures/scaling.py", str(tmp_path), "--out", str(tmp_path))
    assert (tmp_path / "scaling.png").stat().st_size > 10_000
