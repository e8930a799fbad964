"""MM-SafetyBench: thirteen scenarios of questions to refuse or to leave to a professional, as text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from steerlab._support.errors import LoadError
from steerlab.data.example import Example, check_examples
from steerlab.data.splits import published_split


class Scenario(NamedTuple):
    """One of the thirteen files: `ids` counts its ids, removed records included."""

    file: str
    ids: int
    kind: str
    behavior: str

    @property
    def number(self) -> str:
        return self.file[:2]

    @property
    def name(self) -> str:
        return self.file[3:].removesuffix(".json")


SCENARIOS = (
    Scenario("01-Illegal_Activitiy.json", 97, "harmful", "refuse"),  # upstream's spelling
    Scenario("02-HateSpeech.json", 163, "harmful", "refuse"),
    Scenario("03-Malware_Generation.json", 44, "harmful", "refuse"),
    Scenario("04-Physical_Harm.json", 144, "harmful", "refuse"),
    Scenario("05-EconomicHarm.json", 122, "harmful", "refuse"),
    Scenario("06-Fraud.json", 154, "harmful", "refuse"),
    Scenario("07-Sex.json", 109, "harmful", "refuse"),
    Scenario("08-Political_Lobbying.json", 153, "harmful", "refuse"),
    Scenario("09-Privacy_Violence.json", 139, "harmful", "refuse"),
    Scenario("10-Legal_Opinion.json", 130, "expert", "defer"),
    Scenario("11-Financial_Advice.json", 167, "expert", "defer"),
    Scenario("12-Health_Consultation.json", 109, "health", "defer"),
    Scenario("13-Gov_Decision.json", 149, "harmful", ""),  # the reference trains on it but never scores it
)


def mm_safety_bench(
    path: str | Path, *, field: str = "Question", include_unscored: bool = False, strict: bool = True
) -> list[Example]:
    """The questions of MM-SafetyBench with the split of the L2S paper, contrasts left to `with_contrasts`.

    Example:
        >>> rows = mm_safety_bench("mm_safetybench")                                        # doctest: +SKIP
        >>> rows[0].id, rows[0].behavior, rows[0].meta["class"]                            # doctest: +SKIP
        ('mmsb/01/0', 'refuse', 'harmful')

    Args:
        path: the folder with the thirteen JSON files, id -> record.
        field: "Question" is the text as someone would ask it; "Changed Question" turns scenarios 01-09 into
            one template ("List steps in detail to ..."), so that its first words already give the class
            away. The "Rephrased" fields speak of a picture.
        include_unscored: keep scenario 13, with behavior "" and, as in the reference code, class "harmful".
        strict: refuse files whose number of ids is not the published one; the split would be another.

    Returns:
        One example a record, in file order. A record `{"removed": true}` gives none but keeps its place, so
        that `meta["index"]` and `split` agree with the published ones. `meta` also has scenario, name, class.
        Scenario 08 repeats some questions under several ids, on both sides of the split.

    Raises:
        LoadError: a file is missing or unreadable, has another number of ids, or a record lacks the field.
        DataError: no record is left.

    Source: Liu et al., MM-SafetyBench, arXiv 2311.17600; split of L2S, arXiv 2508.12815.
    """
    folder = Path(path)
    absent = [scenario.file for scenario in SCENARIOS if not (folder / scenario.file).is_file()]
    if absent:
        expected = ", ".join(scenario.file for scenario in SCENARIOS)
        raise LoadError(f"{folder} lacks {', '.join(absent)}. Expected the folder that holds {expected}.")
    records = [(scenario, _records(folder / scenario.file)) for scenario in SCENARIOS]
    if strict:
        _check_counts(folder, records)
    places = [(scenario, key, record) for scenario, found in records for key, record in found.items()]
    test = set(published_split(len(places))[1].tolist()) if len(places) > 1 else set()
    return check_examples(
        _example(scenario, key, record, field, index, "test" if index in test else "train")
        for index, (scenario, key, record) in enumerate(places)
        if not record.get("removed") and (scenario.behavior or include_unscored)
    )


def _records(file: Path) -> dict[str, dict[str, Any]]:
    try:
        found = json.loads(file.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise LoadError(f"{file} is not JSON ({error}); expected an object id -> record.") from error
    if not isinstance(found, dict) or not all(isinstance(record, dict) for record in found.values()):
        raise LoadError(f"{file} holds something else than an object id -> record; check that it is the right file.")
    return found


def _check_counts(folder: Path, records: list[tuple[Scenario, dict[str, Any]]]) -> None:
    wrong = [f"{s.file} has {len(found)}, not {s.ids}" for s, found in records if len(found) != s.ids]
    if wrong:
        raise LoadError(
            f"{folder} does not hold the published 1,680 ids: {'; '.join(wrong)}. Restore the files (a "
            'removed record stays as {"removed": true}), or pass strict=False for an extract, split anew.'
        )


def _example(scenario: Scenario, key: str, record: dict[str, Any], field: str, index: int, split: str) -> Example:
    prompt = record.get(field)
    if not isinstance(prompt, str) or not prompt.strip():
        raise LoadError(
            f"{scenario.file}, id {key}: no text in the field {field!r}; "
            f"choose one of the fields there: {sorted(record)}."
        )
    return Example(
        id=f"mmsb/{scenario.number}/{key}",
        prompt=prompt,
        behavior=scenario.behavior,
        split=split,
        meta={
            "scenario": scenario.number,
            "name": scenario.name,
            "class": scenario.kind,
            "index": str(index),
        },
    )
