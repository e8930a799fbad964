"""Refusing sweeps whose curves would not be curves: repeated, missing or broken measurements."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from steerlab._support.errors import DataError, require_columns

CELL = ("method", "model", "layer", "positions", "behavior")


def check_measurements(
    frame: pd.DataFrame, metric: str, by: Sequence[str], what: str
) -> tuple[pd.DataFrame, list[str]]:  # fmt: skip
    """The rows of one metric, checked, and the columns that tell cells apart."""
    require_columns(frame, ["behavior", "example_id", "alpha", "metric", "value", *by], what)
    rows = frame[frame["metric"] == metric]
    if rows.empty:
        raise DataError(f"{what} found no rows of {metric!r}; the frame has {sorted(set(frame['metric']))}")
    bad = int((~np.isfinite(rows[["alpha", "value"]].to_numpy(float))).any(axis=1).sum())
    if bad:
        raise DataError(
            f"{what} got {bad} of {len(rows)} rows with a NaN or infinite alpha or value; repair them first"
        )
    keys = [c for c in CELL if c in frame] + [c for c in by if c not in CELL]
    _complete(rows, keys, what)
    return rows, keys


def _complete(rows: pd.DataFrame, keys: list[str], what: str) -> None:
    cell = rows.groupby(keys, sort=False, dropna=False, observed=True).ngroup().to_numpy()
    alphas, alpha = np.unique(rows["alpha"].to_numpy(float), return_inverse=True)
    example_id = pd.factorize(rows["example_id"])[0].astype(np.int64)
    unit = np.unique(cell * (example_id.max() + 1) + example_id, return_inverse=True)[1]
    twice = int(pd.Series(unit * len(alphas) + alpha).duplicated().sum())
    if twice:
        raise DataError(
            f"{what} got {twice} values too many: a sample was measured more than once at one alpha of a cell. "
            f"Cells are told apart by {keys}; name the column that differs in `by`, or drop the repeats"
        )
    wanted = np.bincount(np.unique(cell * len(alphas) + alpha) // len(alphas))
    if wanted.min() < 2:
        few = rows.iloc[[int(np.argmax(wanted[cell] < 2))]]
        raise DataError(
            f"{what} needs at least two alphas a cell; {int((wanted < 2).sum())} of {len(wanted)} cells have one, "
            f"first {few[[*keys, 'alpha']].to_dict('records')[0]}. Sweep more alphas, or leave that cell out"
        )
    _, first, measured = np.unique(unit, return_index=True, return_counts=True)
    short = measured < wanted[cell[first]]
    if short.any():
        names = rows.iloc[first[short][:3]]["example_id"].tolist()
        raise DataError(
            f"{what} needs every sample at every alpha of its cell; {int(short.sum())} of {len(first)} curves lack "
            f"some, first {names}. Measure them again, or drop those samples from all alphas"
        )
