"""Study files: each command writes one that repeats it; keys, commands and values that are wrong are refused."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from steerlab.cli.app import group
from steerlab.cli.study import key_of, read_study

Run = Callable[..., tuple[int, str, str]]


def test_a_study_repeats_its_command_with_every_option_explained(run: Run) -> None:
    first = run(
        "fit", "pairs.jsonl", "--method", "pca", "--set", "behaviors=['']", "--layers", "1,2", "--out", "polite"
    )
    text = Path("polite/study.yaml").read_text()
    study = yaml.safe_load(text)
    params = {key_of(one): one for one in group.commands["fit"].params}
    assert set(study) == {"command", *params} - {"json", "dry_run", "study", "help"}
    texts = {key: getattr(one, "text", None) or one.help for key, one in params.items() if key in study}
    assert all(re.search(rf"(?m)^{key}: .*  # {re.escape(said)}$", text) for key, said in texts.items())
    assert study["layers"] == "1,2" and study["set"] == ["behaviors=['']"] and study["model"] == "tiny"
    files = {path.name: path.read_bytes() for path in Path("polite").iterdir()}
    status, out, _ = run("run", "polite/study.yaml")
    assert (status, out) == (first[0], first[1])
    assert files == {path.name: path.read_bytes() for path in Path("polite").iterdir()}


@pytest.mark.parametrize("command", [("positions", "Hello"), ("doctor", "tiny")])
def test_commands_that_only_look_can_be_repeated_too(run: Run, command: tuple[str, ...]) -> None:
    status, out, error = run(*command)
    assert status == 0 and not Path("results").exists() and "steerlab will" in error
    assert run(*command, "--study", "mine.yaml")[:2] == (0, out)
    assert run("run", "mine.yaml")[:2] == (0, out) and not Path("results").exists()


def test_a_folder_of_another_study_keeps_its_study_file(run: Run) -> None:
    for command in (["capture", "pairs.jsonl", "--layers", "1"], ["generate", "Hello", "--max-new-tokens", "2"]):
        assert run(*command, "--out", "kept")[0] == 0
        study = Path("kept/study.yaml").read_text()
        status, _, error = run(*command[:-1], "3", "--out", "kept")
        assert status == 1 and "kept" in error.splitlines()[-1]
        assert Path("kept/study.yaml").read_text() == study and run("run", "kept/study.yaml")[0] == 0
        shutil.rmtree("kept")


def test_a_study_file_replaces_nothing_else(run: Run) -> None:
    fit = ("fit", "pairs.jsonl", "--out", "polite", "--layers")
    assert run(*fit, "2")[0] == 0 and run(*fit, "2")[0] == 0
    kept = {path: path.read_bytes() for path in Path("polite").iterdir()}
    for command, words in (
        ([*fit, "1"], "fitted with other options (layers: '2' there, '1' now)"),
        (["generate", "Hi", "--steer", "polite", "--out", "polite"], "is no study file of generate"),
        (["generate", "Hi", "--study", "pairs.jsonl"], "is no study file of generate"),
    ):
        status, _, error = run(*command)
        assert status == 1 and words in error.splitlines()[-1]
    assert kept == {path: path.read_bytes() for path in Path("polite").iterdir()}


def test_a_list_of_commands_is_planned_before_its_first_step_has_run(run: Run) -> None:
    steps = [{"command": "fit", "data": "pairs.jsonl", "layers": 2, "out": "polite"},
             {"command": "generate", "prompts": ["Hi"], "steer": ["polite"], "out": "texts"},
             {"command": "export", "vector": "polite", "out": "polite.gguf"}]  # fmt: skip
    Path("steps.yaml").write_text(yaml.safe_dump(steps))
    status, _, error = run("run", "steps.yaml", "--dry-run")
    said = [f"then {name}, with polite of an earlier step" for name in ("generate", "export")]
    assert status == 0 and error.splitlines()[-2:] == said


def test_values_may_be_written_as_yaml_has_them(run: Run) -> None:
    assert run("fit", "pairs.jsonl", "--layers", "2", "--out", "polite")[0] == 0
    study = {
        "command": "generate", "prompts": "Hello there", "steer": ["polite"], "alphas": [-1, 0, 0.5],
        "max-new-tokens": 4, "out": "texts",
    }  # fmt: skip
    Path("mine.yaml").write_text(yaml.safe_dump(study))
    status, out, error = run("run", "mine.yaml", "--json")
    assert status == 0, error
    assert [row["alpha"] for row in json.loads(out)["rows"]] == [-1, 0, 0.5]
    assert not Path("texts/study.yaml").exists(), "the file that is run is the study"


def test_a_list_of_commands_is_run_in_order_until_one_fails(run: Run) -> None:
    steps = [
        {"command": "fit", "data": "pairs.jsonl", "layers": 2, "out": "polite", "set": {"behaviors": None}},
        {"command": "similarity", "vectors": ["polite"]},
        {"command": "export", "vector": "polite", "unit": True, "out": "polite.gguf"},
    ]
    Path("steps.yaml").write_text(yaml.safe_dump(steps))
    status, _, error = run("run", "steps.yaml")
    assert status == 1 and "nothing to compare" in error
    assert Path("polite/manifest.json").exists() and not Path("polite.gguf").exists()
    Path("steps.yaml").write_text(yaml.safe_dump([steps[0], steps[2]]))
    assert run("run", "steps.yaml")[0] == 0 and Path("polite.gguf").exists()


@pytest.mark.parametrize(
    ("study", "words"),
    [
        ({"command": "sweep", "alhpas": [1]}, ["alhpas", "did you mean alphas?"]),
        ({"command": "swep"}, ["'swep'", "did you mean sweep?"]),
        ({"command": "generate", "prompts": ["Hi"], "max_new_tokens": "many"}, ["max-new-tokens", "'many'"]),
        ({"command": "fit", "data": "pairs.jsonl"}, ["--out"]),
        ({"comand": "fit"}, ["no line such as `command: sweep`"]),
        ("fit", ["no line such as"]),
    ],
)
def test_wrong_studies_are_refused_in_one_line(run: Run, study: Any, words: list[str]) -> None:
    Path("wrong.yaml").write_text(yaml.safe_dump(study))
    status, out, error = run("run", "wrong.yaml", "--json")
    assert status in (1, 2) and not out
    (line,) = error.splitlines()
    assert line.startswith("steerlab: ") and all(word in line for word in words), line


@pytest.mark.parametrize("text", ["no", "1e3", "-1", "a: b # c", "'\"\n\t", "ä 🙂", "\u2028", ""])
def test_texts_of_a_study_come_back_as_they_were(run: Run, text: str) -> None:
    Path("pairs.jsonl").write_text(json.dumps({"prompt": "x"}))
    status, _, _ = run("generate", "--out", "texts", "--max-new-tokens", "2", "--data", "pairs.jsonl", "--columns", "")
    assert status == 0
    study = yaml.safe_load(Path("texts/study.yaml").read_text()) | {"data": None, "prompts": [text]}
    Path("again.yaml").write_text(yaml.safe_dump(study, allow_unicode=True))
    (line,) = read_study("again.yaml", group.commands)
    assert line[-2:] == ["--", text]
