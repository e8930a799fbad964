"""A study's folder: computed once, whole or absent, never another study's."""

import json
import math
import shutil
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import steerlab.analysis.study as module
from steerlab.analysis.study import Study
from steerlab.errors import DataError, LoadError, MismatchError, StorageError

IDENTITY = {"study": "demo", "seed": 0, "limit": None}


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def test_a_stage_is_computed_once_and_read_back_by_a_resumed_study(tmp_path: Path) -> None:
    calls = []

    def compute() -> pd.DataFrame:
        calls.append(1)
        return pd.DataFrame({"alpha": [0.1, 1 / 3], "text": ['a "quoted", line\nand more', ""]})

    study = Study(tmp_path, IDENTITY)
    assert not study.has("grid")
    first = study.stage("grid", compute)
    assert study.has("grid")
    for again in (study, Study(tmp_path, dict(reversed(IDENTITY.items())))):
        pd.testing.assert_frame_equal(again.stage("grid", compute), first, check_exact=True)
    assert len(calls) == 1
    pd.testing.assert_frame_equal(first, compute(), check_exact=True)


def test_a_folder_of_weights_is_named_without_the_rest_of_its_path(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "tiny"
    folder.mkdir(parents=True)
    study = Study(tmp_path / "study", {"model": str(folder), "weights": "a15a"})
    study.finish(pd.DataFrame({"value": [1]}), {}, "# Examples\n", {})
    assert str(tmp_path) not in (tmp_path / "study" / "summary.json").read_text()
    assert Study(tmp_path / "other", {"model": "owner/tiny", "weights": "a15a"}).identity["model"] == "owner/tiny"


def test_numbers_that_are_missing_stay_numbers(tmp_path: Path) -> None:
    frame = pd.DataFrame({"example_id": ["a", "b"], "distinct2": [math.nan, 0.5], "text": ["nan", "NA"]})
    frame = frame.assign(number=["007", "7"], said=["True", "False"], right=[True, False], loss=math.nan)
    frame = frame.assign(note=["x", None])
    pd.testing.assert_frame_equal(Study(tmp_path, IDENTITY).stage("judged", lambda: frame), frame, check_exact=True)


number = st.floats(allow_nan=True, allow_infinity=False)
words = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12).map(lambda t: "t" + t)


@given(st.lists(st.tuples(words, number), min_size=1, max_size=5))
@example([("t", math.nan), ("t", 1.0)])
def test_what_comes_back_is_what_was_computed(tmp_path_factory, rows) -> None:
    frame = pd.DataFrame(rows, columns=["text", "value"])
    back = Study(tmp_path_factory.mktemp("study"), IDENTITY).stage("s", lambda: frame)
    pd.testing.assert_frame_equal(back, frame, check_exact=True)


def test_answers_of_any_characters_stay_one_row_each(tmp_path: Path) -> None:
    texts = ["nan", "n\r\x1f", "a\nb", 'say "no", or', "", "nan?", "\x0f,\r\n", " , ", "\u2028"]
    frame = pd.DataFrame({"example_id": [str(i) for i in range(len(texts))], "text": texts})
    Study(tmp_path, {"study": "s"}).stage("answers", lambda: frame)
    assert Study(tmp_path, {"study": "s"}).stage("answers", lambda: frame.iloc[:0])["text"].tolist() == texts
    lone = pd.DataFrame({"text": ["A dog.", "", "A cat.", ""]})
    assert Study(tmp_path, {"study": "s"}).stage("lone", lambda: lone)["text"].tolist() == lone["text"].tolist()
    with pytest.raises(DataError, match=r"has the text '\(missing\)'"):
        Study(tmp_path, {"study": "s"}).stage("said", lambda: pd.DataFrame({"text": ["(missing)"]}))


def test_a_stage_of_an_earlier_schema_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steerlab.analysis.study.SCHEMA", 1)
    Study(tmp_path, IDENTITY).stage("grid", lambda: pd.DataFrame({"text": ["nan"]}))
    monkeypatch.undo()
    with pytest.raises(LoadError, match="schema 1"):
        Study(tmp_path, IDENTITY)
    (tmp_path / "stages" / "study.json").unlink()
    with pytest.raises(MismatchError, match="not the checksum"):
        Study(tmp_path, IDENTITY).stage("grid", lambda: pd.DataFrame())


