"""A small grid and summary, and pyplot left as it was found."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest


@pytest.fixture(autouse=True)
def agg() -> Iterator[None]:
    """Draw without a screen, close what was opened, put the back end back."""
    before, settings = mpl.get_backend(), dict(mpl.rcParams)
    plt.switch_backend("agg")
    yield
    plt.close("all")
    plt.switch_backend(before)
    changed = {k for k, v in dict(mpl.rcParams).items() if k in settings and v != settings[k]}
    assert not changed - {"backend"}, f"the style leaked: {changed}"


@pytest.fixture
def grid() -> pd.DataFrame:
    """Cells of two methods over layers, positions, sentences and strengths."""
    rng = np.random.default_rng(0)
    cells = list(product(("mean", "l2s"), (15, 16), ("all", "prompt"), ("plain", "short"), (0.7, 1.0, 1.5)))
    frame = pd.DataFrame(cells, columns=["method", "layer", "positions", "sentences", "alpha"]).assign(targets="raw")
    for name in ("refuse_harmful", "defer_expert", "distinct2", "harmless_kept"):
        frame[name] = rng.integers(0, 41, len(frame)) / 40
    return frame.assign(refuse_expert=rng.choice([0.0, 0.025, 0.5], len(frame)), round="wide")


@pytest.fixture
def summary() -> dict[str, object]:
    """What a study writes: estimates by method and measure, and other things."""
    rng = np.random.default_rng(1)
    names = ("refuse_harmful", "defer_expert", "refuse_expert", "distinct2", "harmless_kept")
    found: dict[str, object] = {}
    for method, name in product(("none", "prompt", "random", "mean", "always_no", "l2s", "p2s"), names):
        value = float(rng.uniform(0.2, 0.8))
        found[f"{method}.{name}"] = {"value": value, "low": value - 0.1, "high": value + 0.2, "n": 40}
    found["cos.l2s_p2s"] = {"value": 0.9, "low": 0.88, "high": 0.92, "n": 40}
    found["cos.mean_p2s"] = {"value": -0.2, "low": -0.3, "high": -0.1, "n": 40}
    setting = {"layer": 16, "alpha": 1.0, "positions": "all", "sentences": "short", "targets": "raw"}
    return found | {
        "l2s.setting": setting,
        "mean.setting": setting,
        "test_counts": {"refuse": 40},
        "study": {"seed": 0},
    }
