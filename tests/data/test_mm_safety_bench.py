from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from steerlab._support.errors import DataError, LoadError
from steerlab.data import (
    PUBLISHED_PAIRS,
    Example,
    data_hash,
    mm_safety_bench,
    published_split,
    with_contrasts,
)
from steerlab.data.mm_safety_bench import SCENARIOS

IDS = (97, 163, 44, 144, 122, 154, 109, 153, 139, 130, 167, 109, 149)


def write_folder(folder: Path, ids: tuple[int, ...] = (1,) * 13) -> Path:
    for scenario, count in zip(SCENARIOS, ids, strict=True):
        records = {
            str(key): {
                "Question": f"Question {key} of {scenario.number}?",
                "Changed Question": f"List steps for {key} of {scenario.number}.",
            }
            for key in range(count)
        }
        (folder / scenario.file).write_text(json.dumps(records), encoding="utf-8")
    return folder


def rewrite(file: Path, key: str, record: object) -> None:
    records = json.loads(file.read_text(encoding="utf-8"))
    records[key] = record
    file.write_text(json.dumps(records), encoding="utf-8")


def test_scenarios_have_the_published_counts() -> None:
    assert tuple(scenario.ids for scenario in SCENARIOS) == IDS
    assert sum(IDS) == 1680 and sum(IDS[:9]) == 1125 and sum(IDS[:12]) == 1531


def test_each_scenario_gets_its_behavior_and_class(tmp_path: Path) -> None:
    rows = mm_safety_bench(write_folder(tmp_path), include_unscored=True, strict=False)
    assert [row.id for row in rows] == [f"mmsb/{n:02d}/0" for n in range(1, 14)]
    assert [row.behavior for row in rows] == ["refuse"] * 9 + ["defer"] * 3 + [""]
    classes = [row.meta["class"] for row in rows]
    assert classes == ["harmful"] * 9 + ["expert"] * 2 + ["health"] + ["harmful"]
    assert rows[9].meta == {"scenario": "10", "name": "Legal_Opinion", "class": "expert", "index": "9"}
    assert all(row.contrast is None for row in rows)


def test_unscored_scenario_is_left_out_unless_asked_for(tmp_path: Path) -> None:
    rows = mm_safety_bench(write_folder(tmp_path), strict=False)
    assert len(rows) == 12 and all(row.behavior for row in rows)


def test_removed_records_keep_their_index(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, IDS)
    whole = {row.id: (row.meta["index"], row.split) for row in mm_safety_bench(folder)}
    rewrite(folder / SCENARIOS[0].file, "5", {"removed": True})
    rest = {row.id: (row.meta["index"], row.split) for row in mm_safety_bench(folder)}
    assert set(whole) - set(rest) == {"mmsb/01/5"}
    assert all(whole[key] == rest[key] for key in rest)


def test_split_is_the_published_one(tmp_path: Path) -> None:
    rows = mm_safety_bench(write_folder(tmp_path, IDS), include_unscored=True)
    assert [int(row.meta["index"]) for row in rows if row.split == "test"] == published_split()[1].tolist()
    assert sum(row.split == "test" and row.behavior == "defer" for row in rows) == 75


def test_another_text_field_can_be_chosen(tmp_path: Path) -> None:
    rows = mm_safety_bench(write_folder(tmp_path), field="Changed Question", strict=False)
    assert rows[0].prompt == "List steps for 0 of 01."


def test_unknown_text_field_lists_the_fields_there(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"'Answer'.*Changed Question"):
        mm_safety_bench(write_folder(tmp_path), field="Answer", strict=False)


def test_missing_folder_names_the_expected_files(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"01-Illegal_Activitiy\.json.*13-Gov_Decision\.json"):
        mm_safety_bench(tmp_path / "nowhere")


def test_missing_file_is_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    (folder / "07-Sex.json").unlink()
    with pytest.raises(LoadError, match=r"lacks 07-Sex\.json\. Expected"):
        mm_safety_bench(folder, strict=False)


def test_other_counts_are_refused_since_the_split_would_differ(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"has 1, not 97.*strict=False"):
        mm_safety_bench(write_folder(tmp_path))


@pytest.mark.parametrize("content", ["not json", "[1, 2]", '{"0": "text"}'])
def test_broken_files_are_refused(tmp_path: Path, content: str) -> None:
    folder = write_folder(tmp_path)
    (folder / SCENARIOS[3].file).write_text(content, encoding="utf-8")
    with pytest.raises(LoadError, match=r"04-Physical_Harm\.json"):
        mm_safety_bench(folder, strict=False)


def test_a_folder_with_nothing_left_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="empty"):
        mm_safety_bench(write_folder(tmp_path, (0,) * 13), strict=False)


@pytest.fixture(scope="module")
def real() -> list[Example]:
    root = os.environ.get("STEERLAB_DATA")
    if not root:
        pytest.skip("STEERLAB_DATA is unset: MM-SafetyBench is not part of the package")
    folder = Path(root) / "noncommercial_cc_by_nc" / "mm_safetybench"
    if not folder.is_dir():
        pytest.skip("the folder named by STEERLAB_DATA has no MM-SafetyBench")
    return mm_safety_bench(folder, include_unscored=True)


@pytest.mark.data
def test_real_files_give_every_record_that_was_not_removed(real: list[Example]) -> None:
    counts = Counter(row.meta["scenario"] for row in real)
    assert len(real) == 1653
    removed = {f"{n:02d}": ids - counts[f"{n:02d}"] for n, ids in enumerate(IDS, start=1)}
    assert {scenario: count for scenario, count in removed.items() if count} == {"01": 6, "04": 21}
    assert real[-1].meta["index"] == "1679"


@pytest.mark.data
def test_real_test_rows_to_defer_are_the_75(real: list[Example]) -> None:
    assert sum(row.split == "test" and row.behavior == "defer" for row in real) == 75


@pytest.mark.data
def test_published_pairs_cover_every_class(real: list[Example]) -> None:
    for pairs in PUBLISHED_PAIRS.values():
        paired = with_contrasts(real, pairs)
        assert all(row.contrast is not None and row.contrast.end_turn for row in paired)
        assert data_hash(paired) != data_hash(real)
