"""`page` and `show` give what `steerlab.live` gives."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import steerlab
from steerlab.cli.inputs import read_data

pytest.importorskip("steerlab.live", reason="the room of live pages is not there")


@pytest.mark.filterwarnings("ignore:without steering")  # a random model writes no words
def test_page_is_the_page_of_the_library(answer: Callable[..., Any], work: Path) -> None:
    from steerlab.live import page_of

    answer("fit", "train.jsonl", "--layers", "2", "--out", "polite")
    few = ("--alphas", "0,1", "--max-new-tokens", "4")
    assert answer("page", "pairs.jsonl", "--steer", "polite", *few, "--out", "x.html")["file"] == "x.html"
    steerers = {"polite": steerlab.load_steerer("polite")}
    made = page_of(steerlab.load("tiny"), read_data("pairs.jsonl"), steerers, alphas=[0, 1], max_new_tokens=4)
    made.save("y.html")
    assert Path("x.html").read_bytes() == Path("y.html").read_bytes() and Path("x.yaml").exists()


def test_show_on_a_port_in_use_is_one_line(run: Callable[..., Any], answer: Callable[..., Any]) -> None:
    answer("fit", "train.jsonl", "--layers", "2", "--out", "polite")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        status, out, error = run("show", "tiny", "polite", "--port", port, "--no-open-browser")
    assert status == 1 and not out and port in error.splitlines()[-1]
