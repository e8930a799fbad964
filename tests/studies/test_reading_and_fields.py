"""The studies of lenses and of methods at equal dose run from end to end, resume, and draw their figures."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from running import DATA, succeed
from saved import tiny_folder


@pytest.mark.nightly
@pytest.mark.data
def test_methods_at_equal_dose_on_choices_and_refusals(tmp_path: Path) -> None:
    model, out = tiny_folder(tmp_path / "model", n_layers=6), tmp_path / "fields"
    arguments = ["analyses/fields.py", "--model", str(model), "--data", str(DATA), "--limit", "3", "--items", "40"]
    arguments += ["--max-new-tokens", "3", "--out", str(out)]
    succeed(*arguments)
    summary, layers = json.loads((out / "summary.json").read_text()), pd.read_csv(out / "layers.csv")
    choices, refusals = pd.read_csv(out / "results.csv"), pd.read_csv(out / "refusals.csv")
    assert {"mean", "l2s", "field", "spherical", "w2s", "random"} == set(choices["method"])
    assert choices.dropna(subset="alpha")["kl"].between(0.8, 1.0001).all(), "the same dose for every method"
    assert (layers["oracle"] >= layers[["w2s", "fixed", "shuffled"]].max(axis=1) - 1e-9).all()
    assert set(layers["w2s_layer"]) <= {1, 2, 3, 4} and layers["behavior"].nunique() == 3
    assert summary["layers.oracle.over_fixed"]["value"] >= summary["layers.w2s.over_fixed"]["value"]
    assert refusals["method"].iloc[0] == "none", "a random model may reach no dose for refusals"
    assert set(refusals["behavior"]) == {"refuse", "answer"}
    assert np.isfinite(summary["refusal.none.0.harmful.refuses"]["value"])
    stamps = {p.name: p.stat().st_mtime_ns for p in (out / "stages").glob("*.csv")}
    succeed(*arguments)
    assert stamps == {p.name: p.stat().st_mtime_ns for p in (out / "stages").glob("*.csv")}
    succeed("figures/fields.py", str(out), "--out", str(tmp_path))
    assert (tmp_path / "fields.pdf").stat().st_size > 5000


@pytest.mark.nightly
def test_lenses_on_facts_and_copies(tmp_path: Path) -> None:
    out = tmp_path / "lenses"
    succeed("analyses/lenses.py", "--limit", "3", "--out", str(out))
    summary = json.loads((out / "summary.json").read_text())
    read, copies = pd.read_csv(out / "results.csv"), pd.read_csv(out / "copies.csv")
    assert read.groupby("family")["layer"].nunique().eq(30).all() and read["family"].nunique() == 9
    assert (read.loc[read["layer"] == 29, "kl"].abs() < 1e-4).all(), "the last layer predicts what the model does"
    word, last = copies.loc[copies["token"] != copies["clean_token"], "column"].iloc[0], copies["column"].max()
    restored = copies.groupby(["column", "layer"])["restored"].mean()
    assert restored[word, 0] > 0.9 and restored[last, 29] > 0.99 and restored[word, 29] < 0.01
    assert summary["copies.word.0"]["value"] > 0.9
    assert summary["copies.half_restored_from"] <= summary["copies.half_read_from"]
    succeed("figures/lenses.py", str(out), "--out", str(tmp_path))
    assert (tmp_path / "lenses.pdf").stat().st_size > 5000
