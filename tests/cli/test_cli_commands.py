"""Every command: what it computes is what the library computes, and it says what it will do before it starts."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import pandas as pd
import pytest
import torch
from cli_pairs import PAIRS, TRAIN

import steerlab
from steerlab.cli.app import group
from steerlab.cli.inputs import make_method
from steerlab.methods import steerer_classes
from steerlab.testing import tiny_lm

Answer = Callable[..., Any]
TEXTS = [(one["positive"], one["negative"]) for one in PAIRS]
PROMPTS = [one["prompt"] for one in PAIRS]


def fitted(layers: Any = 2) -> Any:
    """The vector that `fit pairs.jsonl` gives."""
    return steerlab.MeanDifference(layers).fit(tiny_lm("llama"), steerlab.pairs(TEXTS, prompts=PROMPTS))


def test_commands_of_the_issue_are_there() -> None:
    from steerlab.cli import main

    assert main(["--version"]) == 0
    wanted = "chat capture fit generate sweep steerability similarity page show export push doctor positions run"
    assert set(group.commands) == set(wanted.split())


def test_help_is_shown_in_half_a_second_and_without_torch() -> None:
    code = (
        "import sys, steerlab.cli as c; c.main(['--help']); print(*({'torch', 'numpy', 'pandas'} & set(sys.modules)))"
    )
    begun = time.process_time(), os.times().children_user
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""
    assert os.times().children_user - begun[1] < 0.5, "seconds of the processor: the machine may be busy"


@pytest.mark.parametrize("name", sorted(group.commands))
def test_help_of_a_command_describes_each_option(name: str, run: Callable[..., Any]) -> None:
    status, shown, _ = run(name, "--help")
    assert status == 0 and all(getattr(one, "text", None) or one.help for one in group.commands[name].params)
    assert all(
        f"{one.name}".upper() + ":" in shown for one in group.commands[name].params if one.param_type_name == "argument"
    )


def test_fit_saves_the_vector_that_the_library_fits(answer: Answer, work: Path) -> None:
    found = answer("fit", "pairs.jsonl", "--layers", "2", "--out", "polite")
    assert found["folder"] == "polite" and found["method"] == "meandifference"
    loaded = steerlab.load_steerer("polite", steerlab.load("tiny"))
    torch.testing.assert_close(loaded.at(2), fitted().at(2), rtol=1e-4, atol=1e-5)


def test_capture_then_fit_of_its_folder_gives_the_same_vector(answer: Answer) -> None:
    found = answer("capture", "pairs.jsonl", "--layers", "1-2", "--out", "acts")
    assert found["sites"] == ["1", "2"] and found["rows"] == 9
    answer("fit", "--activations", "acts", "--layers", "2", "--out", "polite")
    torch.testing.assert_close(steerlab.load_steerer("polite").at(2), fitted().at(2), rtol=1e-4, atol=1e-5)


def test_fit_to_states_takes_the_split_train_as_fit_to_data_does(answer: Answer, work: Path) -> None:
    rows = [json.loads(line) for line in Path("pairs.jsonl").read_text().splitlines()]
    split = ["train" if i < len(rows) - 1 else "test" for i in range(len(rows))]
    lines = [json.dumps(row | {"split": part}) for row, part in zip(rows, split, strict=True)]
    Path("parts.jsonl").write_text("\n".join(lines))
    answer("capture", "parts.jsonl", "--layers", "2", "--out", "acts")
    for name, given in {"data": ["parts.jsonl"], "acts": ["--activations", "acts"]}.items():
        answer("fit", *given, "--layers", "2", "--out", f"of.{name}")
    answer("fit", "--activations", "acts", "--split", "train,test", "--layers", "2", "--out", "of.both")
    one, other, both = (steerlab.load_steerer(f"of.{name}").at(2) for name in ("data", "acts", "both"))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(one, both, rtol=1e-3)
    found = answer("similarity", "of.data", "of.acts", "--out", "cosines")["rows"]
    assert {name.partition(" at")[0] for row in found for name in (row["a"], row["b"])} == {"of.data", "of.acts"}


def test_generate_writes_the_texts_of_the_library_at_each_strength(answer: Answer, work: Path) -> None:
    answer("fit", "pairs.jsonl", "--layers", "2", "--out", "polite")
    rows = answer(
        "generate", *PROMPTS, "--steer", "polite", "--alphas", "0,3", "--max-new-tokens", "8", "--out", "texts"
    )["rows"]
    model = steerlab.load("tiny")
    for alpha in (0.0, 3.0):
        wanted = steerlab.generate(model, PROMPTS, steer=steerlab.load_steerer("polite"), alpha=alpha, max_new_tokens=8)
        assert [row["text"] for row in rows if row["alpha"] == alpha] == list(wanted)
    assert pd.read_csv("texts/texts.csv", keep_default_na=False)["prompt"].tolist() == PROMPTS * 2


def test_generate_projects_a_direction_out(answer: Answer) -> None:
    answer("fit", "pairs.jsonl", "--layers", "2", "--out", "polite")
    few = ("Hello there", "--steer", "polite", "--max-new-tokens", "8", "--alphas", "1", "--operator", "project_out")
    ablate = steerlab.methods.Operation(steerlab.load_steerer("polite"), "project_out")
    wanted = steerlab.generate(steerlab.load("tiny"), ["Hello there"], steer=ablate, max_new_tokens=8)
    assert answer("generate", *few)["rows"][0]["text"] == wanted[0]


def test_sweep_measures_what_the_library_measures_and_resumes(answer: Answer, run: Callable[..., Any]) -> None:
    arguments = (
        "sweep", "pairs.jsonl", "--train", "train.jsonl", "--layers", "1,2", "--alphas", "-1:1:1", "--out", "grid",
    )  # fmt: skip
    status, out, error = run(*arguments)
    assert status == 0 and "measure 6 settings on 3 inputs, into grid; about" in error and "largest mean" in out
    rows, train = (steerlab.examples(pd.DataFrame(one)) for one in (PAIRS, TRAIN))
    frame = steerlab.sweep(tiny_lm("llama"), rows, steerlab.MeanDifference(), [1, 2], [-1.0, 0.0, 1.0], train=train)
    assert pd.read_csv("grid/results.csv")["value"].tolist() == pytest.approx(frame["value"].tolist(), abs=1e-4)
    stages = {path: path.stat().st_mtime_ns for path in Path("grid").rglob("*.csv") if "stages" in path.parts}
    assert answer("run", "grid/study.yaml")["rows"][0]["layer"] == 1
    assert stages == {path: path.stat().st_mtime_ns for path in stages}, "nothing was computed again"


def test_steerability_reads_the_folder_of_a_sweep(answer: Answer, run: Callable[..., Any]) -> None:
    run("sweep", "pairs.jsonl", "--train", "train.jsonl", "--layers", "2", "--alphas=-1,0,1", "--out", "grid")
    of_folder = answer("steerability", "grid")["rows"]
    options = ("--train", "train.jsonl", "--layers", "2", "--alphas=-1,0,1")
    of_data = answer("steerability", "pairs.jsonl", *options)["rows"]
    assert of_folder[0]["steerability"] == pytest.approx(of_data[0]["steerability"]) and of_folder[0]["n"] == 3


def test_similarity_compares_vectors_layer_by_layer(answer: Answer) -> None:
    for name in ("mean", "pca"):
        answer("fit", "pairs.jsonl", "--layers", "1,2", "--method", name, "--out", name)
    mean, pca = (steerlab.load_steerer(name) for name in ("mean", "pca"))
    rows = answer("similarity", "mean", "pca")["rows"]
    assert [(row["a"], row["b"]) for row in rows] == [("mean at 1", "pca at 1"), ("mean at 2", "pca at 2")]
    assert [row["cosine"] for row in rows] == pytest.approx(mean.cosine(pca).tolist(), abs=1e-5)
    assert answer("similarity", "mean")["rows"][0]["b"] == "mean at 2", "of one folder, its layers"


def test_export_writes_what_other_tools_read(answer: Answer) -> None:
    answer("fit", "pairs.jsonl", "--layers", "1-3", "--method", "pca", "--out", "polite")
    answer("export", "polite", "--unit", "--out", "polite.gguf")
    tensors = {one.name: torch.tensor(one.data) for one in gguf.GGUFReader("polite.gguf").tensors}
    assert list(tensors) == ["direction.1", "direction.2", "direction.3"]
    assert all(float(one.norm()) == pytest.approx(1, abs=1e-5) for one in tensors.values())
    answer("export", "polite", "--to", "easysteer", "--alpha", "2", "--out", "polite.json")
    vector, alpha = steerlab.methods.from_easysteer(json.loads(Path("polite.json").read_text()))
    assert alpha == 2 and torch.equal(vector.at(2), steerlab.load_steerer("polite").at(2))


def test_push_to_a_hub_that_does_not_answer_is_one_line(run: Callable[..., Any], answer: Answer) -> None:
    answer("fit", "pairs.jsonl", "--layers", "2", "--out", "polite")
    status, out, error = run("push", "polite", "user/polite")
    assert status == 1 and not out and "could not be pushed to the hub" in error.splitlines()[-1]


def test_positions_as_json_name_the_tokens(answer: Answer) -> None:
    rows = answer("positions", "Hello", "--position", "last")["rows"]
    assert [row["last"] for row in rows] == [False] * (len(rows) - 1) + [True]


def test_doctor_as_json_lists_findings(answer: Answer) -> None:
    assert {one["group"] for one in answer("doctor", "tiny")["findings"]} == {"model"}


def test_a_dry_run_says_what_it_would_do_and_writes_nothing(run: Callable[..., Any], work: Path) -> None:
    before = sorted(work.rglob("*"))
    status, out, error = run("fit", "pairs.jsonl", "--out", "polite", "--dry-run")
    assert status == 0 and not out
    assert re.search(r"will fit .* to 3 inputs and save it in polite; about \d+ second", error)
    assert sorted(work.rglob("*")) == before


def test_every_method_is_made_by_the_beginning_of_its_name() -> None:
    needed = {"AdaSteer": ["rejection_layer=1", "harmfulness_layer=1"], "CONFST": ["target=refuse"]}
    for name, cls in steerer_classes().items():
        assert type(make_method(name.lower()[:6], "2", 4, needed.get(name, []))) is cls


@contextmanager
def ctrl_c_once(reached: Callable[[], bool]) -> Iterator[None]:
    """Press Ctrl-C when something is reached."""
    stopped = threading.Event()

    def interrupt() -> None:
        while not (reached() or stopped.is_set()):
            time.sleep(0.005)
        while not stopped.is_set():  # Python drops an interrupt that meets a finalizer: press again, as people do
            os.kill(os.getpid(), signal.SIGINT)
            stopped.wait(1)

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


# Ctrl-C can come when Python has opened a file and not yet given it to whoever closes it
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.nightly
def test_ctrl_c_keeps_the_states_that_fit_has_read(
    answer: Answer, run: Callable[..., Any], work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = [one | {"prompt": f"{one['prompt']} {number}"} for number in range(60) for one in PAIRS]
    Path("many.jsonl").write_text("\n".join(map(json.dumps, many)))
    arguments = ("many.jsonl", "--layers", "2", "--batch-size", "2")
    states = Path("polite.parts")
    with ctrl_c_once(lambda: len(list(states.glob("*.safetensors"))) > 2):
        status, out, error = run("fit", *arguments, "--out", "polite")
    assert status == 130 and not out and "are kept in polite.parts: the same call goes on from there" in error
    kept = sorted(states.glob("*.safetensors"))
    assert kept and not Path("polite/manifest.json").exists()
    status, out, error = run("fit", "many.jsonl", "--layers", "3", *arguments[3:], "--out", "polite")
    left = (
        "polite.parts holds what a stopped call with other data or options has left: delete it, or give another --out"
    )
    assert status == 1 and error.splitlines()[-1] == f"steerlab: {left}"
    written = {path: path.stat().st_mtime_ns for path in kept}
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", lambda folder, **_: None)
        answer("run", "polite/study.yaml")
    assert written == {path: path.stat().st_mtime_ns for path in kept}, "nothing was read again"
    answer("run", "polite/study.yaml")
    answer("fit", *arguments, "--out", "at_once")
    assert not states.exists()
    assert torch.equal(steerlab.load_steerer("polite").at(2), steerlab.load_steerer("at_once").at(2))


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_ctrl_c_keeps_finished_batches_and_says_how_to_go_on(
    answer: Answer, run: Callable[..., Any], work: Path
) -> None:
    prompts = [f"Prompt {number}" for number in range(300)]
    Path("many.txt").write_text("\n".join(prompts))
    arguments = ("generate", "--data", "many.txt", "--batch-size", "4", "--max-new-tokens", "8", "--out", "texts")
    with ctrl_c_once(lambda: bool(list(work.glob("texts/stages/texts-*.csv")))):
        status, out, error = run(*arguments)
    assert status == 130 and not out
    kept = re.search(
        r"steerlab: stopped. (\d+) of 75 batches are kept in texts: the same call goes on from there", error
    )
    assert kept and 1 <= int(kept[1]) < 75
    finished = {path: path.stat().st_mtime_ns for path in work.glob("texts/stages/texts-*.csv")}
    rows = answer("run", "texts/study.yaml")["rows"]
    assert finished == {path: path.stat().st_mtime_ns for path in finished}, "kept, not written again"
    assert [row["text"] for row in rows[:8]] == list(
        steerlab.generate(steerlab.load("tiny"), prompts[:8], max_new_tokens=8)
    )
