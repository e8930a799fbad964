"""Checks of the frames that are drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from steerlab.errors import DataError, require_columns

SETTING_COLUMNS = (
    "method", "model", "layer", "site", "positions", "sentences", "targets", "options", "round", "split", "behavior",
    "train_variant", "test_variant",
)  # fmt: skip


def one_row_per(
    frame: pd.DataFrame,
    keys: Sequence[str],
    values: Sequence[str],
    name: str,
    where: Mapping[str, object] | None = None,
) -> pd.DataFrame:
    """The rows of `frame` that match `where`, checked to hold one row per combination of `keys`.

    Raises:
        DataError: columns are missing, no row matches, or several rows share their keys; the message names the
            columns in which those rows differ.
    """
    where = where or {}
    require_columns(frame, [*keys, *values, *where], name)
    rows = frame[(frame[list(where)] == pd.Series(where)).all(axis=1)] if where else frame
    repeated = rows[rows.duplicated(list(keys), keep=False)]
    if rows.empty or len(repeated):
        several = [c for c in SETTING_COLUMNS if c not in keys and c in rows and repeated[c].nunique() > 1]
        advice = f"choose one of each of {several}" if several else "average them, or leave out what is there twice"
        raise DataError(
            f"{name} needs one row for each {' and '.join(keys)}: {dict(where) or 'the frame'} leaves {len(rows)} of "
            f"{len(frame)} rows, and {len(repeated)} of them share those columns with another; {advice}"
        )
    return rows
