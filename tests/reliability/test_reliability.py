"""Bad input, kills and modes, each in a process of its own: there no type checker refuses an argument before steerlab.

`python tests/reliability/run.py` tries all; here are the modes that were once wrong on one engine and, in
`make nightly`, a dozen kills.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

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


@pytest.mark.parametrize("module", ["bad_inputs", "modes", pytest.param("kills", marks=pytest.mark.nightly)])
def test_every_case_is_right_or_refused(module) -> None:
    call, fault, least = CALLS[module]
    found = run(module, call)
    assert not [case for case in found["cases"] if case["outcome"] == fault]
    assert found["tried"] >= least and found[fault] == 0


def test_committed_summary_has_no_faults() -> None:
    summary = json.loads((HERE / "summary.json").read_text(encoding="utf-8"))
    least = {"bad_inputs": 300, "kills": 100, "tampered": 60, "modes": 1}
    assert all(summary[f"{part}.tried"] >= n for part, n in least.items())
    assert not any(summary[f"{module}.{fault}"] for module, (_, fault, _) in CALLS.items())
    assert summary["tampered.accepted"] == 0
