"""What far models cost: a cost model fitted to measured runs, held against others, and asked about 70 B parameters.

    python analyses/scaling.py --out results/scaling            # reads what the two benchmarks of far models measured
    python figures/scaling.py results/scaling

Nothing is run on a server here: `tests/benchmarks/remote.py` and `vllm_engine.py` did. Their runs that `calibrates`
marks give the seconds of a request, of a token in a block, of a step of new tokens and of a byte that comes back; all
others, and a sweep of 200 cells of which only its plan is asked, are predicted. The large jobs are planned by the code
that would run them, for a model on the meta device; what is assumed of machines and network is in `summary.json`.
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
from _scaling import NOWHERE, CostModel, Load, Machine, costs, fitted, large, loads, of_sweep, of_texts, predicted

import steerlab
from steerlab import MeanDifference

MEASURED = ROOT / "tests" / "benchmarks" / "results"
HIDDEN = 576  # SmolLM2's
SHOWN = ("remote.max_abs_diff", "remote.capture_ratio", "remote.requests", "vllm.logit_diff", "vllm.rows_ok")
TEXTS = "60 new tokens, 5 strengths, L2S"


def main() -> None:
    """Fit, predict, plan, write."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--out", default="results/scaling")
    arguments.add_argument("--measured", default=str(MEASURED), help="folder of the benchmarks' results")
    args = arguments.parse_args()
    folder, measured = Path(args.out), Path(args.measured)
    runs = pd.concat([pd.read_csv(measured / name / "runs.csv") for name in ("remote", "vllm")], ignore_index=True)
    groups = {str(name): group for name, group in runs.groupby("engine", sort=False)}
    models = {name: fitted(group, HIDDEN) for name, group in groups.items()}
    told = pd.concat([predicted(models[name], group, HIDDEN) for name, group in groups.items()])
    planned = of_the_small_sweep(runs, models["ndif"])
    table = seventy(models)

    folder.mkdir(parents=True, exist_ok=True)
    told.to_csv(folder / "predictions.csv", index=False)
    table.to_csv(folder / "llama_70b.csv", index=False)
    found = summary(models, told, planned, table) | asked_for(measured)
    (folder / "summary.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    show_table("predicted and measured", told.drop(columns=["measured_sent", "predicted_sent"]))
    show_table("70 B parameters", table.drop(columns=["tokens"]))
    print(f"{folder}: predictions.csv, seventy.csv, summary.json", file=sys.stderr)


def asked_for(measured: Path) -> dict[str, Any]:
    """The two benchmarks' own figures, in one place."""
    found: dict[str, Any] = {}
    for name in ("remote", "vllm"):
        found |= json.loads((measured / name / "summary.json").read_text(encoding="utf-8"))
    return {key: found[key] for key in SHOWN}


def of_the_small_sweep(runs: pd.DataFrame, model: CostModel) -> dict[str, Any]:
    """The benchmark's sweep of 200 cells, predicted from its plan alone, beside what was counted and measured."""
    far = steerlab.load("smollm2", remote=NOWHERE, check=False)
    vectors = {layer: MeanDifference.from_tensor(layer, torch.ones(HIDDEN)) for layer in (5, 11, 17, 23)}
    pairs = [example for example in steerlab.data.demo_set() if example.contrast][:3]
    alphas = [a / 10 for a in range(-25, 26) if a]
    load = of_sweep(far, vectors, pairs, "last+generated", alphas=alphas, batch_size=64)
    seconds = load.requests * model.seconds["requests"] + load.work * model.seconds["work"]
    sent = model.up(load.requests, load.tokens, load.vectors, HIDDEN)
    was = runs[runs["name"] == "sweep of 200 cells"].iloc[0]
    return {
        "requests": [load.requests, int(was["requests"])], "work": [round(load.work), int(was["work"])],
        "vectors": [load.vectors, int(was["vectors"])], "bytes_sent": [round(sent), int(was["sent"])],
        "seconds": [round(seconds, 2), float(was["seconds"])],
    }  # fmt: skip


def seventy(models: dict[str, CostModel]) -> pd.DataFrame:
    """Four jobs on 70 B parameters, in the places where they can run."""
    far, near, data = large()
    jobs: dict[str, dict[str, Load]] = {**loads(far, near, data), TEXTS: of_texts(far, data, 5, 60, 100)}
    rows = []
    for job, ways in jobs.items():
        for way in ("here", "ndif", "vllm", "serve"):
            load = ways["vllm" if way == "serve" else way]
            rows.append({"workload": job, "engine": way} | costs(load, way, far, Machine(), models.get(way)))
    table = pd.DataFrame(rows)
    return table.round({name: 3 for name in table.columns if table[name].dtype == float})


def summary(
    models: dict[str, CostModel], told: pd.DataFrame, planned: dict[str, Any], table: pd.DataFrame
) -> dict[str, Any]:
    """The figures of `docs/scaling.md`."""
    held_out = told[~told["used_for_fit"]]
    apart = (held_out["ratio_s"] - 1).abs()
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
        "held_out_median_error": round(float(apart.median()), 3),
        "sweep_of_200_cells_planned_and_measured": planned,
        "assumed": asdict(Machine()),
        "minutes": {f"{row.job}: {row.way}": row.minutes for row in table.itertuples()},
    }  # fmt: skip


if __name__ == "__main__":
    main()
