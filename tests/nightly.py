"""Cases that are left to `make nightly`."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def by_day(cases: Iterable[Any], chosen: Callable[..., object]) -> list[Any]:
    """The cases of `parametrize`: those for which `chosen(*case)` holds run in `make test` too, the others at night."""
    rows = [case if isinstance(case, tuple) else (case,) for case in cases]
    return [pytest.param(*row, marks=() if chosen(*row) else pytest.mark.nightly) for row in rows]
