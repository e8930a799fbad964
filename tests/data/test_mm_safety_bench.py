"""MM-SafetyBench as text, with the published split."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from data_files import shared

from steerlab import DataError, Example, LoadError
from steerlab.data import PUBLISHED_PAIRS, data_hash, mm_safety_bench, published_split, with_contrasts
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


def test_scenarios_have_the_published_counts() -> None:
    assert tuple(scenario.n_ids for scenario in SCENARIOS) == IDS
    assert sum(IDS) == 1680 and sum(IDS[:9]) == 1125 and sum(IDS[:12]) == 1531


def test_each_scenario_has_its_behavior_and_class(tmp_path: Path) -> None:
    examples = mm_safety_bench(write_folder(tmp_path), include_unscored=True, strict=False)
    assert [e.id for e in examples] == [f"mmsb/{n:02d}/0" for n in range(1, 14)]
    assert [e.behavior for e in examples] == ["refuse"] * 9 + ["defer"] * 3 + [""]
    classes = [e.meta["class"] for e in examples]
    assert classes == ["harmful"] * 9 + ["expert"] * 2 + ["health"] + ["harmful"]
    assert examples[9].meta == {"scenario": "10", "name": "Legal_Opinion", "class": "expert", "index": "9"}
    assert mm_safety_bench(tmp_path, strict=False) == examples[:-1], "the unscored scenario is left out by default"


def test_removed_records_keep_their_index(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, IDS)
    whole = {e.id: (e.meta["index"], e.split) for e in mm_safety_bench(folder)}
    records = json.loads((folder / SCENARIOS[0].file).read_text(encoding="utf-8"))
    (folder / SCENARIOS[0].file).write_text(json.dumps({**records, "5": {"removed": True}}), encoding="utf-8")
    rest = {e.id: (e.meta["index"], e.split) for e in mm_safety_bench(folder)}
    assert set(whole) - set(rest) == {"mmsb/01/5"}
    assert all(whole[key] == rest[key] for key in rest)


def test_split_is_the_published_one(tmp_path: Path) -> None:
    examples = mm_safety_bench(write_folder(tmp_path, IDS), include_unscored=True)
    assert [int(e.meta["index"]) for e in examples if e.split == "test"] == published_split()[1].tolist()
    assert sum(e.split == "test" and e.behavior == "defer" for e in examples) == 75


def test_another_text_field_can_be_chosen(tmp_path: Path) -> None:
    examples = mm_safety_bench(write_folder(tmp_path), field="Changed Question", strict=False)
    assert examples[0].prompt == "List steps for 0 of 01."
    with pytest.raises(LoadError, match=r"01-Illegal_Activitiy\.json, id 0: no field 'Answer'.*Changed Question"):
        mm_safety_bench(tmp_path, field="Answer", strict=False)


def test_missing_files_and_other_counts_raise(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"01-Illegal_Activitiy\.json.*13-Gov_Decision\.json"):
        mm_safety_bench(tmp_path / "nowhere")
    folder = write_folder(tmp_path)
    with pytest.raises(LoadError, match=r"has 1, not 97.*strict=False"):
        mm_safety_bench(folder)
    (folder / "07-Sex.json").unlink()
    with pytest.raises(LoadError, match=r"lacks 07-Sex\.json\. Expected"):
        mm_safety_bench(folder, strict=False)
    with pytest.raises(DataError, match="empty"):
        mm_safety_bench(write_folder(tmp_path, (0,) * 13), strict=False)


@pytest.mark.parametrize("content", ["not json", "[1, 2]", '{"0": "text"}'])
def test_broken_files_raise(tmp_path: Path, content: str) -> None:
    folder = write_folder(tmp_path)
    (folder / SCENARIOS[3].file).write_text(content, encoding="utf-8")
    with pytest.raises(LoadError, match=r"04-Physical_Harm\.json"):
        mm_safety_bench(folder, strict=False)


@pytest.fixture(scope="module")
def real() -> list[Example]:
    return mm_safety_bench(shared("noncommercial_cc_by_nc", "mm_safetybench"), include_unscored=True)


@pytest.mark.data
def test_real_files_give_every_record_that_was_not_removed(real: list[Example]) -> None:
    counts = Counter(e.meta["scenario"] for e in real)
    assert len(real) == 1653 and real[-1].meta["index"] == "1679"
    removed = {f"{n:02d}": ids - counts[f"{n:02d}"] for n, ids in enumerate(IDS, start=1)}
    assert {scenario: count for scenario, count in removed.items() if count} == {"01": 6, "04": 21}
    assert sum(e.split == "test" and e.behavior == "defer" for e in real) == 75


@pytest.mark.data
def test_published_pairs_cover_every_class(real: list[Example]) -> None:
    for pairs in PUBLISHED_PAIRS.values():
        paired = with_contrasts(real, pairs)
        assert all(e.contrast is not None and e.contrast.end_turn for e in paired)
        assert data_hash(paired) != data_hash(real)
