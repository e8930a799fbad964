"""A sweep whose layers are chosen on validation rows, and which runs only those on test rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from steerlab.analysis.layer_selection import LayerRange, select_layers
from steerlab.analysis.sweep import sweep
from steerlab.capture.rows import Data, as_examples
from steerlab.models.model import Model


def validated_sweep(
    model: Model, steerer: Any, data: Data, layers: Any = "all", *, metric: str = "propensity",
    guard: Mapping[str, float] | None = None, seed: int = 0, **options: Any,
) -> tuple[LayerRange, pd.DataFrame]:  # fmt: skip
    """Sweep validation rows over everything, then test rows over the chosen band alone.

    Example:
        >>> rows = steerlab.data.mwe(path, "openness")      # with paper_split: train, validation and test rows
        >>> layer_range, frame = validated_sweep(model, steerlab.MeanDifference(0), paper_split(rows))

    Args:
        model, steerer, layers, metric: as in `steerlab.sweep`; `metric` is a name of `ANSWER_METRICS`.
        data: Examples of the splits "validation" and "test"; those of "train" fit the steerer, unless `train` is given.
        guard, seed: as in `select_layers`.
        options: `alphas`, `positions`, `train`, `scale`, `folder` and so on, as in `steerlab.sweep`.

    Returns:
        The band, and the frames of both sweeps one below the other.

    Raises:
        DataError: as `steerlab.sweep` and `select_layers`.

    Source: own.
    """
    rows = as_examples(data)
    parts = {name: [e for e in rows if e.split == name] for name in ("train", "validation", "test")}
    options.setdefault("train", parts["train"] or None)
    names = list(dict.fromkeys([metric, *(guard or {})]))
    folder = options.pop("folder", None)
    alphas = options.pop("alphas", None)
    given = {} if alphas is None else {"alphas": alphas}

    def part(name: str, where: Any, more: dict[str, Any]) -> pd.DataFrame:
        at = None if folder is None else f"{folder}/{name}"
        return sweep(model, steerer, parts[name], where, metric=names, folder=at, **more, **options)

    validation = part("validation", layers, given)
    layer_range = select_layers(validation, metric, guard=guard, seed=seed)
    test = part("test", list(layer_range.layers), {"alphas": (0.0, layer_range.alpha)})
    frame = pd.concat([validation, test], ignore_index=True)
    return select_layers(validation, metric, test=test, guard=guard, seed=seed), frame
