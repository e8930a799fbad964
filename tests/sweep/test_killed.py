"""A sweep that is killed and resumed, however often and wherever, ends with the frame of one that was not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

SCRIPT = Path(__file__).with_name("killing.py")


@pytest.mark.nightly
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forks")
def test_a_sweep_killed_twenty_times_ends_with_the_same_frame(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path), "0"], capture_output=True, text=True, timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[1] / "steering")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["status"] == 0, done.stderr
    before = [n for n, hit in zip(report["finished"], report["kills"], strict=True) if hit and n < report["total"]]
    assert len(before) >= 15 and len(set(before)) >= 8, "killed in the midst, at many places"
    assert report["partial"] >= 5, "some of the kills were in the middle of a write"
    assert report["rewritten"] == 0, "what was finished before a kill is not computed again"
    assert report["same_names"]
    assert report["kinds"] == ["unsteered", "text", "metric"], "the premise"
    whole, resumed = (pd.read_pickle(tmp_path / f"{name}.pkl") for name in ("whole", "resumed"))
    assert len(whole) == 3 * 4 * 2 * 5 * 3
    pd.testing.assert_frame_equal(resumed, whole, check_exact=True)
