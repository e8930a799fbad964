"""Studies as a person runs them: a script in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from steerlab.testing import tiny_hf, tiny_tokenizer

ROOT = Path(__file__).parents[2]
DATA = os.environ.get("STEERLAB_DATA")


def tiny_folder(path: Path, n_layers: int) -> Path:
    """A random model, saved."""
    tiny_hf("llama", n_layers=n_layers).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A script of the repository."""
    return subprocess.run(
        [sys.executable, str(ROOT / script), *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"},
        check=False,
    )
