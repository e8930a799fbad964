"""The rounds of the safety study: settings tried, missing layers, interrupted runs, identity of the study."""

import argparse
import subprocess
from functools import partial
from pathlib import Path

import _common
import _safety
import _search
import pandas as pd
import pytest
import torch
from _search import ROUNDS, SettingGroup, distinct, read_grid, round_for_model, search_fingerprints, setting_groups
from _selection import choose_candidate
from running import ROOT

from steerlab import Example
from steerlab.analysis.study import Study
from steerlab.errors import DataError, MismatchError, SteeringError

GRID = ROOT / "analyses" / "results" / "l2s_safety" / "grid.csv"


@pytest.fixture(scope="module")
def earlier() -> pd.DataFrame:
    """The committed grid, without the round "mean"."""
    grid = read_grid(GRID, [])
    return grid[grid["round"] != "mean"]


def test_mean_round_is_centered_on_best_settings_with_few_inputs(earlier: pd.DataFrame) -> None:
    found = setting_groups(ROUNDS["mean"], earlier, 240, 30)
    assert len(found) == 8 and {group.methods for group in found} == {("mean",)}
    assert all(len(group.settings()) == 1 for group in found)
    assert {group.targets for group in found} == {"raw", "equalized"}
    rest = distinct(earlier[earlier["method"] == "mean"])
    best = choose_candidate(rest[rest["inputs"] < 240], _search.GOALS)
    assert all(best[name] == getattr(found[0], name) for name in ("layer", "positions", "sentences"))
    again = earlier[earlier["round"] == "again"].iloc[0]  # evaluated on 240 inputs
    assert SettingGroup(again["layer"], "all", "reasoned", "raw", (0.7,), ("mean",)) not in found


def test_evaluated_settings_are_not_tried_again(earlier: pd.DataFrame) -> None:
    first = setting_groups(ROUNDS["mean"], earlier, 240, 30)[0]
    settings = distinct(earlier[earlier["method"] == "mean"])
    same = (settings["layer"] == first.layer) & (settings["positions"] == first.positions)
    same &= (settings["sentences"] == first.sentences) & (settings["alpha"] == first.alphas[0])
    known = pd.concat([earlier, settings[same].assign(inputs=240, targets="equalized")])
    assert [b.targets for b in setting_groups(ROUNDS["mean"], known, 240, 30)[:3]] == ["raw", "raw", "equalized"]
    assert setting_groups(ROUNDS["mean"], earlier, 120, 30) == [], "every setting has been evaluated on 120 inputs"


def test_layers_missing_in_model_are_not_used_as_centers(earlier: pd.DataFrame) -> None:
    assert {b.layer for b in setting_groups(ROUNDS["mean"], earlier, 240, 16)} == {15}
    for known in (None, earlier[earlier["method"] == "l2s"]):
        with pytest.raises(DataError, match="no setting of 'mean' to start from"):
            setting_groups(ROUNDS["mean"], known, 240, 30)


def test_product_rounds_try_every_setting_with_both_methods() -> None:
    assert sum(len(b.settings()) for b in setting_groups(ROUNDS["wide"], None, 120, 30)) == 720
    (net,) = setting_groups(ROUNDS["net"], None, 240, 30)
    assert net.settings() == [("mean", 16, "-", 1.05, 0), *(("l2s", *r, 1.05, 0) for r in ROUNDS["net"]["readers"])]
    (ending,) = setting_groups(ROUNDS["ending"], None, 240, 30)
    reader = ROUNDS["ending"]["readers"][0]
    assert ending.settings() == [("l2s", *reader, alpha, first) for alpha in (1.2, 1.3) for first in (8, 10, 12, 16)]


def test_distinct_keeps_the_setting_with_most_inputs(earlier: pd.DataFrame) -> None:
    counts = distinct(earlier).groupby("method").size()
    assert (counts["mean"], counts["l2s"]) == (374, 385)
    most = earlier.groupby(_search.SETTING_COLUMNS)["inputs"].max().sum()
    assert distinct(earlier)["inputs"].sum() == most
    assert _search.pick_setting(earlier, "l2s") == _search.pick_setting(distinct(earlier), "l2s")


def test_layers_missing_in_model_are_dropped_and_reported(capsys: pytest.CaptureFixture[str]) -> None:
    assert round_for_model("context", 30) == ROUNDS["context"] and capsys.readouterr().out == ""
    assert round_for_model("context", 24)["contexts"] == (14, 16, 18, 20, 22)
    assert "the model has layers 0 to 23" in capsys.readouterr().out
    assert round_for_model("net", 20)["readers"] == ((16, "tanh"),)
    assert ROUNDS["net"]["readers"][1][0] == 22, "the round itself is unchanged"
    with pytest.raises(SteeringError, match=r"round 'wide': the model has layers 0 to 11; .* Choose other --rounds"):
        round_for_model("wide", 12)


