"""Studies as a person runs them: a script in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
DATA = os.environ.get("STEERLAB_DATA")


def run(script: str, *arguments: str, threads: int = 1) -> subprocess.CompletedProcess[str]:
    """Run a script of the repository, whatever its exit code."""
    command = [sys.executable, str(ROOT / script), *arguments]
    # threads that spin while they wait would take the cores from the test that runs beside this one
    env = os.environ | {"MPLBACKEND": "Agg", "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, check=False)


def succeed(script: str, *arguments: str, threads: int = 1) -> subprocess.CompletedProcess[str]:
    """Run a script of the repository and check that it succeeds."""
    done = run(script, *arguments, threads=threads)
    assert done.returncode == 0, done.stderr[-2000:]
    return done
