"""What people try in their first hour works, or says what would."""

import subprocess
import sys

from count import ROOT


def test_what_people_try_first_works_or_says_what_would() -> None:
    """In a process of its own, as for a user: without runtime type checks, which would refuse much of it before."""
    options = ["-o", "filterwarnings=error", "-p", "no:cacheprovider", "--noconftest"]
    command = [sys.executable, "-W", "error", "-m", "pytest", *options, ROOT / "tests" / "house" / "first_hour.py"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0 and "35 passed" in run.stdout, run.stdout[-3000:]
