"""The figure of the layer sweep, drawn from a made-up results folder."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from steerlab._support.errors import DataError
from steerlab.plots import width

SCRIPT = Path(__file__).parents[2] / "figures" / "layer_sweep.py"
METHODS = ("mean", "l2s", "p2s", "random")


@pytest.fixture
def draw() -> Callable[[Path], Figure]:
    return runpy.run_path(str(SCRIPT))["draw"]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Four methods at six layers, of which layers 2 and 3 are as good."""
    cells = [
        [name, layer, alpha, "validation", "propensity", alpha * (layer in (2, 3)) * (1 + place)]
        for place, name in enumerate(METHODS)
        for layer in range(6)
        for alpha in (-1.0, 0.0, 1.0)
    ]
    columns = ["method", "layer", "alpha", "split", "metric", "value"]
    pd.DataFrame(cells, columns=columns).to_csv(tmp_path / "settings.csv", index=False)
    table = pd.DataFrame({"layer": range(6), "validation": [0, 0, 1, 1, 0, 0], "in_range": [0, 0, 1, 1, 0, 0]})
    table = table.assign(gap=1 - table["validation"], gap_low=-0.1, gap_high=1.1).astype({"in_range": bool})
    pd.concat([table.assign(method=m, alpha=1.0) for m in METHODS]).to_csv(tmp_path / "layer_ranges.csv", index=False)
    gain = {"value": 1.0, "low": 0.5, "high": 1.5, "n": 40}
    facts = {name: {"layers": [2, 3], "best": 2, "alpha": 1.0, "gain": gain, "gain_best": gain} for name in METHODS}
    (tmp_path / "summary.json").write_text(json.dumps({"layer_ranges": facts}))
    return tmp_path


def test_two_maps_on_one_scale_a_band_and_the_gains(draw: Callable[[Path], Figure], results: Path) -> None:
    fig = draw(results)
    panels = [ax for ax in fig.axes if ax.get_title(loc="left") or ax.get_title()]
    assert len(panels) == 4 and fig.get_size_inches()[0] == width(2)
    first, second = (ax.images[0] for ax in panels[:2])
    assert first.norm.vmax == second.norm.vmax == 2.0
    np.testing.assert_allclose(second.get_array()[2], [-2, 2])
    said = [text.get_text() for text in panels[3].texts]
    assert said == ["layers 2–3, α = 1"] * 4
    assert "40 test rows" in panels[3].get_xlabel()


def test_what_is_missing_is_named(draw: Callable[[Path], Figure], results: Path) -> None:
    (results / "layer_ranges.csv").unlink()
    with pytest.raises(DataError, match=r"lacks \['bands.csv'\]"):
        draw(results)
