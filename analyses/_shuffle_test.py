"""Inputs for the shuffle test, and what an input loses with the vector of another input of its behavior."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain, zip_longest
from typing import Any

import numpy as np
import pandas as pd
from _common import numbers
from _image_questions import VALUES

from steerlab import Contrast, Example
from steerlab.metrics import bootstrap_ratio

RESAMPLES = 2000


def with_fixed_contrast(row: Example) -> Example:
    """The question with the next value of its type as the unwanted answer, whatever was drawn."""
    if row.contrast is None:
        return row
    values = VALUES[row.split]
    other = values[(values.index(row.behavior) + 1) % len(values)]
    return row.replace(contrast=Contrast(row.contrast.positive, other.capitalize()))


def without_split(rows: Sequence[Example]) -> list[Example]:
    """The inputs without their split, within which contrasts would change places: nothing is fitted by it here."""
    return [row.replace(split="") for row in rows]


def evenly(rows: Sequence[Example], n: int, seed: int) -> list[Example]:
    """`n` inputs drawn at random, from each behavior in turn."""
    groups: dict[str, list[Example]] = {}
    for place in np.random.default_rng(seed).permutation(len(rows)):
        row = rows[place]
        groups.setdefault(row.behavior, []).append(row)
    in_turn = chain.from_iterable(zip_longest(*groups.values()))
    return [row for row in in_turn if row is not None][:n]


def effects_lost(effects: pd.DataFrame, groups: Mapping[str, str], seed: int) -> dict[str, Any]:
    """Of the effect of the inputs' own vectors, in nats and as a share of it, what another input's vector loses.

    Sums over inputs are divided, so that no input with a small effect decides; groups of inputs are resampled.
    """
    table = pd.DataFrame({"lost": effects["own"] - effects["other"], "gained": effects["own"] - effects["none"]})
    of_groups = table.groupby(effects["example_id"].map(groups)).agg(["sum", "count"])
    lost, gained, counts = (
        of_groups[key].to_numpy() for key in (("lost", "sum"), ("gained", "sum"), ("lost", "count"))
    )
    options: dict[str, Any] = {"n_boot": RESAMPLES, "seed": seed}
    nats = {"own_nats": gained, "lost_nats": lost}
    found = {key: bootstrap_ratio(sums, counts, **options) for key, sums in nats.items()}
    if found["own_nats"].low > 0:  # else there is no effect to take a share of
        found["lost_share"] = bootstrap_ratio(lost, gained, **options)
    return {key: numbers(replace(one, n=len(effects))) for key, one in found.items()}
