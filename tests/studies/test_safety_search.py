"""The safety study's rounds: what they try, what the model lacks, what an interrupted one keeps, what decides them."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from steerlab import DataError, Example, MismatchError, SteeringError
from steerlab.analysis.selection import choose_candidate
from steerlab.analysis.study import Study

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "analyses"))

import _common
import _safety
import _search
from _search import CELL, GOALS, ROUNDS, Block, blocks, clipped, distinct, pick, read_grid, recipe

GRID = ROOT / "analyses" / "results" / "l2s_safety" / "grid.csv"


@pytest.fixture(scope="module")
def earlier() -> pd.DataFrame:
    """The grid that is committed, without the round that these tests ask for."""
    grid = read_grid(GRID, [])
    return grid[grid["round"] != "mean"]


def test_the_mean_vectors_round_is_centered_on_its_best_cells_that_were_judged_on_few(earlier: pd.DataFrame) -> None:
    found = blocks(ROUNDS["mean"], earlier, 240, 30)
    assert len(found) == 8 and {block.methods for block in found} == {("mean",)}
    assert all(len(block.cells()) == 1 for block in found)
    assert {block.targets for block in found} == {"raw", "equalized"}
    rest = distinct(earlier[earlier["method"] == "mean"])
    best = choose_candidate(rest[rest["inputs"] < 240], GOALS)
    assert (best["layer"], best["positions"], best["sentences"]) == (
        found[0].layer,
        found[0].positions,
        found[0].sentences,
    )
    again = earlier[earlier["round"] == "again"].iloc[0]
    assert Block(again["layer"], "all", "reasoned", "raw", (0.7,), ("mean",)) not in found, "it has its 240 inputs"


def test_what_a_round_has_judged_is_not_tried_again(earlier: pd.DataFrame) -> None:
    first = blocks(ROUNDS["mean"], earlier, 240, 30)[0]
    cells = distinct(earlier[earlier["method"] == "mean"])
    same = (cells["layer"] == first.layer) & (cells["positions"] == first.positions)
    same &= (cells["sentences"] == first.sentences) & (cells["alpha"] == first.alphas[0])
    known = pd.concat([earlier, cells[same].assign(inputs=240, targets="equalized")])
    assert [b.targets for b in blocks(ROUNDS["mean"], known, 240, 30)[:3]] == ["raw", "raw", "equalized"]
    assert blocks(ROUNDS["mean"], earlier, 120, 30) == [], "every cell has been judged on so many"


def test_cells_of_layers_that_the_model_lacks_are_no_centers(earlier: pd.DataFrame) -> None:
    assert {b.layer for b in blocks(ROUNDS["mean"], earlier, 240, 16)} == {15}
    for known in (None, earlier[earlier["method"] == "l2s"]):
        with pytest.raises(DataError, match="no cell of 'mean' to begin with"):
            blocks(ROUNDS["mean"], known, 240, 30)


def test_the_other_rounds_try_every_place_with_both_methods() -> None:
    assert sum(len(b.cells()) for b in blocks(ROUNDS["wide"], None, 120, 30)) == 720
    net = blocks(ROUNDS["net"], None, 240, 30)
    assert [b.cells() for b in net] == [
        [("mean", 16, "-", 1.05), *(("l2s", *r, 1.05) for r in ROUNDS["net"]["readers"])]
    ]


def test_a_cell_tried_twice_counts_once_as_judged_on_the_most_inputs(earlier: pd.DataFrame) -> None:
    counts = distinct(earlier).groupby("method").size()
    assert (counts["mean"], counts["l2s"]) == (374, 381)
    most = earlier.groupby(CELL)["inputs"].max().sum()
    assert distinct(earlier)["inputs"].sum() == most
    assert pick(earlier, "l2s") == pick(distinct(earlier), "l2s")


def test_layers_above_the_model_are_left_out_and_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert clipped("context", 30) == ROUNDS["context"] and capsys.readouterr().out == ""
    assert clipped("context", 24)["contexts"] == (14, 16, 18, 20, 22)
    assert "the model has layers 0 to 23" in capsys.readouterr().out
    assert clipped("net", 20)["readers"] == ((16, "tanh"),)
    assert ROUNDS["net"]["readers"][1][0] == 22, "the round itself stays as it is"
    with pytest.raises(SteeringError, match=r"round 'wide': the model has layers 0 to 11, .* Choose other --rounds"):
        clipped("wide", 12)


def test_a_grid_is_read_back_as_it_is_and_refused_where_it_does_not_fit(earlier: pd.DataFrame, tmp_path: Path) -> None:
    assert read_grid(GRID, []).round(4).to_csv(index=False) == GRID.read_text()
    with pytest.raises(DataError, match=r"holds the rounds \['wide'\] already"):
        read_grid(GRID, ["wide", "mean"] if "mean" not in set(read_grid(GRID, [])["round"]) else ["wide"])
    with pytest.raises(DataError, match="there is no grid"):
        read_grid(tmp_path / "grid.csv", [])
    earlier.drop(columns="net").to_csv(tmp_path / "grid.csv", index=False)
    with pytest.raises(DataError, match=r"lacks the columns \['net'\]"):
        read_grid(tmp_path / "grid.csv", [])


def test_an_interrupted_block_keeps_its_finished_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = [Example(str(i), "?", b) for i, b in enumerate(["refuse", "defer", "answer"] * 40)]
    answers: list[int] = []
    fits: list[tuple] = []

    def generate(model, examples, plain, cells, **options):
        if len(answers) == 2:
            raise KeyboardInterrupt
        answers.append(len(cells) * len(examples))
        return pd.DataFrame([{**c.labels, "alpha": c.alpha} for c in cells])

    monkeypatch.setattr(_search, "evaluate_candidates", generate)
    monkeypatch.setattr(
        _search, "_vectors", lambda a, s, h, block, kind, seed: fits.append(kind) or torch.zeros(len(h), 2)
    )
    args = argparse.Namespace(seed=0, max_new_tokens=2, batch_size=4)
    block = blocks(ROUNDS["wide"], None, 120, 30)[0]
    study = Study(tmp_path, {})
    loaded: list[str] = []

    def run() -> pd.DataFrame:
        return _search.run_block(
            study, None, [], held, [""] * 120, loaded.append, "wide", ROUNDS["wide"], block, args
        )  # fmt: skip

    with pytest.raises(KeyboardInterrupt):
        run()
    assert max(answers) <= _search.ANSWERS == 480 and len(list((tmp_path / "stages").glob("grid-*.csv"))) == 2
    answers.clear()
    fits.clear()
    frame = run()
    assert answers == [240], "only what was not done"
    assert fits == [("l2s", 15, "tanh")] and frame["method"].tolist() == ["mean"] * 5 + ["l2s"] * 5
    assert frame["alpha"].tolist() == list(ROUNDS["wide"]["alphas"]) * 2
    loaded.clear()
    assert len(run()) == 10 and not loaded, "a finished block reads no activations"


def test_other_sentences_or_another_space_make_another_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Study(tmp_path, recipe(["net", "mean"]))
    Study(tmp_path, recipe(["net", "mean"]))
    monkeypatch.setitem(ROUNDS, "wide", ROUNDS["wide"] | {"alphas": (9.0,)})
    Study(tmp_path, recipe(["net", "mean"]))  # a round that is not asked for
    with monkeypatch.context() as patch:
        patch.setitem(ROUNDS, "net", ROUNDS["net"] | {"alphas": (1.0,)})
        with pytest.raises(MismatchError, match="space"):
            Study(tmp_path, recipe(["net", "mean"]))
    patched = _safety.SENTENCES["short"] | {"harmful": _safety.Contrast("I will not.", "Yes.")}
    monkeypatch.setitem(_safety.SENTENCES, "short", patched)
    with pytest.raises(MismatchError, match="sentences"):
        Study(tmp_path, recipe(["net", "mean"]))


def test_provenance_tells_code_that_is_not_in_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lm) -> None:
    def git(*arguments: str) -> None:
        who = ["-c", "user.name=t", "-c", "user.email=t@t"]
        subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True)

    monkeypatch.setattr(_common, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    told = lambda: _common.provenance(lm(), [Example("a", "?")], argparse.Namespace(seed=0))  # noqa: E731
    assert (told()["commit"], told()["dirty"]) == (None, None)
    for file in ("analyses/study.py", "analyses/results/grid.csv", "steerlab/code.py", "README.md"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("1\n")
    git("init")
    git("add", ".")
    git("commit", "-m", "all")
    (tmp_path / "README.md").write_text("2\n")
    (tmp_path / "analyses/results/grid.csv").write_text("2\n")
    (tmp_path / "analyses/results/new.csv").write_text("2\n")
    assert told()["dirty"] is False and told()["commit"]
    (tmp_path / "analyses/new.py").write_text("2\n")
    assert told()["dirty"] is True
