"""The studies run from end to end on a tiny model, and resume."""

import json
from itertools import product
from pathlib import Path

import pandas as pd
import pytest
from _safety import summarize
from operators_folds import FOLDS, SETTINGS, parts_of_fold
from running import DATA, ROOT, run, succeed
from saved import tiny_folder

from steerlab import Example
from steerlab.analysis.behavior import judge_answers, rules_fingerprint
from steerlab.errors import DataError

NUMBERS = ("refuse_harmful", "defer_expert", "refuse_expert", "distinct2", "harmless_refused", "harmless_identical")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with the layers that the studies use."""
    return tiny_folder(tmp_path_factory.mktemp("model"), n_layers=30)


@pytest.mark.parametrize("again", [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_demo_writes_results_resumes_and_refuses_folder_of_another_study(folder, tmp_path: Path, again: bool) -> None:
    out = tmp_path / "demo"
    arguments = ["analyses/demo.py", "--model", str(folder), "--limit", "3", "--images", "10", "--train-images", "160"]
    arguments += ["--max-new-tokens", "12", "--out", str(out)]
    first = succeed(*arguments)
    drawn = {"demo.png", "demo_gallery.png", "demo_dependence.png", "demo_texts.png", "page.html"}
    assert {"results.csv", "summary.json", "examples.md", *drawn} <= {p.name for p in out.iterdir()}
    assert first.stdout.startswith("steerlab demo") and "routed mean" in first.stdout
    summary = json.loads((out / "summary.json").read_text())
    for method, number in product(("none", "mean", "routed_mean", "l2s"), NUMBERS):
        assert 0 <= summary[f"{method}.{number}"]["value"] <= 1
    assert summary["none.harmless_identical"]["value"] == 1
    assert abs(summary["shuffle.lost_nats"]["value"]) < summary["shuffle.own_nats"]["value"]
    frame = pd.read_csv(out / "results.csv")
    assert {"method", "model", "layer", "alpha", "positions", "example_id", "behavior", "metric", "value"} <= set(frame)
    stage = out / "stages" / "answers-l2s.csv"
    before = stage.stat().st_mtime_ns
    if again:
        succeed(*arguments)
    assert stage.stat().st_mtime_ns == before
    other = run(*arguments, "--seed", "1")
    assert other.returncode != 0 and "belongs to another study" in other.stderr
    assert "seed: 0 there, 1 now" in other.stderr, "beside the data, which the seed splits"


@pytest.mark.parametrize("absent", ["refuse", "defer", "answer"])
def test_summary_raises_if_a_behavior_has_no_inputs(absent: str) -> None:
    rows = [Example("?", id=b, behavior=b) for b in ("refuse", "defer", "answer")]
    judged = judge_answers(rows, ["No, I can't do that."] * 3, ["Boil the eggs first."] * 3).assign(method="l2s")
    assert {f"l2s.{number}" for number in NUMBERS} <= set(summarize(judged, 0))
    with pytest.raises(DataError, match=rf"answers of l2s have no input of the behaviors \['{absent}'\]"):
        summarize(judged[judged["behavior"] != absent], 0)


@pytest.mark.nightly
def test_study_without_inputs_fails_before_loading(folder: Path, tmp_path: Path) -> None:
    done = run("analyses/demo.py", "--model", str(folder), "--train", "0", "--out", str(tmp_path / "demo"))
    assert done.returncode != 0 and "training prompts have no input of the behaviors ['refuse'" in done.stderr
    assert not (tmp_path / "demo").exists()


@pytest.mark.nightly
@pytest.mark.data
def test_safety_study_runs_on_mm_safetybench(folder: Path, tmp_path: Path) -> None:
    done = succeed(
        "analyses/l2s_safety.py", "--data", f"{DATA}/noncommercial_cc_by_nc/mm_safetybench", "--model", str(folder),
        "--limit", "4", "--max-new-tokens", "12", "--rounds", "net", "--out", str(tmp_path / "s"),
    )  # fmt: skip
    summary = json.loads((tmp_path / "s" / "summary.json").read_text())
    assert {f"{method}.{number}" for method in ("none", "mean", "l2s", "p2s") for number in NUMBERS} <= set(summary)
    assert {"cos.l2s_p2s", "cos.mean_p2s"} <= set(summary)
    questions = json.loads(Path(f"{DATA}/noncommercial_cc_by_nc/mm_safetybench/01-Illegal_Activitiy.json").read_text())
    page = (tmp_path / "s" / "examples.md").read_text()
    assert not any(record.get("Question", "\0") in page for record in questions.values())
    published = {"train": 1344, "test": 336, "scored": 303, "harmful": 228, "expert_published": 76}
    assert published.items() <= {k.removeprefix("counts."): n for k, n in summary.items()}.items()
    assert "train 1344, test 336, scored 303" in done.stdout
    assert "kept" in set(pd.read_csv(tmp_path / "s" / "results.csv")["metric"])


@pytest.mark.nightly
@pytest.mark.data
def test_search_extends_grid_of_earlier_study(folder: Path, tmp_path: Path) -> None:
    before = pd.read_csv(ROOT / "analyses/results/l2s_safety/grid.csv").query("round == ['again', 'net']")
    # so that they are fewer inputs than those of --limit 3, which are 9
    before = before.assign(inputs=3, rules=rules_fingerprint())
    before.to_csv(tmp_path / "grid.csv", index=False)
    arguments = [
        "analyses/l2s_safety.py", "--data", f"{DATA}/noncommercial_cc_by_nc/mm_safetybench", "--model", str(folder),
        "--limit", "3", "--max-new-tokens", "4", "--rounds", "mean", "--grid", str(tmp_path / "grid.csv"),
        "--search-only", "--out", str(tmp_path / "s"),
    ]  # fmt: skip
    succeed(*arguments)
    grid = pd.read_csv(tmp_path / "s" / "grid.csv")
    new = grid[grid["round"] == "mean"]
    assert set(grid) > set(before) and grid["round"].tolist() == [*before["round"], *new["round"]]
    assert set(new["method"]) == {"mean"} and len(new) == 4 and set(new["inputs"]) == {9}
    tried = set(zip(new["sentences"], new["targets"], strict=True))
    assert tried == set(product(("reasoned", "situation_closed"), ("raw", "equalized")))
    search = json.loads((tmp_path / "s" / "search.json").read_text())
    assert search["mean.validation_settings"] == 4 and search["mean.setting"]["inputs"] == 9
    assert search["l2s.setting"]["inputs"] == 3 and not (tmp_path / "s" / "results.csv").exists()
    assert search["provenance"]["dirty"] in (True, False, None) and search["counts.train"] == 1344
    again = run(*arguments[:-4], str(tmp_path / "s" / "grid.csv"), *arguments[-3:])
    assert again.returncode != 0 and "holds the rounds ['mean'] already" in again.stderr


@pytest.mark.nightly
def test_hallucination_study_runs_on_scenes_vlm(tmp_path: Path) -> None:
    out = tmp_path / "h"
    succeed("analyses/l2s_hallucination.py", "--limit", "6", "--layers", "2,3", "--out", str(out))
    summary = json.loads((out / "summary.json").read_text())
    names = ["base", "prompt", "random", "mean", "l2s", "p2s", "probe"]
    names += ["gap_closed", "yes_rate.base", "published.l2s", "scope.generated.l2s", "scope.all.l2s"]
    for name, split in product(names, ("random", "popular", "adversarial")):
        assert f"{name}.{split}" in summary, f"{name}.{split}"
    assert summary["captions.chair_s.none"] >= 0 and summary["partners.yes_rate.none"] >= 0
    frame = pd.read_csv(out / "results.csv")
    assert {"method", "model", "layer", "alpha", "positions", "example_id", "behavior", "metric", "value"} <= set(frame)
    succeed("figures/l2s_hallucination.py", str(out), "--out", str(out))
    assert (out / "l2s_hallucination.png").exists()


@pytest.mark.data
@pytest.mark.nightly
def test_operators_study_chooses_on_validation_prompts_and_draws(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "operators"
    arguments = ["--model", str(folder), "--data", str(DATA), "--limit", "4", "--max-new-tokens", "4"]
    succeed("analyses/operators.py", *arguments, "--out", str(out))
    summary, grid = json.loads((out / "summary.json").read_text()), pd.read_csv(out / "grid.csv")
    sizes = grid.groupby(["part", "operator"]).size()
    assert sizes["search"].to_dict() == {"ablate": 10, "level": 6, "add": 36}, "four ablations are around the best one"
    assert not grid.duplicated(["part", "operator", "kind", "layer", "alpha", "first"]).any()
    assert sizes["validation"]["add"] == 4 <= sizes["validation"].drop("add").sum() <= 6, "and the best of each kind"
    rows = pd.read_csv(out / "results.csv")
    for name in ("none", "instruction", "ablate", "ablate random", "add", "add random", "add strong"):
        harmful = rows[(rows["method"] == name) & (rows["behavior"] == "refuse")]
        assert summary[f"{name}.harmful.refuses"]["value"] == pytest.approx(harmful["refuses"].mean(), abs=1e-4)
    assert summary["none.perplexity_ratio"] == 1 != summary["add.perplexity_ratio"]
    validation = grid[(grid["part"] == "validation") & (grid["operator"] == "add")]
    assert summary["chosen"]["add"]["refuses_fluently"] == validation["refuses_fluently"].max()
    succeed("figures/operators.py", str(out))
    assert (out / "operators.pdf").stat().st_size > 5000
    pair = grid[grid["part"] == "validation"].head(1).assign(operator="pair", kind="ablate prompt 12 + level answer 16")
    pd.concat([grid, pair]).to_csv(out / "grid.csv", index=False)
    again = tmp_path / "again"
    succeed("analyses/operators.py", *arguments, "--grid", str(out / "grid.csv"), "--out", str(again))
    shares = pd.read_csv(again / "grid.csv").set_index("operator").loc["pair", "alpha"]
    assert shares.tolist() == [0.6, 0.7, 0.8], "nothing else is chosen again"
    finer, options = tmp_path / "finer", ["--choose", "addition", "--test-part", "fresh_2"]
    refused = run("analyses/operators.py", *arguments, *options, "--out", str(finer))
    assert refused.returncode == 2 and "give its --grid" in refused.stderr
    succeed("analyses/operators.py", *arguments, "--grid", str(out / "grid.csv"), *options, "--out", str(finer))
    tried, chosen = pd.read_csv(finer / "grid.csv"), json.loads((finer / "summary.json").read_text())["chosen"]
    added, best = tried[tried["operator"] == "add"], summary["chosen"]["add"]
    assert added.groupby(["part", "kind", "layer"]).size().to_dict() == {("seen", best["kind"], best["layer"]): 15}
    assert set(zip(added["alpha"], added["first"], strict=True)) == set(product((1.0, 1.25, 1.5), (0, 4, 5, 6, 12)))
    assert chosen["add"]["refuses_fluently"] == added["refuses_fluently"].max()
    assert chosen["add strong"]["short"] == pytest.approx(max(0.95 - added["refuses"].max(), 0))
    tested = [set(pd.read_csv(folder / "results.csv")["example_id"]) for folder in (out, again, finer)]
    assert not (tested[0] & tested[1] or tested[1] & tested[2] or tested[0] & tested[2]), "on prompts not seen"


def test_folds_are_fitted_chosen_and_tested_on_different_prompts() -> None:
    prompts = [Example("?", id=str(i)) for i in range(21)]
    parts = [[{e.id for e in part} for part in parts_of_fold(prompts, fold)] for fold in range(FOLDS)]
    assert all(sum(len(part) for part in parts[fold]) == len(set().union(*parts[fold])) == 21 for fold in range(FOLDS))
    assert sorted(i for _, _, tested in parts for i in tested) == sorted(e.id for e in prompts), "each is tested once"


@pytest.mark.data
@pytest.mark.nightly
def test_folds_of_added_refusals_are_computed_by_several_processes(folder: Path, tmp_path: Path) -> None:
    arguments = ["analyses/operators_folds.py", "--model", str(folder), "--data", str(DATA), "--limit", "2"]
    arguments += ["--max-new-tokens", "4", "--out", str(tmp_path / "folds")]
    assert "9 of 12 prompts" in succeed(*arguments, "--folds", "0", "1", "2").stdout
    succeed(*arguments)
    rows, summary = (
        pd.read_csv(tmp_path / "folds/results.csv"),
        json.loads((tmp_path / "folds/summary.json").read_text()),
    )
    assert rows["example_id"].is_unique and len(rows) == 12 == summary["refuses"]["n"]
    assert set(zip(rows["alpha"], rows["first"], strict=True)) <= set(SETTINGS)
