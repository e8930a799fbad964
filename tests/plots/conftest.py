"""A small grid and summary, the figure scripts as modules, and checks that pyplot's settings are restored."""

import runpy
from itertools import product
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

FIGURES = Path(__file__).parents[2] / "figures"


@pytest.fixture(autouse=True)
def agg():
    """Draw without a screen, close all figures, and check that no style setting leaked."""
    backend, settings = mpl.get_backend(), dict(mpl.rcParams)
    plt.switch_backend("agg")
    yield
    plt.close("all")
    plt.switch_backend(backend)
    changed = {k for k, v in dict(mpl.rcParams).items() if k in settings and v != settings[k]}
    assert not changed - {"backend"}, f"the style leaked: {changed}"


@pytest.fixture
def ax():
    return plt.subplots()[1]


@pytest.fixture
def script():
    """`script(name)`: the names defined by a file in figures/; with `run_name="__main__"` it runs as a program."""
    return lambda name, **options: runpy.run_path(str(FIGURES / f"{name}.py"), **options)


@pytest.fixture
def grid():
    """Two methods over layers, positions, sentences and strengths, one row per setting."""
    rng = np.random.default_rng(0)
    settings = list(product(("mean", "l2s"), (15, 16), ("all", "prompt"), ("plain", "short"), (0.7, 1.0, 1.5)))
    frame = pd.DataFrame(settings, columns=["method", "layer", "positions", "sentences", "alpha"])
    for name in ("refuse_harmful", "defer_expert", "distinct2", "harmless_kept"):
        frame[name] = rng.integers(0, 41, len(frame)) / 40
    return frame.assign(refuse_expert=rng.choice([0.0, 0.025, 0.5], len(frame)), targets="raw")


@pytest.fixture
def summary():
    """A study's summary: estimates by method and metric, and other entries."""
    rng = np.random.default_rng(1)
    names = (
        "refuse_harmful", "refuse_harmful_fluently", "defer_expert", "defer_expert_fluently", "refuse_expert",
        "distinct2", "harmless_kept",
    )  # fmt: skip
    found: dict[str, object] = {}
    for method, name in product(("none", "prompt", "random", "mean", "always_no", "l2s", "p2s"), names):
        value = int(rng.integers(8, 33)) / 40
        found[f"{method}.{name}"] = {"value": value, "low": value - 0.1, "high": value + 0.2, "n": 40}
    found["cos.l2s_p2s"] = {"value": 0.9, "low": 0.88, "high": 0.92, "n": 40}
    found["cos.mean_p2s"] = {"value": -0.2, "low": -0.3, "high": -0.1, "n": 40}
    found["l2s_minus_mean.refuse_harmful"] = {"value": 0.1, "low": 0.0, "high": 0.2, "n": 40}
    setting = {"layer": 16, "alpha": 1.0, "positions": "all", "sentences": "short", "targets": "raw"}
    return found | {"l2s.setting": setting, "mean.setting": setting, "study": {"seed": 0}}
