"""`page` and `show` give what `steerlab.live` gives."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import steerlab
from steerlab.cli.inputs import read_data


@pytest.mark.filterwarnings("ignore:without steering")  # a random model writes no words
def test_page_is_the_page_of_the_library(answer: Callable[..., Any], work: Path) -> None:
    from steerlab.live import page_of

    answer("fit", "train.jsonl", "--layers", "2", "--out", "polite")
    few = ("--alphas", "0,1", "--max-new-tokens", "4")
    assert answer("page", "pairs.jsonl", "--steer", "polite", *few, "--out", "x.html")["file"] == "x.html"
    steerers = {"polite": steerlab.load_steerer("polite")}
    made = page_of(steerlab.load("tiny"), read_data("pairs.jsonl"), steerers, alphas=[0.0, 1.0], max_new_tokens=4)
    made.save("y.html")
    assert Path("x.html").read_bytes() == Path("y.html").read_bytes() and Path("x.html.study.yaml").exists()
    assert not Path("x.html.parts").exists()


@pytest.mark.filterwarnings("ignore:without steering")
def test_page_goes_on_with_the_texts_that_a_stop_left(answer: Callable[..., Any], work: Path) -> None:
    from steerlab.live import page_of

    answer("fit", "train.jsonl", "--layers", "1-2", "--out", "polite")
    steerers = {"polite": steerlab.load_steerer("polite")}
    options: Any = {"alphas": [0.0, 1.0], "layers": [2], "max_new_tokens": 4, "progress": False}
    page_of(steerlab.load("tiny"), read_data("pairs.jsonl"), steerers, folder="x.html.parts", **options)
    kept = {path: path.stat().st_mtime_ns for path in Path("x.html.parts/stages").iterdir()}
    seen: list[dict[Path, int]] = []

    def note(*_: Any, **__: Any) -> None:
        seen.append({path: path.stat().st_mtime_ns for path in kept})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shutil.rmtree", note)
        answer("page", "pairs.jsonl", "--steer", "polite", "--alphas", "0,1", "--layers", "2", "--max-new-tokens", "4",
               "--out", "x.html")  # fmt: skip
    assert seen == [kept], "nothing was written again"


def test_page_of_a_layer_without_a_vector_is_refused_before_it_is_begun(run: Callable[..., Any], answer) -> None:
    answer("fit", "train.jsonl", "--layers", "1-2", "--out", "polite")
    status, out, error = run("page", "pairs.jsonl", "--steer", "polite", "--layers", "2-3", "--out", "x.html")
    assert status == 1 and not out and not Path("x.html.study.yaml").exists()
    assert error.splitlines()[-1] == "steerlab: --layers 2-3: polite is fitted at layer 1, 2, not at 3"
    assert run("page", "pairs.jsonl", "--steer", "polite", "--layers", "-2", "--dry-run")[0] == 0, "layer 2 of 4"


def test_map_without_a_vector_is_refused(run: Callable[..., Any]) -> None:
    status, _, error = run("show", "tiny", "--map")
    assert status == 1 and error.splitlines()[-1] == "steerlab: --map needs a vector: steerlab show MODEL VECTOR --map"


def test_show_on_a_port_in_use_is_one_line(run: Callable[..., Any], answer: Callable[..., Any]) -> None:
    answer("fit", "train.jsonl", "--layers", "2", "--out", "polite")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for flags in ([], ["--map"]):
            status, out, error = run("show", "tiny", "polite", "--port", port, "--no-open-browser", *flags)
            assert status == 1 and not out and port in error.splitlines()[-1]
    assert not list(Path("results").glob("show-*/")), "no map was written for it"
