"""Which layers: chosen on validation rows, told of test rows, and as a band where several are as good."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from steerlab._support.errors import DataError, require_columns
from steerlab.metrics.bootstrap import Estimate, paired_bootstrap


@dataclass(frozen=True)
class LayerRange:
    """The layers that validation rows can't tell from the best one, and what they do to test rows.

    Attributes:
        metric, alpha: what was compared, and the strength that was chosen.
        best: the layer with the largest validation mean.
        layers: the band, layers side by side with `best` among them.
        table: one row per layer at `alpha`: `validation` (mean), `gap` below the best with `gap_low` and `gap_high`
            (paired bootstrap), `in_range`.
        gain: of the band's mean over its layers, on test rows, over no steering; None without test rows.
        gain_best: that of the best layer alone.
        n_validation: how many rows chose.

    Example:
        >>> print(select_layers(frame))
        propensity: layers 12-16 (best 14) at alpha 1.5, chosen on 100 rows; gain on test rows 0.310 [...], n=250
    """

    metric: str
    alpha: float
    best: Any
    layers: tuple[Any, ...]
    table: pd.DataFrame
    gain: Estimate | None
    gain_best: Estimate | None
    n_validation: int

    def __str__(self) -> str:
        named = f"layer {self.best}"
        if len(self.layers) > 1:
            named = f"layers {self.layers[0]}-{self.layers[-1]} (best {self.best})"
        chosen = f"{self.metric}: {named} at alpha {self.alpha:g}, chosen on {self.n_validation} rows"
        if self.gain is None:
            return chosen
        return f"{chosen}; gain on test rows {self.gain}, of layer {self.best} alone {self.gain_best}"


def select_layers(
    frame: pd.DataFrame,
    metric: str = "propensity",
    *,
    test: pd.DataFrame | None = None,
    guard: Mapping[str, float] | None = None,
    level: float = 0.95,
    n_boot: int = 2000,
    seed: int = 0,
) -> LayerRange:
    """Choose strength and layers on validation rows, and report them on test rows.

    The layer and strength with the largest validation mean win. Layers next to it, one after the other, belong to the
    band as long as the interval of their gap to it, sample by sample, includes 0: a peak of one layer in a sweep is
    mostly luck, and the next sample of rows has another.

    Example:
        >>> frame = steerlab.sweep(model, steerlab.MeanDifference(0), rows, layers="all", train=acts)
        >>> print(select_layers(frame, guard={"answer_probability": 0.5}))

    Args:
        frame: from `steerlab.sweep`, of one method and positions, with rows of the split "validation".
        metric: what is made large; measure what you want small with its sign turned.
        test: a sweep of the test rows (with alpha 0); None: the rows of `frame` whose split is "test".
        guard: the least validation mean of other metrics; cells below it can't be chosen.
        level, n_boot, seed: of the paired bootstrap over samples.

    Raises:
        DataError: no validation rows, several methods or positions, a cell that lacks samples, no cell that passes
            the guard, or test rows without the chosen layers or without alpha 0.

    Source: own; resampling pairs, Efron and Tibshirani (1993).
    """
    require_columns(frame, ["layer", "alpha", "example_id", "split", "metric", "value"], "select_layers")
    _one_sweep(frame)
    cells = _matrix(frame, metric, "validation")
    steered = cells.loc[:, [alpha != 0 for _, alpha in cells.columns]]
    for name, least in (guard or {}).items():
        means = _matrix(frame, name, "validation").mean()
        steered = steered.loc[:, [means[cell] >= least for cell in steered.columns]]
    if steered.empty:
        raise DataError(f"no steered cell has the validation means asked for, {dict(guard or {})}: ask for less")
    best, alpha = steered.mean().idxmax()
    order = list(dict.fromkeys(layer for layer, at in steered.columns if at == alpha))
    values = steered[[(layer, alpha) for layer in order]].to_numpy()
    place = order.index(best)
    table = _gaps(values, order, place, level, n_boot, seed)
    layer_range = _around(table["in_range"].to_numpy(), place)
    table["in_range"] = [order.index(layer) in layer_range for layer in order]
    layers = tuple(order[k] for k in layer_range)
    reported, split = (frame, "test") if test is None else (test, None)
    gain = gain_best = None
    if test is not None or "test" in set(frame["split"]):
        _one_sweep(reported)
        options = {"level": level, "n_boot": n_boot, "seed": seed}
        measured = _matrix(reported, metric, split)
        gain, gain_best = (_gain(measured, some, alpha, options) for some in (layers, (best,)))
    return LayerRange(metric, float(alpha), order[place], layers, table, gain, gain_best, len(cells))


def _one_sweep(frame: pd.DataFrame) -> None:
    for column in ("method", "positions", "model"):
        if column in frame and frame[column].nunique() > 1:
            raise DataError(
                f"choose_band compares layers of one {column}; the frame has {sorted(frame[column].unique())}. Choose "
                f"a band for each: for name, part in frame.groupby({column!r})"
            )


def _matrix(frame: pd.DataFrame, metric: str, split: str | None) -> pd.DataFrame:
    """Samples by cells (layer, alpha), layers in the order of the sweep."""
    rows = frame[frame["metric"] == metric]
    rows = rows if split is None else rows[rows["split"] == split]
    if rows.empty:
        raise DataError(
            f"choose_band found no {split or 'test'} rows of {metric!r}: the splits are {sorted(set(frame['split']))}, "
            f"the metrics {sorted(set(frame['metric']))}. Set Example.split, or sweep that metric too"
        )
    order = list(dict.fromkeys(zip(rows["layer"], rows["alpha"], strict=True)))
    keys = [c for c in ("behavior", "example_id") if c in rows]
    table = rows.pivot(index=keys, columns=["layer", "alpha"], values="value")[order]
    if table.isna().to_numpy().any():
        raise DataError("choose_band needs every sample in every cell: the rows of some cells lack samples")
    return table


def _gaps(
    values: NDArray[np.float64], order: Sequence[Any], best: int, level: float, n_boot: int, seed: int
) -> pd.DataFrame:
    gaps = [
        paired_bootstrap(values[:, best], values[:, k], level=level, n_boot=n_boot, seed=seed)
        for k in range(len(order))
    ]
    return pd.DataFrame(
        {
            "layer": list(order),
            "validation": values.mean(0),
            "gap": [g.value for g in gaps],
            "gap_low": [g.low for g in gaps],
            "gap_high": [g.high for g in gaps],
            "in_range": [g.low <= 0 for g in gaps],
        }
    )


def _around(alike: NDArray[np.bool_], best: int) -> range:
    """The run of layers around the best."""
    low = high = best
    while low > 0 and alike[low - 1]:
        low -= 1
    while high + 1 < len(alike) and alike[high + 1]:
        high += 1
    return range(low, high + 1)


def _gain(cells: pd.DataFrame, layers: Sequence[Any], alpha: float, options: dict[str, Any]) -> Estimate:
    """Of the mean over some layers, over no steering, sample by sample."""
    missing = [layer for layer in layers if (layer, alpha) not in cells.columns or (layer, 0.0) not in cells.columns]
    if missing:
        raise DataError(f"the test rows lack layers {missing} at alpha {alpha:g} or 0: sweep them there, with alpha 0")
    steered = cells[[(layer, alpha) for layer in layers]].mean(axis=1)
    return paired_bootstrap(steered, cells[(layers[0], 0.0)], **options)
