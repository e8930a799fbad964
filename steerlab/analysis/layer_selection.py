"""Select layers and strength on validation data, and report their effect on test data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pandas as pd

from steerlab.analysis.sweep import sweep
from steerlab.data.inputs import Data, as_examples
from steerlab.errors import DataError, require_columns
from steerlab.metrics.bootstrap import Estimate, paired_bootstrap
from steerlab.models.model import Model
from steerlab.models.sites import in_layer_order


@dataclass(frozen=True)
class LayerRange:
    """The adjacent layers that validation data cannot tell from the best one, and their effect on test data.

    Attributes:
        metric, alpha: what was compared, and the strength that was selected.
        best: the layer with the largest validation mean.
        layers: adjacent layers, `best` among them.
        table: one row per layer at `alpha`: `validation` (mean), `gap` below the best with `gap_low` and `gap_high`
            (paired bootstrap), `in_range`.
        gain: difference to no steering on test rows, of the mean over `layers`; None without test rows.
        gain_best: the same of the best layer alone.
        n_validation: number of validation examples.

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
    """Select strength and layers on validation rows, and report their effect on test rows.

    The layer and strength with the largest validation mean win. Adjacent layers are added as long as the interval of
    their gap to the best, paired by example, includes 0. A peak of one layer is often noise that another sample of
    examples does not repeat.

    Example:
        >>> frame = steerlab.sweep(model, rows, steerlab.MeanDifference(), train=acts)
        >>> print(select_layers(frame, guard={"answer_probability": 0.5}))

    Args:
        frame: from `steerlab.sweep`, of one method and positions, with rows of the split "validation".
        metric: to be maximized; negate a metric that should be small.
        test: a sweep of the test rows (with alpha 0); None: the rows of `frame` whose split is "test".
        guard: lower bounds on the validation mean of other metrics; settings below them cannot be selected.
        level, n_boot, seed: of the paired bootstrap over examples.

    Raises:
        DataError: no validation rows, several methods or positions, a setting that lacks examples, no setting that
            passes the guard, or test rows without the selected layers or without alpha 0, or with a validation id.

    Source: paired bootstrap, Efron and Tibshirani (1993).
    """
    require_columns(frame, ["layer", "alpha", "example_id", "split", "metric", "value"], "select_layers")
    _check_one_sweep(frame)
    options = {"level": level, "n_boot": n_boot, "seed": seed}
    table = _by_setting(frame, metric, "validation")
    steered = table.loc[:, [alpha != 0 for _, alpha in table.columns]]
    for name, least in (guard or {}).items():
        means = _by_setting(frame, name, "validation").mean()
        steered = steered.loc[:, [means[setting] >= least for setting in steered.columns]]
    if steered.empty:
        raise DataError(f"no steered setting reaches the validation means {dict(guard or {})}: lower the guard")
    best, alpha = steered.mean().idxmax()
    at_alpha = steered.xs(alpha, axis=1, level="alpha")
    gaps, layers = _gaps(at_alpha, best, list(table.xs(alpha, axis=1, level="alpha")), options)
    gain = gain_best = None
    if test is not None or "test" in set(frame["split"]):
        _check_one_sweep(frame if test is None else pd.concat([frame, test]))
        tested = _by_setting(frame, metric, "test") if test is None else _by_setting(test, metric, None)
        if both := sorted(set(table.index) & set(tested.index)):
            raise DataError(f"{len(both)} validation and test rows have one id ({both[:3]}): test on other examples")
        gain, gain_best = (_gain(tested, some, alpha, options) for some in (layers, [best]))
    order = list(at_alpha.columns)
    return LayerRange(metric, float(alpha), order[order.index(best)], tuple(layers), gaps, gain, gain_best, len(table))


