"""The studies of layers and of steerability run end to end on a tiny model, and their figures after them."""

import json
from pathlib import Path

import pandas as pd
import pytest
from running import DATA, succeed
from saved import tiny_folder

pytestmark = pytest.mark.nightly


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of six layers."""
    return tiny_folder(tmp_path_factory.mktemp("model"), n_layers=6)


def test_layer_sweep_reports_validation_choice_on_test_examples(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "layers"
    succeed("analyses/layer_sweep.py", "--model", str(folder), "--limit", "4", "--out", str(out), "--guard", "0")
    layer_ranges = json.loads((out / "summary.json").read_text())["layer_ranges"]
    results = pd.read_csv(out / "results.csv")
    assert set(layer_ranges) == {"mean", "l2s", "p2s", "random"} and set(results["split"]) == {"test"}
    for name, layer_range in layer_ranges.items():
        mine = results[(results["method"] == name) & (results["metric"] == "propensity")]
        assert sorted(mine["layer"].unique()) == sorted(layer_range["layers"])
        assert set(mine["alpha"]) == {0.0, layer_range["alpha"]}
        wide = mine[mine["layer"] == layer_range["best"]].pivot(index="example_id", columns="alpha", values="value")
        assert abs((wide[layer_range["alpha"]] - wide[0.0]).mean() - layer_range["gain_best"]["value"]) < 1e-3
    succeed("figures/layer_sweep.py", str(out), "--out", str(tmp_path))
    assert (tmp_path / "layer_sweep.pdf").stat().st_size > 5000


@pytest.mark.data
def test_steerability_uses_balanced_splits(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "steerability"
    arguments = ["--data", f"{DATA}/mwe", "--items", "40", "--limit", "4", "--shift-items", "4", "--step", "3"]
    succeed("analyses/steerability.py", "--model", str(folder), *arguments, "--out", str(out))
    sets, slopes = (pd.read_csv(out / f"{name}.csv") for name in ("sets", "results"))
    assert len(sets) == 4 and (sets["n"] == 20).all() and len(slopes) == 80
    assert set(pd.read_csv(out / "answer_positions.csv")["n"]) == {5}, "letters and words are balanced"
    means = slopes.groupby("behavior")["slope"].mean()
    assert (means - sets.set_index("behavior")["steerability"]).abs().max() < 1e-4
    succeed("figures/steerability.py", str(out), "--out", str(tmp_path))
    assert (tmp_path / "steerability.pdf").stat().st_size > 5000


def test_similarity_of_vectors_writes_its_files_and_resumes(tmp_path: Path) -> None:
    folder, out = tiny_folder(tmp_path / "model", n_layers=3), tmp_path / "out"
    for _ in range(2):
        succeed("analyses/vector_similarity.py", "--model", str(folder), "--limit", "8", "--out", str(out))
    summary = json.loads((out / "summary.json").read_text())
    assert summary["layer"] == 2 and summary["geometry.within.refuse.refuse"]["n"] == 24 * 23 // 2
    assert {"cos.l2s.p2s", "cos.mean.p2s", "nearest.chance", "norms.vector.defer"} <= set(summary)
    frame = pd.read_csv(out / "results.csv")
    assert set(frame["method"]) == {"l2s", "mean", "mean of its behavior"} and set(frame["metric"]) == {"cos_to_p2s"}
    assert len(pd.read_csv(out / "cka.csv")) == 9 and len(pd.read_csv(out / "maps.csv")) == 72 + 48
    assert "labels shuffled" in (out / "examples.md").read_text()
