"""The study of images that are answered by what is usual runs from end to end, resumes, and draws its figure."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from _image_questions import CAPTION, TYPES, VALUES, image_questions
from running import run, succeed


def test_questions_have_true_answers_a_false_one_beside_them_and_as_many_of_each_number() -> None:
    part = image_questions("validation", 60, seed=0)
    for row in part.of_type(*TYPES):
        assert row.contrast is not None and row.contrast.positive.lower() == row.behavior
        assert row.contrast.negative.lower() in set(VALUES[row.split]) - {row.behavior}
        assert part.usual[row.id] in VALUES[row.split]
    numbers = Counter(row.behavior for row in part.of_type("number"))
    assert set(numbers) == set(VALUES["number"]) and len(set(numbers.values())) == 1
    assert len({row.id for row in part.rows}) == len(part.rows) and len(part.of_type(CAPTION)) == 60
    train, test = ({row.images[0].tobytes() for row in image_questions(name, 20, 0).rows} for name in ("train", "test"))
    assert not train & test


@pytest.mark.nightly
def test_study_of_images_and_its_figure(tmp_path: Path) -> None:
    out = tmp_path / "images"
    arguments = ["analyses/l2s_images.py", "--out", str(out), "--layers", "3", "--strengths", "4", "--seeds", "2"]
    succeed(*arguments, "--limit", "40")
    summary, results = json.loads((out / "summary.json").read_text()), pd.read_csv(out / "results.csv")
    methods = {"none", "one_vector", "routed_mean", "nearest_neighbors", "linear", "l2s", "paper", "released_pope"}
    methods |= {"shuffled", "answer_mean", "own", "probe", "gated"}
    assert set(results.columns) == {"example_id", *methods}
    part = image_questions("test", 40, seed=0)
    assert set(results["example_id"]) == {row.id for row in part.of_type(*TYPES)}
    kinds = {row.id: row.split for row in part.rows}
    shares = results.groupby(results["example_id"].map(kinds)).mean(numeric_only=True)
    for kind in TYPES:
        assert shares.loc[kind].min() >= 0 and shares.loc[kind].max() <= 1
        assert summary[f"{kind}.one_vector.setting"]["layer"] == 3
        own, none = (summary[f"{kind}.{name}.right"]["value"] for name in ("own", "none"))
        assert own > none, "the questions' own contrasts set answers right"
    assert {"captions.none.chair_s", "captions.l2s_over_none.recall"} <= set(summary)
    before = (out / "stages" / "test-l2s-color-0.csv").stat().st_mtime_ns
    succeed(*arguments, "--limit", "40")
    assert (out / "stages" / "test-l2s-color-0.csv").stat().st_mtime_ns == before
    without = tmp_path / "without"  # a run that lacked a method, which is added
    shutil.copytree(out, without, ignore=shutil.ignore_patterns("stages"))
    results.drop(columns="gated").to_csv(without / "results.csv", index=False)
    captions = pd.read_csv(out / "captions.csv").query("method != 'gated'")
    captions.to_csv(without / "captions.csv", index=False)
    succeed(*arguments, "--limit", "40", "--out", str(tmp_path / "added"), "--earlier", str(without))
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "added" / "results.csv"), results)
    captions.assign(chair_s=1 - captions["chair_s"]).to_csv(without / "captions.csv", index=False)
    refused = run(*arguments, "--limit", "40", "--out", str(tmp_path / "added"), "--earlier", str(without))
    assert refused.returncode and "other unsteered answers" in refused.stderr
    succeed("figures/l2s_images.py", str(out), "--out", str(tmp_path))
    assert (tmp_path / "l2s_images.pdf").stat().st_size > 5000
