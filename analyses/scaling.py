"""Cost of remote models: a cost model fitted to measured runs, checked against others, applied to 70 B parameters.

    python analyses/scaling.py --out results/scaling       # reads the results of the two benchmarks of remote engines
    python figures/scaling.py results/scaling

This script contacts no server. The runs come from `tests/benchmarks/remote.py` and `vllm_engine.py`. Those marked in
the column `calibrates` give the seconds per request, per token in a block, per step of new tokens and per returned
byte. All others are predicted, and so is a sweep of 200 settings, from its plan alone. Workloads on 70 B parameters are
planned with the code that would run them, for a model on the meta device. `summary.json` lists the assumptions about
machines and network.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from _common import ROOT, show_table
from _scaling import (
    NOWHERE,
    CostModel,
    Load,
    Machine,
    costs,
    fit_cost_model,
    llama_70b,
    loads,
    predict,
    sweep_load,
    texts_load,
)

import steerlab
from steerlab import SteeringVector

MEASURED = ROOT / "tests" / "benchmarks" / "results"
HIDDEN = 576  # SmolLM2's
SHOWN = ("remote.max_abs_diff", "remote.capture_ratio", "remote.requests", "vllm.logit_diff", "vllm.rows_ok")
TEXTS = "60 new tokens, 5 strengths, L2S"


def main() -> None:
    """Fit the cost model, predict runs, plan large workloads, write tables."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--out", default="results/scaling")
    arguments.add_argument("--measured", default=str(MEASURED), help="folder of the benchmark results")
    args = arguments.parse_args()
    folder, measured = Path(args.out), Path(args.measured)
    runs = pd.concat([pd.read_csv(measured / name / "runs.csv") for name in ("remote", "vllm")], ignore_index=True)
    groups = {str(name): group for name, group in runs.groupby("engine", sort=False)}
    models = {name: fit_cost_model(group, HIDDEN) for name, group in groups.items()}
    predictions = pd.concat([predict(models[name], group, HIDDEN) for name, group in groups.items()])
    planned = predict_small_sweep(runs, models["ndif"])
    table = plan_llama_70b(models)

    folder.mkdir(parents=True, exist_ok=True)
    predictions.to_csv(folder / "predictions.csv", index=False)
    table.to_csv(folder / "llama_70b.csv", index=False)
    found = summary(models, predictions, planned, table) | benchmark_results(measured)
    (folder / "summary.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    show_table("predicted and measured", predictions.drop(columns=["measured_sent", "predicted_sent"]))
    show_table("70 B parameters", table.drop(columns=["tokens"]))
    print(f"{folder}: predictions.csv, llama_70b.csv, summary.json", file=sys.stderr)


def benchmark_results(measured: Path) -> dict[str, Any]:
    """Summary numbers of the two benchmarks."""
    found: dict[str, Any] = {}
    for name in ("remote", "vllm"):
        found |= json.loads((measured / name / "summary.json").read_text(encoding="utf-8"))
    return {key: found[key] for key in SHOWN}


def predict_small_sweep(runs: pd.DataFrame, model: CostModel) -> dict[str, Any]:
    """Pairs of predicted and measured costs of the benchmark's sweep of 200 settings, predicted from its plan."""
    model_on_server = steerlab.load("smollm2", remote=NOWHERE, check=False)
    vectors = {layer: SteeringVector({layer: torch.ones(HIDDEN)}) for layer in (5, 11, 17, 23)}
    pairs = [example for example in steerlab.data.demo_set() if example.contrast][:3]
    alphas = [a / 10 for a in range(-25, 26) if a]
    load = sweep_load(model_on_server, vectors, pairs, "last+generated", alphas=alphas, batch_size=64)
    seconds = load.requests * model.seconds["requests"] + load.work * model.seconds["work"]
    sent = model.bytes_sent(load.requests, load.tokens, load.vectors, HIDDEN)
    measured = runs[runs["name"] == "sweep of 200 cells"].iloc[0]
    return {
        "requests": [load.requests, int(measured["requests"])], "work": [round(load.work), int(measured["work"])],
        "vectors": [load.vectors, int(measured["vectors"])], "bytes_sent": [round(sent), int(measured["sent"])],
        "seconds": [round(seconds, 2), float(measured["seconds"])],
    }  # fmt: skip


def plan_llama_70b(models: dict[str, CostModel]) -> pd.DataFrame:
    """Costs of four workloads on 70 B parameters with every engine."""
    remote, local, data = llama_70b()
    workloads: dict[str, dict[str, Load]] = {**loads(remote, local, data), TEXTS: texts_load(remote, data, 5, 60, 100)}
    rows = []
    for workload, by_engine in workloads.items():
        for engine in ("local", "ndif", "vllm", "serve"):
            load = by_engine["vllm" if engine == "serve" else engine]
            rows.append(
                {"workload": workload, "engine": engine} | costs(load, engine, remote, Machine(), models.get(engine))
            )
    table = pd.DataFrame(rows)
    return table.round({name: 3 for name in table.columns if table[name].dtype == float})


def summary(
    models: dict[str, CostModel], predictions: pd.DataFrame, planned: dict[str, Any], table: pd.DataFrame
) -> dict[str, Any]:
    """The numbers of `docs/scaling.md`."""
    held_out = predictions[~predictions["used_for_fit"]]
    errors = (held_out["ratio_s"] - 1).abs()
    block = 2 * sum(
        p.numel() for p in steerlab.load("smollm2", remote=NOWHERE, check=False).hf.model.layers[0].parameters()
    )
    return {
        "command": "python analyses/scaling.py",
        "seconds_a_unit": {name: model.seconds for name, model in models.items()},
        "gflops_a_second": {
            name: round(block / model.seconds["work"] / 1e9, 1) if model.seconds["work"] else None
            for name, model in models.items()
        },
        "bytes_a_request_and_token": {name: [round(b, 1) for b in model.sent] for name, model in models.items()},
        "overhead_bytes_down": {name: round(model.overhead) for name, model in models.items()},
        "held_out_runs": len(held_out),
        "held_out_ratio_of_seconds": {
            str(name): [float(group.min()), float(group.max())] for name, group in held_out.groupby("engine")["ratio_s"]
        },
        "held_out_median_error": round(float(errors.median()), 3),
        "sweep_of_200_settings_planned_and_measured": planned,
        "assumed": asdict(Machine()),
        "minutes": {f"{row.workload}: {row.engine}": row.minutes for row in table.itertuples()},
    }  # fmt: skip


if __name__ == "__main__":
    main()