def test_an_interrupted_stage_leaves_nothing(tmp_path: Path) -> None:
    class Halting(pd.DataFrame):
        def to_csv(self, **options):
            raise KeyboardInterrupt

    def fails() -> pd.DataFrame:
        raise RuntimeError("out of memory")

    study = Study(tmp_path, IDENTITY)
    before = files(tmp_path)
    with pytest.raises(RuntimeError, match="out of memory"):
        study.stage("grid", fails)
    with pytest.raises(KeyboardInterrupt):
        study.stage("grid", lambda: Halting({"alpha": [1.0, 2.0]}))
    assert files(tmp_path) == before and not study.has("grid")
    assert len(study.stage("grid", lambda: pd.DataFrame({"alpha": [1.0, 2.0]}))) == 2


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ({**IDENTITY, "seed": 1}, "seed: 0 there, 1 now"),
        ({**IDENTITY, "limit": 5}, "limit: None there, 5 now"),
        ({**IDENTITY, "model": "m"}, "model: None there, 'm' now"),
        ({"study": "demo", "limit": None}, "seed: 0 there, None now"),
    ],
)
def test_another_study_is_refused_naming_both(tmp_path: Path, other: dict, expected: str) -> None:
    Study(tmp_path, IDENTITY).stage("s", lambda: pd.DataFrame({"a": [1]}))
    before = files(tmp_path)
    with pytest.raises(MismatchError, match=expected):
        Study(tmp_path, other)
    assert files(tmp_path) == before


def test_stage_of_the_same_name_from_another_study_is_refused(tmp_path: Path) -> None:
    """Also where the folder's own identity was deleted and written anew."""
    Study(tmp_path, IDENTITY).stage("s", lambda: pd.DataFrame({"a": [1]}))
    (tmp_path / "stages" / "study.json").unlink()
    message = r"s\.csv: the first line is not the checksum of the stage 's' of this study"
    with pytest.raises(MismatchError, match=message):
        Study(tmp_path, {**IDENTITY, "seed": 1}).stage("s", pd.DataFrame)


def test_same_weights_are_the_same_study_under_another_name(tmp_path: Path) -> None:
    def stage(**model: object) -> list[int]:
        return Study(tmp_path, IDENTITY | model).stage("s", lambda: pd.DataFrame({"a": [1]}))["a"].tolist()

    assert stage(model="m", revision="1", weights="w") == stage(model="n", revision=None, weights="w") == [1]
    assert stage(model="m", revision="1", weights=None) == [1], "the names decide where weights are not known"
    with pytest.raises(MismatchError, match="weights: 'w' there, 'v' now"):
        stage(model="m", revision="1", weights="v")
    with pytest.raises(MismatchError, match="model: 'm' there, 'n' now"):
        stage(model="n", revision="1")


def test_folder_that_vanished_or_has_an_identity_of_no_use_is_refused(tmp_path: Path) -> None:
    study = Study(tmp_path / "run", IDENTITY)
    shutil.rmtree(tmp_path / "run")
    message = r"s\.csv could not be written .*0 finished stages are safe there\. Make room"
    with pytest.raises(StorageError, match=message):
        study.stage("s", lambda: pd.DataFrame({"a": [1]}))
    with pytest.raises(StorageError, match=r"seconds\.json could not be written"):
        study.finish(pd.DataFrame({"a": [1]}), {}, "", {})
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "study.json").write_text(json.dumps(IDENTITY))
    with pytest.raises(LoadError, match=r"study\.json: not a file that steerlab wrote\. Delete this file"):
        Study(tmp_path, IDENTITY)


def test_finish_writes_three_files_and_adds_up_the_seconds(tmp_path: Path, monkeypatch) -> None:
    clock = iter([100.0, 103.0, 500.0, 507.5])
    monkeypatch.setattr(module.time, "time", lambda: next(clock))
    results = pd.DataFrame({"method": ["l2s"], "value": [0.25]})
    for total in (3.0, 10.5):
        Study(tmp_path, IDENTITY).finish(results, {"best": 16}, "# Examples\n", {"model": "tiny"})
        summary = json.loads((tmp_path / "summary.json").read_text())
        assert summary == {"best": 16, "study": IDENTITY, "provenance": {"model": "tiny", "seconds": total}}
    assert {"results.csv", "summary.json", "examples.md"} <= files(tmp_path)
    assert pd.read_csv(tmp_path / "results.csv").equals(results)
    assert (tmp_path / "examples.md").read_text() == "# Examples\n"
