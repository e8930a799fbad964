"""Refusing tables that lack what is needed of them."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from steerlab._support.errors import DataError


def require_columns(frame: pd.DataFrame, columns: Sequence[str], what: str) -> None:
    """Refuse a frame that is empty or lacks columns.

    Raises:
        DataError: names the missing columns and those that are there.
    """
    missing = [c for c in columns if c not in frame]
    if missing or frame.empty:
        raise DataError(
            f"{what} needs a non-empty frame with the columns {list(columns)}; "
            f"this one has {len(frame)} rows and lacks {missing} (it has {list(frame.columns)})"
        )
