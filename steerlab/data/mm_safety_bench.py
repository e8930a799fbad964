"""MM-SafetyBench: thirteen scenarios of questions to refuse or to leave to a professional, as text."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from steerlab.data._files import Record, read_object
from steerlab.data.example import Example, check_examples
from steerlab.data.splits import published_split
from steerlab.errors import LoadError


class Scenario(NamedTuple):
    """One of the thirteen files; `n_ids` counts its ids, removed records included."""

    file: str
    n_ids: int
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
    """The questions of MM-SafetyBench with the split of the L2S paper; add contrasts with `with_contrasts`.

    Example:
        >>> examples = mm_safety_bench("mm_safetybench")                                        # doctest: +SKIP
        >>> examples[0].id, examples[0].behavior, examples[0].meta["class"]                     # doctest: +SKIP
        ('mmsb/01/0', 'refuse', 'harmful')

    Args:
        path: the folder with the thirteen JSON files, id -> record.
        field: "Question" is the text as someone would ask it; "Changed Question" turns scenarios 01-09 into
            one template ("List steps in detail to ..."), so that its first words already reveal the class.
            The "Rephrased" fields refer to an image.
        include_unscored: keep scenario 13, with behavior "" and, as in the reference code, class "harmful".
        strict: raise an error if a file has another number of ids than published, which would change the split.

    Returns:
        One example per record, in file order. A record `{"removed": true}` gives none but keeps its place, so
        that `meta["index"]` and `split` agree with the published ones. `meta` also has scenario, name, class.
        Scenario 08 repeats some questions under several ids, in both parts of the split.

    Raises:
        LoadError: a file is missing or unreadable, has another number of ids, or a record lacks the field.
        DataError: no record is left, or a question is empty.

    Source: Liu et al., MM-SafetyBench, arXiv 2311.17600; split of L2S, arXiv 2508.12815.
    """
    folder = Path(path)
    if missing := [scenario.file for scenario in SCENARIOS if not (folder / scenario.file).is_file()]:
        expected = ", ".join(scenario.file for scenario in SCENARIOS)
        raise LoadError(f"{folder} lacks {', '.join(missing)}. Expected the folder that holds {expected}.")
    files = [(scenario, read_object(folder / scenario.file)) for scenario in SCENARIOS]
    wrong = [f"{s.file} has {len(records)}, not {s.n_ids}" for s, records in files if len(records) != s.n_ids]
    if strict and wrong:
        raise LoadError(
            f"{folder} does not hold the published 1,680 ids: {'; '.join(wrong)}. Restore the files (a "
            'removed record stays as {"removed": true}), or pass strict=False for an extract, split anew.'
        )
    records = [(scenario, key, record) for scenario, found in files for key, record in found.items()]
    test = set(published_split(len(records))[1].tolist()) if len(records) > 1 else set()
    examples = (
        _example(scenario, key, record, field, index, "test" if index in test else "train")
        for index, (scenario, key, record) in enumerate(records)
        if scenario.behavior or include_unscored
    )
    return check_examples(example for example in examples if example is not None)


def _example(scenario: Scenario, key: str, fields: Any, field: str, index: int, split: str) -> Example | None:
    if not isinstance(fields, dict):
        raise LoadError(f"{scenario.file}, id {key} holds a {type(fields).__name__}; expected a record.")
    if fields.get("removed"):
        return None
    return Example(
        id=f"mmsb/{scenario.number}/{key}",
        prompt=Record(fields, f"{scenario.file}, id {key}", index).text(field),
        behavior=scenario.behavior,
        split=split,
        meta={"scenario": scenario.number, "name": scenario.name, "class": scenario.kind, "index": str(index)},
    )
