"""What users write for data, layers and strengths; the wrong thing is refused in one line, with what was meant."""

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from cli_pairs import PAIRS
from PIL import Image
from saved import tiny_folder

import steerlab
from steerlab import Site
from steerlab._support.yaml_text import load_yaml
from steerlab.cli.inputs import (
    Choice,
    parse_layers,
    parse_metrics,
    parse_numbers,
    parse_positions,
    read_data,
    read_steerers,
    readers,
)
from steerlab.cli.job import write_csv
from steerlab.errors import DataError, LoadError, SteeringError
from steerlab.models.positions import Match

Run = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".yaml", ".csv", ".tsv"])
def test_each_kind_of_file_gives_the_same_examples(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"pairs{suffix}"
    if suffix in (".csv", ".tsv"):
        pd.DataFrame(PAIRS).to_csv(path, index=False, sep="," if suffix == ".csv" else "\t")
    else:
        path.write_text("\n".join(map(json.dumps, PAIRS)) if suffix == ".jsonl" else json.dumps(PAIRS))
    assert read_data(str(path)) == steerlab.examples(pd.DataFrame(PAIRS))


def test_prompts_pairs_and_images_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Hello\n\nHow are you?\n")
    assert [one.prompt for one in read_data(str(tmp_path / "a.txt"))] == ["Hello", "How are you?"]
    (tmp_path / "a.text").write_text("Hello\n")
    with pytest.raises(DataError, match=r"ends in \.text: expected one of \.jsonl"):
        read_data(str(tmp_path / "a.text"))
    assert load_yaml("[0:1:0.5, yes, 007, 12, -0.5, true, 2024-01-01, null]") == [
        "0:1:0.5", "yes", "007", 12, -0.5, True, "2024-01-01", None
    ]  # fmt: skip
    (tmp_path / "b.yaml").write_text("- [I love it, I hate it]\n")
    assert read_data(str(tmp_path / "b.yaml")) == steerlab.pairs([("I love it", "I hate it")])
    (tmp_path / "g.csv").write_text("positive,negative\nI love it,I hate it\n")
    assert read_data(str(tmp_path / "g.csv")) == steerlab.pairs([("I love it", "I hate it")])
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")
    (tmp_path / "c.jsonl").write_text('{"prompt": "What is it?", "images": ["x.png"]}\n{"prompt": "Hi"}\n')
    assert read_data(str(tmp_path / "c.jsonl"))[0].images == (tmp_path / "x.png",)
    assert read_data(str(tmp_path / "c.jsonl"))[1].images == ()
    (tmp_path / "e.csv").write_text("id,prompt,images,system\n007,What is it?,x.png,\n010,Hello,,Be brief.\n")
    found = read_data(str(tmp_path / "e.csv"))
    assert [(one.id, len(one.images), one.system) for one in found] == [("007", 1, None), ("010", 0, "Be brief.")]
    write_csv(pd.DataFrame({"text": ["a\rb", "c"]}), tmp_path / "f.csv")
    assert pd.read_csv(tmp_path / "f.csv", lineterminator="\n")["text"].tolist() == ["a\rb", "c"]
    pd.DataFrame({"ask": ["Is it late?"], "yes": ["Arr"], "no": ["No"]}).to_csv(tmp_path / "d.CSV", index=False)
    with pytest.raises(DataError, match=r"no column 'prompt', but 'ask', 'yes', 'no'.*--columns"):
        read_data(str(tmp_path / "d.CSV"))
    named = read_data(str(tmp_path / "d.CSV"), Choice(columns="prompt=ask,positive=yes,negative=no"))
    assert named[0].contrast == steerlab.Contrast("Arr", "No")


def test_built_in_sets_and_readers_are_read_by_name(tmp_path: Path) -> None:
    assert read_data("demo", Choice("train", 2)) == [
        one for group in ("refuse", "defer", "answer")
        for one in [e for e in steerlab.data.demo_set() if (e.split, e.behavior) == ("train", group)][:2]
    ]  # fmt: skip
    assert read_data("xstest") == steerlab.data.xstest()
    assert {"mwe", "nlvr", "vlguard", "mm_safety_bench", "expert_questions"} <= set(readers())
    with pytest.raises(LoadError, match="expected mwe:PATH:NAME"):
        read_data("mwe:folder")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("dmeo", "did you mean demo"), ("nowhere.jsonl", "there is no file"), ("bad.jsonl", "line 2 is no JSON"),
        ("dict.json", "it holds a dict"), ("comma.csv", "more fields than its first line"),
    ],
)  # fmt: skip
def test_wrong_data_is_refused_with_what_is_possible(tmp_path: Path, monkeypatch, given: str, words: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.jsonl").write_text('{"prompt": "a"}\nx\n')
    Path("dict.json").write_text("{}")
    Path("comma.csv").write_text("prompt\nHello, friend\nGoodbye, friend\n")
    with pytest.raises((LoadError, DataError), match=words):
        read_data(given)


def test_layers_strengths_and_positions_are_parsed() -> None:
    assert parse_layers("3,8-10,-1", 30) == [3, 8, 9, 10, 29] and parse_layers("all", 3) == [0, 1, 2]
    assert parse_layers("27-", 30) == [27, 28, 29]
    assert parse_layers("16.attn_out", 30) == [Site(16, "attn_out")]
    assert parse_numbers("-1:1:0.5") == [-1, -0.5, 0, 0.5, 1] and parse_numbers("0,0.3") == [0, 0.3]
    assert parse_numbers("0:0.3:0.1") == [0, 0.1, 0.2, 0.3]
    assert parse_positions("last,-2,match:Python") == ["last", -2, Match("Python")]
    (metric,) = parse_metrics("is_refusal").values()
    assert metric([], ["I'm sorry, I can't help with that."]) == [1.0]
    for call in (lambda: parse_layers("x", 3), lambda: parse_numbers("1..2"), lambda: parse_numbers("0:1:0")):
        with pytest.raises(SteeringError, match="expected"):
            call()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("generat Hi", "did you mean generate?"), ("fit pairs.jsonl --otu x", "--out"),
        ("generate pairs.jsonl", "give it as --data pairs.jsonl"),
        ("fit pairs.jsonl --out x --method maen", "did you mean meandifference?"),
        ("fit pairs.jsonl --out x --set behaviour=a", "did you mean behaviors?"),
        ("fit pairs.jsonl --out x --method adasteer", "needs rejection_layer and harmfulness_layer"),
        ("fit pairs.jsonl --out x --method l2s --layers all", "steers one layer"),
        ("fit pairs.jsonl --out x --layers 40", "the model has 4 decoder blocks"),
        ("fit --out x", "needs data, or --activations"), ("sweep pairs.jsonl", "give --train FILE"),
        ("sweep demo --metric refusal", "did you mean is_refusal?"),
        ("fit --activations acts --limit 3 --out x", "give them to capture"),
        ("sweep pairs.jsonl --layers 3,8-5 --train pairs.jsonl --out x", "'8-5' goes down"),
        ("sweep pairs.jsonl --alphas 0,1:0:0.25 --train pairs.jsonl --out x", "has the part '1:0:0.25'"),
        ("generate Hi --steer nowhere", "there is no vector 'nowhere': give a folder that steerlab fit wrote"),
        ("generate Hi --batch-size 0", "'--batch-size'"),
        ("generate Hi --alphas 0,5", "--alphas says how to steer, and there is no --steer VECTOR"),
        ("generate Hi --dtype flot32", "expected the name of a dtype of torch"),
        ("fit pairs.jsonl --out x --set layers=3", "give it as --layers 3"),
        ("fit pairs.jsonl --out x --set behaviors=[", "the value is no YAML"),
        ("fit pairs.jsonl --out x --layers -99", "there is no layer -99"),
        ("fit demo --columns prompt=x --out x", "demo is none"), ("fit xstest --out x", "has no answers to compare"),
        ("sweep pairs.jsonl --train pairs.jsonl --alphas 0", "there is no strength but 0"),
        ("doctor tiny --remote http://127.0.0.1:9", "leave one of them out"),
        ("export nowhere --to vllm --out x", "expected one of gguf, vllm-lens"),
        ("run nowhere.yaml", "there is no file nowhere.yaml"), ("page", "Missing argument 'DATA'"),
        ("show", "Missing argument 'MODEL'"), ("chat", "Missing argument 'VECTORS...'"),
    ],
)  # fmt: skip
def test_the_wrong_thing_first_is_one_line_and_a_status(run: Run, line: str, words: str) -> None:
    status, out, error = run(*line.split())
    last = error.splitlines()[-1]
    assert status in (1, 2) and not out
    assert last.startswith("steerlab: ") and words in last and "Traceback" not in error


def test_vectors_of_one_name_stay_two_and_one_given_twice_is_refused(tmp_path: Path) -> None:
    places = [str(tmp_path / "runs" / "refusal"), str(tmp_path / "refusal")]
    for place, size in zip(places, (1.0, 2.0), strict=True):
        steerlab.SteeringVector({1: torch.full((32,), size)}).save_pretrained(place)
    for order in (places, places[::-1]):
        found = read_steerers(order)
        assert {name: float(one.directions[Site(1)][0]) for name, one in found.items()} == {
            places[0]: 1.0,
            places[1]: 2.0,
        }
    with pytest.raises(SteeringError, match="is given twice"):
        read_steerers([places[0], places[0]])


def test_a_vector_of_another_model_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("fit", "pairs.jsonl", "--out", "polite")[0] == 0
    tiny_folder(Path("wide"), hidden_size=64)
    status, out, error = run("generate", "Hi", "--steer", "polite", "--model", "wide")
    assert status == 1 and not out and "hidden_size 32; the model given has 64" in error.splitlines()[-1]
