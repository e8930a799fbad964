"""Bad input, kills and modes, each in a process of its own: there no type checker refuses an argument before steerlab.

`python tests/reliability/run.py` tries all; here: bad input, and in `make nightly` a dozen kills and modes once wrong.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from nightly import by_day

HERE = Path(__file__).parent
CALLS = {
    "bad_inputs": ("run(drawn=20)", "unclear", 1200),
    "kills": ("run(12)", "lost", 12),
    "modes": ("run(('hooks',), once_wrong=True)", "wrong", 60),
}


def run(module: str, call: str) -> dict[str, Any]:
    code = f"import json, sys; sys.path.insert(0, {str(HERE)!r}); import {module}; print(json.dumps({module}.{call}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("module", by_day(CALLS, lambda module: module == "bad_inputs"))
def test_every_case_is_right_or_refused(module) -> None:
    call, fault, least = CALLS[module]
    found = run(module, call)
    assert not [case for case in found["cases"] if case["outcome"] == fault]
    assert found["tried"] >= least and found[fault] == 0


def test_committed_summary_has_no_faults() -> None:
    summary = json.loads((HERE / "summary.json").read_text(encoding="utf-8"))
    least = {"bad_inputs.tried": 300, "kills.tried": 100, "tampered.tried": 60, "modes.tried": 1}
    assert all(summary[name] >= n for name, n in least.items()) and summary["tampered.accepted"] == 0
    assert not any(summary[f"{module}.{fault}"] for module, (_, fault, _) in CALLS.items())