def validated_sweep(
    model: Model, data: Data, steer: Any, layers: Any = "all", *, metric: str = "propensity",
    guard: Mapping[str, float] | None = None, seed: int = 0, **options: Any,
) -> tuple[LayerRange, pd.DataFrame]:  # fmt: skip
    """Select layers on validation data and report their effect on test data.

    All layers and alphas are swept on the validation rows; on the test rows only the selected layers and alpha.

    Example:
        >>> rows = steerlab.data.mwe(path, "openness")
        >>> layer_range, frame = validated_sweep(model, paper_split(rows), steerlab.MeanDifference())

    Args:
        model, steer, layers, metric: as in `steerlab.sweep`; `metric` is a name of `ANSWER_METRICS`.
        data: Examples of the splits "validation" and "test"; those of "train" fit the steerer, unless `train` is given.
        guard, seed: as in `select_layers`.
        options: `alphas`, `positions`, `train`, `scale`, `folder` and so on, as in `steerlab.sweep`.

    Returns:
        The layer range, and the frames of both sweeps one below the other.

    Raises:
        DataError: as `steerlab.sweep` and `select_layers`.
    """
    parts: dict[str, list[Any]] = {"train": [], "validation": [], "test": []}
    for example in as_examples(data):
        parts.setdefault(example.split, []).append(example)
    options = {"train": parts["train"] or None, "metric": list(dict.fromkeys([metric, *(guard or {})])), **options}
    folder = options.pop("folder", None)

    def swept(split: str, layers: Any, **more: Any) -> pd.DataFrame:
        where = None if folder is None else f"{folder}/{split}"
        return sweep(model, parts[split], steer, layers, folder=where, **(options | more))

    validation = swept("validation", layers)
    selected = select_layers(validation, metric, guard=guard, seed=seed)
    test = swept("test", list(selected.layers), alphas=(0.0, selected.alpha))
    reported = select_layers(validation, metric, test=test, guard=guard, seed=seed)
    return reported, pd.concat([validation, test], ignore_index=True)


def _check_one_sweep(frame: pd.DataFrame) -> None:
    for column in ("method", "positions", "model"):
        if column in frame and frame[column].nunique() > 1:
            raise DataError(
                f"select_layers compares layers of one {column}; the frame has {sorted(frame[column].unique())}. "
                f"Select for each: for name, part in frame.groupby({column!r})"
            )


def _by_setting(frame: pd.DataFrame, metric: str, split: str | None) -> pd.DataFrame:
    """Values of one metric, examples by settings (layer, alpha), from the first layer to the last."""
    rows = frame[frame["metric"] == metric]
    rows = rows if split is None else rows[rows["split"] == split]
    if rows.empty:
        raise DataError(
            f"select_layers found no {split or 'test'} rows of {metric!r}: the splits are "
            f"{sorted(set(frame['split']))}, the metrics {sorted(set(frame['metric']))}. Set Example.split, or sweep "
            "that metric too"
        )
    pairs = dict.fromkeys(zip(rows["layer"], rows["alpha"], strict=True))
    order = [pair for layer in in_layer_order(rows["layer"]) for pair in pairs if pair[0] == layer]
    keys = [c for c in ("behavior", "example_id") if c in rows]
    table = rows.pivot(index=keys, columns=["layer", "alpha"], values="value")[order]
    if table.isna().to_numpy().any():
        raise DataError("select_layers needs every example at every setting: the rows of some settings lack examples")
    return table


def _gaps(
    values: pd.DataFrame, best: Any, measured: list[Any], options: Mapping[str, Any]
) -> tuple[pd.DataFrame, list[Any]]:
    """Every layer's gap to the best, and the layers around the best whose interval includes 0, adjacent among the
    `measured` ones: a layer that the guard took away ends the range.
    """
    layers = list(values)
    gaps = [paired_bootstrap(values[best], values[layer], **options) for layer in layers]
    adjacent = [measured.index(b) - measured.index(a) == 1 for a, b in pairwise(layers)]
    low = high = layers.index(best)
    while low > 0 and adjacent[low - 1] and gaps[low - 1].low <= 0:
        low -= 1
    while high + 1 < len(layers) and adjacent[high] and gaps[high + 1].low <= 0:
        high += 1
    table = {
        "layer": layers, "validation": values.mean().to_numpy(), "gap": [gap.value for gap in gaps],
        "gap_low": [gap.low for gap in gaps], "gap_high": [gap.high for gap in gaps],
        "in_range": [low <= place <= high for place in range(len(layers))],
    }  # fmt: skip
    return pd.DataFrame(table), layers[low : high + 1]


def _gain(table: pd.DataFrame, layers: Sequence[Any], alpha: float, options: Mapping[str, Any]) -> Estimate:
    """Difference of the mean over some layers to no steering, paired by example."""
    missing = [layer for layer in layers if (layer, alpha) not in table.columns or (layer, 0.0) not in table.columns]
    if missing:
        raise DataError(f"the test rows lack layers {missing} at alpha {alpha:g} or 0: sweep them there, with alpha 0")
    steered = table[[(layer, alpha) for layer in layers]].mean(axis=1)
    return paired_bootstrap(steered, table[(layers[0], 0.0)], **options)
