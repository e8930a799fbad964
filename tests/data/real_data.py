"""Files that are not part of the package, where there are any."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def shared(*parts: str) -> Path:
    """A file in the folder named by STEERLAB_DATA; without it the test is skipped."""
    root = os.environ.get("STEERLAB_DATA")
    if not root:
        pytest.skip("STEERLAB_DATA is unset: this file is not part of the package")
    file = Path(root).joinpath(*parts)
    if not file.exists():
        pytest.skip(f"the folder named by STEERLAB_DATA has no {'/'.join(parts)}")
    return file
