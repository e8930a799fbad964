"""Layers are chosen on validation rows and reported on test rows."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import steerlab
from steerlab import Contrast, Example
from steerlab.analysis.layer_selection import select_layers, validated_sweep
from steerlab.errors import DataError
from steerlab.testing import tiny_lm


def made(effects: dict[int, float], *, n: int = 60, noise: float = 0.3) -> pd.DataFrame:
    """A sweep in which steering at a layer adds its effect times alpha, with noise of each sample and layer."""
    rng = np.random.default_rng(0)
    rows = []
    for split in ("validation", "test"):
        for layer, effect in effects.items():
            own = rng.normal(0, noise, n)
            for alpha in (0.0, 1.0, 2.0):
                values = np.arange(n) / n + alpha * (effect + own)
                rows += [[layer, alpha, f"{split}/{i}", split, "propensity", x] for i, x in enumerate(values)]
    frame = pd.DataFrame(rows, columns=["layer", "alpha", "example_id", "split", "metric", "value"])
    return frame.assign(method="mean", positions="last", behavior="ask")


def test_the_best_layer_is_found_and_its_equals_are_in_its_band() -> None:
    layer_range = select_layers(made({3: 0.0, 4: 1.0, 5: 1.0, 6: 1.0, 7: 0.2}))
    assert layer_range.alpha == 2.0 and layer_range.best in (4, 5, 6) and layer_range.layers == (4, 5, 6)
    assert layer_range.gain is not None and layer_range.gain.low < 2.0 < layer_range.gain.high
    assert layer_range.table.set_index("layer")["in_range"].to_dict() == {3: False, 4: True, 5: True, 6: True, 7: False}
    assert "layers 4-6" in str(layer_range) and "chosen on 60 rows" in str(layer_range)


def test_a_band_is_of_neighbors_in_any_order_of_the_rows() -> None:
    frame = made({8: 0.2, 12: 1.0, 16: 0.2, 20: 1.0})
    mixed = pd.concat([frame[frame["layer"] == layer] for layer in (20, 12, 8, 16)])
    found, wanted = select_layers(mixed), select_layers(frame)
    assert found.layers == wanted.layers and len(found.layers) == 1 and found.table["layer"].tolist() == [8, 12, 16, 20]
    as_text = mixed.assign(layer=mixed["layer"].astype(str))  # read back from a file that has sites too
    assert select_layers(as_text).table["layer"].tolist() == ["8", "12", "16", "20"]


def test_a_band_has_no_holes() -> None:
    layer_range = select_layers(made({0: 1.0, 1: 0.0, 2: 1.0, 3: 1.02}, noise=0.2))
    assert set(layer_range.layers) in ({2, 3}, {0}), "layer 1 parts layers that are alike"


def test_test_rows_do_not_choose() -> None:
    frame = made({0: 0.5, 1: 1.0, 2: 0.5})
    other = frame.copy()
    of_test = other["split"] == "test"
    other.loc[of_test, "value"] = np.where(other.loc[of_test, "layer"] == 0, 100.0, -100.0)
    assert select_layers(frame).table.equals(select_layers(other).table)
    assert select_layers(other).best == 1


@given(shift=st.floats(-5, 5), scale=st.floats(0.1, 10))
@settings(max_examples=15)
def test_the_choice_does_not_depend_on_zero_or_unit(shift: float, scale: float) -> None:
    frame = made({0: 0.2, 1: 0.9, 2: 1.0, 3: 0.1})
    moved = frame.assign(value=frame["value"] * scale + shift)
    one, two = select_layers(frame, n_boot=200), select_layers(moved, n_boot=200)
    assert (one.best, one.layers, one.alpha) == (two.best, two.layers, two.alpha)
    assert one.gain is not None and two.gain is not None and np.isclose(two.gain.value, scale * one.gain.value)


def test_cells_that_break_the_guard_are_not_chosen() -> None:
    frame = made({0: 0.1, 1: 1.0})
    low = (frame["layer"] == 1) & (frame["alpha"] == 2)
    mass = frame.assign(metric="answer_probability", value=np.where(low, 0.1, 0.9))
    layer_range = select_layers(pd.concat([frame, mass]), guard={"answer_probability": 0.5})
    assert (layer_range.best, layer_range.alpha) == (1, 1.0)
    with pytest.raises(DataError, match="lower the guard"):
        select_layers(pd.concat([frame, mass]), guard={"answer_probability": 0.95})
    same = made({0: 1.0, 1: 1.0, 2: 1.0}, noise=0.0)
    mass = same.assign(metric="answer_probability", value=np.where(same["layer"] == 1, 0.1, 0.9))
    guarded = select_layers(pd.concat([same, mass]), guard={"answer_probability": 0.5})
    assert len(guarded.layers) == 1, "what the guard took away ends the range"


def test_what_can_not_be_chosen_from_is_refused() -> None:
    frame = made({0: 0.1, 1: 1.0})
    validation = frame[frame["split"] == "validation"]
    with pytest.raises(DataError, match="one method"):
        select_layers(pd.concat([frame, frame.assign(method="l2s")]))
    with pytest.raises(DataError, match=r"no validation rows.*'test'"):
        select_layers(frame[frame["split"] == "test"])
    with pytest.raises(DataError, match="lack examples"):
        select_layers(frame.drop(index=3))
    with pytest.raises(DataError, match="lack layers"):
        select_layers(validation, test=frame[(frame["split"] == "test") & (frame["layer"] == 0)])
    with pytest.raises(DataError, match="validation and test rows have one id"):
        select_layers(validation, test=validation)
    with pytest.raises(DataError, match="one method"):
        select_layers(validation.assign(method="mean"), test=frame[frame["split"] == "test"].assign(method="l2s"))
    assert select_layers(validation).gain is None


def test_only_the_band_is_run_on_test_rows() -> None:
    model = tiny_lm("llama", backend="hooks")
    parts = ["train"] * 4 + ["validation"] * 4 + ["test"] * 3
    pair = Contrast("(A)", "(B)", position="first_difference")
    rows = [Example(f"Is {i} more?", pair, id=str(i), behavior="ask", split=part) for i, part in enumerate(parts)]
    layer_range, frame = validated_sweep(
        model, rows, steerlab.MeanDifference(0), alphas=(0.0, 2.0), guard={"answer_probability": 0.0}, progress=False
    )
    tested = frame[frame["split"] == "test"]
    assert set(tested["layer"]) == set(layer_range.layers) and set(tested["alpha"]) == {0.0, 2.0}
    assert set(frame[frame["split"] == "validation"]["layer"]) == set(range(model.n_layers))
    at_best = tested[(tested["metric"] == "propensity") & (tested["layer"] == layer_range.best)]
    at = at_best.set_index(["alpha", "example_id"])
    difference = at.loc[2.0, "value"] - at.loc[0.0, "value"]
    assert layer_range.gain_best is not None and np.isclose(layer_range.gain_best.value, difference.mean())
