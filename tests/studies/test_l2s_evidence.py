"""The study of what only a predicted vector can do runs from end to end, clue by clue, and draws its figure."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from l2s_evidence import RESULTS, SAFETY, WITH_ZERO, earlier_answers, read_again, sections_of_others, with_readings
from running import succeed
from saved import tiny_folder

from steerlab._support.files import fingerprint
from steerlab.data import LANGUAGE_CLUES
from steerlab.errors import MismatchError
from steerlab.plots import read_summary

ANSWERS = pd.DataFrame({"text": ["Hallo.", "Bonjour."], "right": [1, 0]})
ROW = ("clue", "part", "method", "example_id")
LABEL = fingerprint("Hallo.")[:12]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"answer": ["other"], "readable": [1]}, r"lacks 1 answers in the wanted language \(readable\): read"),
        ({"answer": [LABEL, LABEL], "readable": [1, 0]}, "expected columns answer, each once, and readable"),
        ({"answer": [LABEL], "fluent": [1]}, r"it has \['answer', 'fluent'\]"),
        ({"answer": [LABEL], "readable": [7]}, r"readable is 1 or 0, not \[7\]"),
        ({"answer": [LABEL], "readable": [1], "readable_b": [None]}, r"lacks 1 answers .*\(readable_b\)"),
    ],
)
def test_readings_that_are_not_those_of_the_answers_are_refused(labels, message: str, tmp_path: Path) -> None:
    pd.DataFrame(labels).to_csv(tmp_path / "readings.csv", index=False)
    with pytest.raises(MismatchError, match=message):
        with_readings(ANSWERS, str(tmp_path / "readings.csv"))


def test_only_readable_answers_in_the_wanted_language_count(tmp_path: Path) -> None:
    pd.DataFrame({"answer": [LABEL], "readable": [0]}).to_csv(tmp_path / "readings.csv", index=False)
    assert with_readings(ANSWERS, str(tmp_path / "readings.csv"))["right_readably"].tolist() == [0.0, 0.0]


def test_committed_sections_are_the_numbers_of_their_studies() -> None:
    sections = sections_of_others(RESULTS / "l2s_images", SAFETY)
    assert sections.items() <= read_summary(RESULTS / "l2s_evidence").items()


def test_committed_shares_are_those_of_the_committed_labels(tmp_path: Path) -> None:
    folder = shutil.copytree(RESULTS / "l2s_evidence", tmp_path / "evidence")
    [committed] = read_summary(folder)["expert"].values()
    assert read_again(folder, str(folder / "readings.csv"), seed=0).items() <= committed.items()
    assert (folder / "results.csv").read_bytes() == (RESULTS / "l2s_evidence/results.csv").read_bytes()


@pytest.mark.nightly
def test_evidence_by_clue_then_all_and_its_figure(tmp_path: Path) -> None:
    model, out = tiny_folder(tmp_path / "model", n_layers=6), tmp_path / "evidence"
    arguments = ["analyses/l2s_evidence.py", "--model", str(model), "--limit", "3", "--max-new-tokens", "2"]
    arguments += ["--layer", "3", "--context-layer", "2", "--out", str(out)]
    succeed(*arguments, "--clues", "name")
    assert set(pd.read_csv(out / "results.csv")["clue"]) == {"name"}
    before = {p.name: p.stat().st_mtime_ns for p in (out / "stages").glob("name-*.csv")}
    succeed(*arguments)
    assert before == {p.name: p.stat().st_mtime_ns for p in (out / "stages").glob("name-*.csv")}
    sections, results = json.loads((out / "summary.json").read_text()), pd.read_csv(out / "results.csv")
    [summary] = sections["expert"].values()
    (out / "summary.json").write_text(json.dumps({**sections, "safety": {}}))
    succeed(*arguments, "--only-sections")
    assert json.loads((out / "summary.json").read_text()) == sections
    assert sections["pictures"]["scenes-vlm"]["captions.l2s_over_none.chair_s"].keys() == {"value", "low", "high", "n"}
    assert ["l2s_over_routed_mean.overall" in one for one in sections["safety"].values()] == [True, True]
    plain = results[results["behavior"] == "English"]
    fitted = results.drop(plain.index).dropna(subset="part")
    own = {"mean", "routed_mean", "nearest_neighbors", "linear", "l2s", "shuffled", *WITH_ZERO}
    assert set(fitted["method"]) == own
    assert set(plain["method"]) == {*own, "none", "instruction"} and {*plain["clue"]} == {*LANGUAGE_CLUES}
    assert summary["city.plain.l2s.right"]["n"] == 3 == summary["city.unrelated.l2s_and_zero.right"]["n"], "not by part"
    assert set(results["method"]) - set(fitted["method"]) == {
        "none", "instruction", "named_language", "own", "language_mean",
    }  # fmt: skip
    unseen = fitted[~fitted["seen"].astype(bool)].groupby(["clue", "part"])["behavior"].unique().map(set)
    assert unseen.map(len).eq(3).all() and len(set.union(*unseen["city"])) == 9, "unseen in one part only"
    assert unseen.groupby("clue").size().to_dict() == {"city": 3, "message": 1, "name": 1}
    assert (results["right_fluently"] == results["right"] * results["fluent"]).all()
    assert pd.read_csv(out / "cosines.csv")["cosine"].between(-1.0001, 1.0001).all()
    assert summary["city.unseen.l2s_over_mean.right"]["n"] == 9, "languages are resampled"
    assert summary["city.instruction.strength"] == 1, "at strength 0 there would be no instruction"
    known = tmp_path / "known" / "results.csv"
    known.parent.mkdir()
    (known.parent / "summary.json").write_text((out / "summary.json").read_text())
    results[results["method"] != "shuffled"].to_csv(known, index=False)
    with pytest.raises(MismatchError, match=r"results\.csv is of another study: its weights differ"):
        earlier_answers(str(known), sections["study"] | {"weights": "others"})
    succeed(*arguments[:-1], str(tmp_path / "again"), "--earlier", str(known))
    again = pd.read_csv(tmp_path / "again/results.csv")
    pd.testing.assert_frame_equal(*(one.sort_values([*ROW]).reset_index(drop=True) for one in (again, results)))
    stages = {p.name.split("-")[1] for p in (tmp_path / "again/stages").glob("city-*-test.csv")}
    assert stages == {"shuffled"}, "what is known is not answered again"
    answers = results.loc[results["right"] == 1, "answer"].unique()
    pd.DataFrame({"answer": answers, "readable": 1.0}).to_csv(tmp_path / "readings.csv", index=False)
    succeed(*arguments, "--readings", str(tmp_path / "readings.csv"))
    read = pd.read_csv(out / "results.csv")
    assert (read["right_readably"] == read["right"])[read["behavior"] != "English"].all()
    succeed("figures/l2s_evidence.py", str(out), "--out", str(tmp_path))
    assert (tmp_path / "l2s_evidence.pdf").stat().st_size > 5000
