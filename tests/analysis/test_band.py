"""Layers are chosen on validation rows and reported on test rows."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import steerlab
from steerlab import Contrast, DataError, Example
from steerlab.analysis.band import choose_band
from steerlab.analysis.held_out import held_out
from steerlab.testing import tiny_lm


def made(
    effects: dict[int, float], *, n: int = 60, noise: float = 0.3, seed: int = 0, **columns: object
) -> pd.DataFrame:
    """A sweep in which steering at a layer adds its effect times alpha, with noise of each sample and layer."""
    rng = np.random.default_rng(0)
    rows = []
    for split in ("validation", "test"):
        for layer, effect in effects.items():
            own = rng.normal(0, noise, n)
            for alpha in (0.0, 1.0, 2.0):
                for i in range(n):
                    value = i / n + alpha * (effect + own[i])
                    rows.append([layer, alpha, f"{split}/{i}", split, "propensity", value])
    frame = pd.DataFrame(rows, columns=["layer", "alpha", "sample", "split", "metric", "value"])
    return frame.assign(method="mean", positions="last", behaviour="ask")


def test_the_best_layer_is_found_and_its_equals_are_in_its_band() -> None:
    band = choose_band(made({3: 0.0, 4: 1.0, 5: 1.0, 6: 1.0, 7: 0.2}))
    assert band.alpha == 2.0 and band.best in (4, 5, 6) and band.layers == (4, 5, 6)
    assert band.gain is not None and band.gain.low < 2.0 < band.gain.high
    assert band.table.set_index("layer")["in_band"].to_dict() == {3: False, 4: True, 5: True, 6: True, 7: False}
    assert "layers 4-6" in str(band) and "chosen on 60 rows" in str(band)


def test_a_band_has_no_holes() -> None:
    band = choose_band(made({0: 1.0, 1: 0.0, 2: 1.0, 3: 1.02}, noise=0.2))
    assert set(band.layers) in ({2, 3}, {0}), "layer 1 parts layers that are alike"


def test_test_rows_do_not_choose() -> None:
    frame = made({0: 0.5, 1: 1.0, 2: 0.5})
    other = frame.copy()
    of_test = other["split"] == "test"
    other.loc[of_test, "value"] = np.where(other.loc[of_test, "layer"] == 0, 100.0, -100.0)
    assert choose_band(frame).table.equals(choose_band(other).table)
    assert choose_band(other).best == 1


@given(shift=st.floats(-5, 5), scale=st.floats(0.1, 10))
@settings(max_examples=15, deadline=None)
def test_the_choice_does_not_depend_on_zero_or_unit(shift: float, scale: float) -> None:
    frame = made({0: 0.2, 1: 0.9, 2: 1.0, 3: 0.1})
    moved = frame.assign(value=frame["value"] * scale + shift)
    one, two = choose_band(frame, n_boot=200), choose_band(moved, n_boot=200)
    assert (one.best, one.layers, one.alpha) == (two.best, two.layers, two.alpha)
    assert one.gain is not None and two.gain is not None and np.isclose(two.gain.value, scale * one.gain.value)


def test_cells_that_break_the_guard_are_not_chosen() -> None:
    frame = made({0: 0.1, 1: 1.0})
    mass = frame.assign(metric="answer_mass", value=np.where((frame["layer"] == 1) & (frame["alpha"] == 2), 0.1, 0.9))
    band = choose_band(pd.concat([frame, mass]), guard={"answer_mass": 0.5})
    assert (band.best, band.alpha) == (1, 1.0)
    with pytest.raises(DataError, match="ask for less"):
        choose_band(pd.concat([frame, mass]), guard={"answer_mass": 0.95})


def test_what_can_not_be_chosen_from_is_refused() -> None:
    frame = made({0: 0.1, 1: 1.0})
    validation = frame[frame["split"] == "validation"]
    with pytest.raises(DataError, match="one method"):
        choose_band(pd.concat([frame, frame.assign(method="l2s")]))
    with pytest.raises(DataError, match=r"no validation rows.*'test'"):
        choose_band(frame[frame["split"] == "test"])
    with pytest.raises(DataError, match="lack samples"):
        choose_band(frame.drop(index=3))
    with pytest.raises(DataError, match="lack layers"):
        choose_band(validation, test=frame[(frame["split"] == "test") & (frame["layer"] == 0)])
    assert choose_band(validation).gain is None


def test_only_the_band_is_run_on_test_rows() -> None:
    model = tiny_lm("llama", backend="hooks")
    parts = ["train"] * 4 + ["validation"] * 4 + ["test"] * 3
    pair = Contrast("(A)", "(B)", read="choice")
    rows = [Example(str(i), f"Is {i} more?", "ask", pair, split=part) for i, part in enumerate(parts)]
    band, frame = held_out(
        model, steerlab.MeanDifference(0), rows, alphas=(0.0, 2.0), guard={"answer_mass": 0.0}, progress=False
    )
    tested = frame[frame["split"] == "test"]
    assert set(tested["layer"]) == set(band.layers) and set(tested["alpha"]) == {0.0, 2.0}
    assert set(frame[frame["split"] == "validation"]["layer"]) == set(range(model.n_layers))
    at = tested[(tested["metric"] == "propensity") & (tested["layer"] == band.best)].set_index(["alpha", "sample"])
    difference = at.loc[2.0, "value"] - at.loc[0.0, "value"]
    assert band.gain_best is not None and np.isclose(band.gain_best.value, difference.mean())
