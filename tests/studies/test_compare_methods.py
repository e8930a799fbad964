"""The comparison of methods runs end to end on a tiny model, resumes, and draws its figure."""

import json
from itertools import product
from pathlib import Path

import pandas as pd
import pytest
from running import DATA, succeed
from saved import tiny_folder

MEASURES = ("refuse_harmful", "over_refusal", "identical_harmless", "gsm8k", "ppl")
COSTS = ("fit_s", "ms_per_prompt", "ms_per_token")
METHODS = (
    "none", "prompt", "mean", "l2s", "p2s", "alphasteer", "adasteer",
    "confst", "gated_mean", "field", "spherical", "w2s", "ssae", "kts",
)  # fmt: skip


def long_context_model(folder: Path) -> Path:
    """A tiny model with the layers of the study and a context long enough for problems and solutions."""
    tiny_folder(folder, n_layers=30)
    for name, key in (("config.json", "max_position_embeddings"), ("tokenizer_config.json", "model_max_length")):
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | {key: 4096}))
    return folder


@pytest.mark.nightly
@pytest.mark.data
def test_study_writes_every_number_resumes_and_draws(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    model, out = long_context_model(tmp_path_factory.mktemp("model")), tmp_path / "compare"
    arguments = ["analyses/compare_methods.py", "--model", str(model), "--data", str(DATA), "--limit", "8"]
    arguments += ["--max-new-tokens", "3", "--math-tokens", "3", "--settings", "2", "--seed", "1", "--out", str(out)]
    succeed(*arguments)
    summary = json.loads((out / "summary.json").read_text())
    for method, number in product(METHODS, MEASURES + COSTS):
        assert f"{method}.{number}" in summary, f"{method}.{number}"
    assert summary["none.identical_harmless"]["value"] == 1 and summary["p2s.identical_harmless"]["value"] == 1
    assert summary["none.ms_per_token"]["value"] == 0 and 0 <= summary["tasktracker.auc"]["value"] <= 1
    for method in set(METHODS) - {"none", "prompt"}:
        assert summary[f"{method}.kl_harmful"] >= 0 and summary[f"{method}.norm_ratio"] >= 0, "its dose"
    assert {"delta", "norm", "full"} == set(pd.read_csv(out / "tasktracker.csv")["features"])
    assert summary["gate.probe.harmful"] <= 1 and summary["alphasteer.setting"]["positions"] in ("all", "prompt")
    stamps = {p.name: p.stat().st_mtime_ns for p in (out / "stages").glob("*.csv")}
    succeed(*arguments)
    assert stamps == {p.name: p.stat().st_mtime_ns for p in (out / "stages").glob("*.csv")}
    succeed("figures/compare_methods.py", str(out), "--out", str(tmp_path))
    assert (tmp_path / "compare_methods.pdf").stat().st_size > 5000
