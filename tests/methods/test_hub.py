"""`push_to_hub` and `from_pretrained` against a hub of this process, by huggingface_hub's own client."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_server import running_hub

from steerlab.methods import SteeringVector

CLIENT = """
import json, sys
import pandas as pd
import torch
import steerlab
from steerlab import Activations, SteeringVector
from steerlab.errors import LoadError, StorageError
from steerlab.methods import LinearProbe, load_detector

def refused(call, kind, *words):
    try:
        call()
    except kind as error:
        assert all(word in str(error) for word in words), error
    else:
        raise AssertionError("it was not refused")

vector = SteeringVector({2: torch.arange(4.0), 5: torch.ones(4)})
url = vector.push_to_hub("user/polite", token="hf_x", private=True)
assert "/user/polite/commit/" in url, url
for read in (steerlab.load_steerer, SteeringVector.from_pretrained):
    assert torch.equal(read("user/polite", token="hf_x").at(2), vector.at(2))
(2 * vector).save_pretrained("here", push_to_hub=True, repo_id="user/polite", token="hf_x")
assert torch.equal(steerlab.load_steerer("user/polite").at(5), 2 * vector.at(5))
refused(lambda: load_detector("user/polite"), Exception, "holds a SteeringVector, expected a Detector")
refused(lambda: steerlab.load_steerer("user/other"), LoadError, "'user/other' is no folder here", "hf auth login")

index = dict(example_id=["a", "b"], side="prompt", position="last", behavior=["x", "y"], split="", column=0)
index |= dict(token=1, n_tokens=1)
acts = Activations(torch.randn(2, 1, 4), pd.DataFrame(index), (steerlab.Site(3),), {"model": "m"})
acts.push_to_hub("user/acts", token="hf_x")
back = Activations.from_pretrained("user/acts")
assert torch.equal(back.values, acts.values) and back.index.equals(acts.index) and back.sites == acts.sites
print("all as it should be")
"""


def test_what_is_pushed_to_the_hub_is_read_from_there(tmp_path: Path) -> None:
    repositories: dict[str, dict[str, bytes]] = {}
    with running_hub(repositories) as address:
        environment = os.environ | {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        run = subprocess.run(
            [sys.executable, "-c", CLIENT], capture_output=True, text=True, cwd=tmp_path, env=environment
        )
    assert run.stdout.endswith("all as it should be\n"), run.stderr[-3000:]
    assert set(repositories) == {"user/polite", "user/acts"}
    card = repositories["user/polite"]["README.md"].decode()
    assert "library_name: steerlab" in card and "steering-vectors" in card and "| sites | 2, 5 |" in card
    assert "manifest.json" in repositories["user/polite"]


@pytest.mark.nightly
def test_command_line_pushes_a_vector_and_reads_it_from_the_hub(tmp_path: Path) -> None:
    SteeringVector({2: torch.arange(4.0)}).save_pretrained(tmp_path / "here")
    repositories: dict[str, dict[str, bytes]] = {}
    with running_hub(repositories) as address:
        home = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_x"}
        answers = []
        for command in (["push", "here", "user/polite", "--private"], ["similarity", "here", "user/polite"]):
            run = subprocess.run(
                [sys.executable, "-m", "steerlab.cli", *command, "--json"],
                capture_output=True, text=True, cwd=tmp_path, env=os.environ | home,
            )  # fmt: skip
            assert run.returncode == 0, run.stderr[-3000:]
            answers.append(json.loads(run.stdout))
    assert "/user/polite/commit/" in answers[0]["address"] and "manifest.json" in repositories["user/polite"]
    assert [round(row["cosine"], 6) for row in answers[1]["rows"]] == [1]


@pytest.mark.nightly
def test_a_hub_that_is_gone_is_said_with_what_to_do(tmp_path: Path) -> None:
    code = """
import torch
from steerlab import SteeringVector, load_steerer
from steerlab.errors import LoadError, StorageError
for call, kind in ((lambda: SteeringVector({1: torch.ones(2)}).push_to_hub("user/polite"), StorageError),
                   (lambda: load_steerer("user/polite"), LoadError)):
    try:
        call()
    except kind as error:
        print(error)
"""
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment)
    pushed, read = run.stdout.splitlines()
    assert pushed.startswith("'user/polite' could not be pushed to the hub") and "hf auth login" in pushed
    assert read.startswith("'user/polite' is no folder here, and the hub gives no such repository")