def test_read_grid_round_trips_and_rejects_invalid_files(earlier: pd.DataFrame, tmp_path: Path) -> None:
    assert read_grid(GRID, []).round(4).to_csv(index=False) == GRID.read_text()
    with pytest.raises(DataError, match=r"holds the rounds \['wide'\] already"):
        read_grid(GRID, ["wide"])
    with pytest.raises(DataError, match="does not exist"):
        read_grid(tmp_path / "grid.csv", [])
    with pytest.raises(DataError, match="judged by other rules than today's"):
        read_grid(GRID, [], "0123456789abcdef")
    earlier.drop(columns="net").to_csv(tmp_path / "grid.csv", index=False)
    with pytest.raises(DataError, match=r"lacks the columns \['net'\]"):
        read_grid(tmp_path / "grid.csv", [])


def test_interrupted_group_keeps_finished_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    validation = [Example("?", id=str(i), behavior=b) for i, b in enumerate(["refuse", "defer", "answer"] * 40)]
    answers: list[int] = []
    fits: list[tuple] = []

    def generate(model, examples, plain, candidates, **options):
        if len(answers) == 2:
            raise KeyboardInterrupt
        answers.append(len(candidates) * len(examples))
        return pd.DataFrame([{**c.labels, "alpha": c.alpha} for c in candidates])

    monkeypatch.setattr(_search, "evaluate_candidates", generate)
    monkeypatch.setattr(
        _search, "_vectors", lambda a, s, h, group, kind, seed: fits.append(kind) or torch.zeros(len(h), 2)
    )
    args = argparse.Namespace(seed=0, max_new_tokens=2, batch_size=4)
    group = setting_groups(ROUNDS["wide"], None, 120, 30)[0]
    loaded: list[str] = []
    inputs = (None, [], validation, [""] * 120, loaded.append)
    run = partial(_search.run_group, Study(tmp_path, {}), *inputs, "wide", ROUNDS["wide"], group, args)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert max(answers) <= _search.ANSWERS == 480 and len(list((tmp_path / "stages").glob("grid-*.csv"))) == 2
    answers.clear()
    fits.clear()
    frame = run()
    assert answers == [240], "finished stages are not repeated"
    assert fits == [("l2s", 15, "tanh")] and frame["method"].tolist() == ["mean"] * 5 + ["l2s"] * 5
    assert frame["alpha"].tolist() == list(ROUNDS["wide"]["alphas"]) * 2
    loaded.clear()
    assert len(run()) == 10 and not loaded, "a finished group loads no activations"


def test_changed_sentences_or_rounds_change_study_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Study(tmp_path, search_fingerprints(["net", "mean"]))
    Study(tmp_path, search_fingerprints(["net", "mean"]))
    monkeypatch.setitem(ROUNDS, "wide", ROUNDS["wide"] | {"alphas": (9.0,)})
    Study(tmp_path, search_fingerprints(["net", "mean"]))  # a round that is not part of the study
    with monkeypatch.context() as patch:
        patch.setitem(ROUNDS, "net", ROUNDS["net"] | {"alphas": (1.0,)})
        with pytest.raises(MismatchError, match="space"):
            Study(tmp_path, search_fingerprints(["net", "mean"]))
    patched = _safety.SENTENCES["short"] | {"harmful": _safety.Contrast("I will not.", "Yes.")}
    monkeypatch.setitem(_safety.SENTENCES, "short", patched)
    with pytest.raises(MismatchError, match="sentences"):
        Study(tmp_path, search_fingerprints(["net", "mean"]))


def test_provenance_marks_code_changes_as_dirty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lm) -> None:
    monkeypatch.setattr(_common, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    provenance = partial(_common.provenance, lm(), [Example("?", id="a")], argparse.Namespace(seed=0))
    assert (provenance()["commit"], provenance()["dirty"]) == (None, None)
    for file in ("analyses/study.py", "analyses/results/grid.csv", "steerlab/code.py", "README.md"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("1\n")
    for command in (["init"], ["add", "."], ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "-m", "all"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True, capture_output=True)
    for file in ("README.md", "analyses/results/grid.csv", "analyses/results/new.csv"):
        (tmp_path / file).write_text("2\n")
    assert provenance()["dirty"] is False and provenance()["commit"]
    (tmp_path / "analyses/new.py").write_text("2\n")
    assert provenance()["dirty"] is True
